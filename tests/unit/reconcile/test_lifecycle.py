"""The table of transitions."""

from __future__ import annotations

import pytest

from fusewatchd.model.outages import Phase
from fusewatchd.model.verdicts import Verdict
from fusewatchd.reconcile.lifecycle import TRANSITIONS, Signal, advance, signal_of

# -------------------------------------------------------------------------- lifecycle


def test_every_phase_but_the_last_can_be_left_and_reached() -> None:
    left = {phase for phase, _ in TRANSITIONS}
    reached = set(TRANSITIONS.values())
    assert left == set(Phase) - {Phase.GONE}
    assert reached == set(Phase)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("signal", Signal)
def test_each_pair_is_in_the_table_or_refused(phase: Phase, signal: Signal) -> None:
    if (phase, signal) in TRANSITIONS:
        assert advance(phase, signal) is TRANSITIONS[phase, signal]
    else:
        with pytest.raises(KeyError):
            advance(phase, signal)


@pytest.mark.parametrize("phase", [p for p in Phase if p is not Phase.GONE])
@pytest.mark.parametrize("verdict", Verdict)
def test_every_verdict_can_be_met_in_every_phase(phase: Phase, verdict: Verdict) -> None:
    advance(phase, signal_of(verdict))


def test_only_an_outcome_ends_a_recovery() -> None:
    ends = {s for (p, s), to in TRANSITIONS.items() if p is Phase.RECOVERING and to is not p}
    assert ends == {Signal.SUCCEEDED, Signal.FAILED}
