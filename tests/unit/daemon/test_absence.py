"""Time in which nobody ran counts against nobody."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from fusewatchd.daemon.absence import NOTICED_SECONDS, Absence
from fusewatchd.model.ledger import Ledger, SourceLife
from fusewatchd.model.mounts import Device
from fusewatchd.model.servers import Answer
from fusewatchd.observe.connections.questions import Question, Shown, Timing
from fusewatchd.observe.connections.tracker import Connections

D = Device(0, 40)
TIMING = Timing(10.0, 5.0, 30.0, confirms=True, held_grace=120.0)
LOST = 3600.0


@dataclass
class Clocks:
    """The test says what passes, and what of that was work."""

    passed: float = 100.0
    worked: float = 1.0


@pytest.mark.parametrize(
    ("passed", "worked", "waited", "lost"),
    [
        (10.0, 0.0, 10.0, 0.0),
        (5.0, 5.0, 0.0, 0.0),  # a cycle of a very big node
        (10.0, 0.0, 10.0 - NOTICED_SECONDS, 10.0),
        (40.0, 0.0, 0.0, 40.0),  # in the middle of a cycle
        (41.5, 0.5, 10.0, 41.0),
        (0.1, 0.0, 10.0, 0.0),  # something woke it
        (NOTICED_SECONDS - 0.01, 0.0, 0.0, 0.0),  # a busy machine
    ],
)
def test_what_was_lost(passed: float, worked: float, waited: float, lost: float) -> None:
    clocks = Clocks()
    absence = Absence(lambda: clocks.passed, lambda: clocks.worked)
    clocks.passed += passed
    clocks.worked += worked
    assert absence.lost(waited) == pytest.approx(lost)
    assert absence.lost() == 0.0


def asked(at: float) -> Connections:
    connections = Connections(TIMING)
    connections.set_shown({D: Shown(Question(D, "/source"), frozenset({1}))})
    connections.due(at)
    return connections


def test_a_question_has_as_much_time_left_as_before() -> None:
    connections = asked(1.0)
    connections.postpone(LOST)
    view = connections.view(1.0 + LOST + TIMING.deadline - 0.1, {D: 1})[D]
    assert (view.is_overdue, view.is_hung) == (False, False)
    assert connections.view(1.0 + LOST + TIMING.hung_after, {D: 1})[D].is_hung
    assert connections.take_answer(D, Answer.ANSWERED, 0, 1.0 + LOST, 2.0 + LOST)


def test_confirmations_and_grace_go_on_where_they_were() -> None:
    connections = asked(1.0)
    connections.count_requests({D: 1}, 31.0)
    connections.postpone(LOST)
    connections.count_requests({D: 1}, 31.1 + LOST)
    assert connections.view(31.1 + LOST, {D: 1})[D].confirmations == 0
    held = asked(1.0)
    held.server_gone(D, 2.0)
    held.postpone(LOST)
    assert held.view(100.0 + LOST, {D: 1})[D].held_since is not None
    assert not held.view(100.0 + LOST, {D: 1})[D].is_hung


def test_a_death_is_as_old_as_the_time_in_which_somebody_could_have_mended_it() -> None:
    connections = asked(1.0)
    connections.server_gone(D, 1.1)
    connections.take_answer(D, Answer.DISCONNECTED, 107, 1.0, 1.2)
    connections.postpone(LOST)
    view = connections.view(LOST + 2.0, {})[D]
    assert view.disconnected_at == pytest.approx(1.2 + LOST)
    assert view.server_gone_at == 1.1  # what people felt is another matter


def test_graces_of_the_ledger() -> None:
    ledger = Ledger(sources={"/s": SourceLife(D, 5.0)}, over_since={"uid": 7.0})
    later = ledger.postponed(LOST)
    assert later.sources["/s"].up_at == 5.0 + LOST
    assert later.over_since == {"uid": 7.0 + LOST}
