from __future__ import annotations

import pytest

from fusewatchd.connections import (
    MOVED_SECONDS,
    Connections,
    Question,
    Timing,
    credentials_of,
)
from fusewatchd.model import Answer, Device, Mount

D = Device(0, 40)
Q = Question(D, "/source")
TIMING = Timing(interval=10.0, deadline=5.0, hung_after=30.0)


def book(*mounts: int, question: Question = Q) -> Connections:
    connections = Connections(TIMING)
    connections.set_shown({D: (question, frozenset(mounts or (1,)))})
    return connections


def test_a_new_connection_is_asked_at_once_and_only_once() -> None:
    connections = book()
    assert connections.due(1.0) == [Q]
    assert connections.due(1.1) == []
    assert connections.due(100.0) == []


def test_an_answer_is_good_for_one_interval() -> None:
    connections = book()
    connections.due(1.0)
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.5)
    assert connections.due(11.4) == []
    assert connections.due(11.5) == [Q]


def test_a_dead_connection_is_never_asked_again() -> None:
    connections = book()
    connections.due(1.0)
    connections.take_answer(D, Answer.DISCONNECTED, 107, 1.0, 1.5)
    connections.ask_all_again()
    connections.set_shown({D: (Question(D, "/other"), frozenset({2, 1}))})
    assert connections.due(1e6) == []


def test_a_dead_one_that_is_covered_is_still_dead() -> None:
    connections = book(1)
    connections.due(1.0)
    connections.take_answer(D, Answer.DISCONNECTED, 107, 1.0, 1.5)
    assert connections.set_shown({}, {D: frozenset({1})}) == []
    assert connections.view(2.0, {})[D].answer is Answer.DISCONNECTED
    assert connections.due(1e6) == []
    assert connections.set_shown({}, {D: frozenset({7})}) == [D]


def test_a_living_one_that_is_covered_cannot_be_judged() -> None:
    connections = book(1)
    connections.due(1.0)
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.5)
    assert connections.set_shown({}, {D: frozenset({1})}) == [D]


def test_a_reused_device_number_has_no_past() -> None:
    connections = book(1)
    connections.due(1.0)
    connections.take_answer(D, Answer.DISCONNECTED, 107, 1.0, 1.5)
    assert connections.set_shown({D: (Q, frozenset({2}))}) == [D]
    assert connections.view(2.0, {})[D].answer is None
    assert connections.due(2.0) == [Q]


def test_an_answer_to_the_predecessor_is_ignored() -> None:
    connections = book(1)
    connections.due(1.0)
    connections.set_shown({D: (Q, frozenset({2}))})
    connections.due(2.0)
    connections.take_answer(D, Answer.DISCONNECTED, 107, 1.0, 2.5)
    assert connections.view(3.0, {})[D].answer is None


def test_one_that_lost_a_mount_is_asked_at_once() -> None:
    connections = book(1, 2)
    connections.due(1.0)
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.5)
    target = Question(D, "/target")
    connections.set_shown({D: (target, frozenset({2}))})
    assert connections.due(1.6) == [target]


def test_a_question_that_missed_is_asked_elsewhere_at_once_or_here_later() -> None:
    connections = book(1, 2)
    connections.due(1.0)
    connections.take_back(D, 1.1)
    assert connections.due(1.2) == []
    assert connections.due(1.1 + MOVED_SECONDS) == [Q]
    target = Question(D, "/target")
    connections.set_shown({D: (target, frozenset({2}))})
    connections.take_back(D, 3.0)
    assert connections.due(3.0) == [target]


@pytest.mark.parametrize(
    ("age", "waiting", "overdue", "hung"),
    [
        (4.9, 1, False, False),
        (5.0, 1, True, False),
        (30.0, 1, True, True),
        (30.0, None, True, True),
        (30.0, 0, True, False),
    ],
)
def test_slow_and_hung(age: float, waiting: int | None, overdue: bool, hung: bool) -> None:
    connections = book()
    connections.due(1.0)
    seen = connections.view(1.0 + age, {D: waiting})[D]
    assert (seen.is_overdue, seen.is_hung) == (overdue, hung)


def test_time_alone_wakes_for_deadline_then_hung_then_never() -> None:
    connections = book()
    connections.due(1.0)
    assert connections.next_due(1.0) == 6.0
    assert connections.next_due(6.0) == 31.0
    assert connections.next_due(31.0) is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("rw,user_id=1000,group_id=1001", (1000, 1001)),
        ("rw,user_id=1000,group_id=1001,allow_other", (None, None)),
        ("rw,user_id=0,group_id=0", (None, None)),
        ("rw,user_id=x,group_id=0", (None, None)),
        ("rw", (None, None)),
    ],
)
def test_whom_a_probe_must_be(options: str, expected: tuple[int | None, int | None]) -> None:
    mount = Mount(1, 2, D, "/", "/m", "rw", 0, 0, "fuse", "s", options)
    assert credentials_of(mount) == expected
