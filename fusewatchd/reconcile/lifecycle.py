"""The life of one bind, as a table.

Rule 1: everything that a bind's phase depends on is in ``TRANSITIONS``; a pair that is not
there is a mistake of the caller and raises.  Rule 2: a phase never decides whether something
is stale, only what is done about it: verdicts come from the node, every cycle anew, so a
lost cycle or a restarted daemon changes nothing.  Rule 3: one failure starts a back-off for
that bind alone.

    HEALTHY --UNWELL--> SUSPECT --STALE--> STALE --SUBMITTED--> RECOVERING
    RECOVERING --SUCCEEDED--> HEALTHY      RECOVERING --FAILED--> COOLDOWN
    COOLDOWN --BACK_OFF_OVER--> STALE      any --WELL--> HEALTHY   any --VANISHED--> GONE
"""

from __future__ import annotations

from enum import Enum

from fusewatchd.model.outages import Phase
from fusewatchd.model.verdicts import Verdict


class Signal(Enum):
    """What happened to a bind in this cycle."""

    WELL = "well"
    UNWELL = "unwell"
    """Slow, hung, superseded, held, orphaned or unknown: watched, not replaced."""
    STALE = "stale"
    SUBMITTED = "submitted"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    BACK_OFF_OVER = "back_off_over"
    VANISHED = "vanished"


TRANSITIONS: dict[tuple[Phase, Signal], Phase] = {
    (Phase.HEALTHY, Signal.WELL): Phase.HEALTHY,
    (Phase.HEALTHY, Signal.UNWELL): Phase.SUSPECT,
    (Phase.HEALTHY, Signal.STALE): Phase.STALE,
    (Phase.HEALTHY, Signal.VANISHED): Phase.GONE,
    (Phase.SUSPECT, Signal.WELL): Phase.HEALTHY,
    (Phase.SUSPECT, Signal.UNWELL): Phase.SUSPECT,
    (Phase.SUSPECT, Signal.STALE): Phase.STALE,
    # A superseded bind is replaced without ever having been stale, if the policy says so.
    (Phase.SUSPECT, Signal.SUBMITTED): Phase.RECOVERING,
    (Phase.SUSPECT, Signal.VANISHED): Phase.GONE,
    (Phase.STALE, Signal.WELL): Phase.HEALTHY,
    (Phase.STALE, Signal.UNWELL): Phase.SUSPECT,
    (Phase.STALE, Signal.STALE): Phase.STALE,
    (Phase.STALE, Signal.SUBMITTED): Phase.RECOVERING,
    (Phase.STALE, Signal.VANISHED): Phase.GONE,
    # Only the outcome ends an attempt: until then the node is between two states.
    (Phase.RECOVERING, Signal.WELL): Phase.RECOVERING,
    (Phase.RECOVERING, Signal.UNWELL): Phase.RECOVERING,
    (Phase.RECOVERING, Signal.STALE): Phase.RECOVERING,
    (Phase.RECOVERING, Signal.VANISHED): Phase.RECOVERING,
    (Phase.RECOVERING, Signal.SUCCEEDED): Phase.HEALTHY,
    (Phase.RECOVERING, Signal.FAILED): Phase.COOLDOWN,
    (Phase.COOLDOWN, Signal.WELL): Phase.HEALTHY,
    (Phase.COOLDOWN, Signal.UNWELL): Phase.SUSPECT,
    (Phase.COOLDOWN, Signal.STALE): Phase.COOLDOWN,
    (Phase.COOLDOWN, Signal.BACK_OFF_OVER): Phase.STALE,
    (Phase.COOLDOWN, Signal.VANISHED): Phase.GONE,
}


def advance(phase: Phase, signal: Signal) -> Phase:
    """Return the next phase.

    Raises:
        KeyError: this signal cannot reach a bind in this phase.
    """
    return TRANSITIONS[phase, signal]


def signal_of(verdict: Verdict) -> Signal:
    """Translate a verdict to what it means for the life of a bind."""
    if verdict is Verdict.HEALTHY:
        return Signal.WELL
    if verdict is Verdict.STALE:
        return Signal.STALE
    return Signal.UNWELL
