"""How long to wait for what should happen at once.

Deadlines are made for an ordinary machine.  An emulated processor is several times slower:
``FUSEWATCHD_PATIENCE=4`` makes every deadline of the demo and of the tests four times as long.
"""

from __future__ import annotations

import os

_FACTOR = float(os.environ.get("FUSEWATCHD_PATIENCE", "1"))


def patient(seconds: float) -> float:
    """Return the time to wait on this machine for what takes ``seconds`` at most elsewhere."""
    return seconds * _FACTOR
