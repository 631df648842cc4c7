"""One rule for each way a bind can be unwell; pure.

``DETECTORS`` is the order in which they are asked.  The first one with an opinion decides; a
bind about which none has one is healthy.
"""

from __future__ import annotations

from fusewatchd.detectors.base import Case, Detector, Opinion
from fusewatchd.detectors.connection import (
    detect_connection_state,
    detect_failing_root,
    detect_held,
    detect_superseded,
    detect_unanswered,
    detect_writable_layer,
)
from fusewatchd.detectors.pod import detect_bare, detect_orphaned

DETECTORS: tuple[Detector, ...] = (
    detect_bare,
    detect_orphaned,
    detect_held,
    detect_unanswered,
    detect_connection_state,
    detect_writable_layer,
    detect_superseded,
    detect_failing_root,
)

__all__ = ["DETECTORS", "Case", "Detector", "Opinion"]
