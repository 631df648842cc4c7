"""What a detector is: one rule that may know what is wrong with a bind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fusewatchd.decision import Bind
from fusewatchd.ledger import Ledger
from fusewatchd.model import Connection
from fusewatchd.snapshot import Snapshot
from fusewatchd.sources import Resolution
from fusewatchd.verdicts import Reason, Verdict


@dataclass(frozen=True, slots=True)
class Case:
    """One bind and everything that a rule may look at."""

    bind: Bind
    connection: Connection | None
    resolution: Resolution
    snapshot: Snapshot
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class Opinion:
    """A verdict and the words for it."""

    verdict: Verdict
    evidence: str
    refusal: Reason = Reason.NONE
    """Set where this state must never be acted on."""


Detector = Callable[[Case], Opinion | None]
"""Purely computational; None: this rule has nothing to say about the bind."""
