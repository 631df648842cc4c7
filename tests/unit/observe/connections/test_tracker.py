from __future__ import annotations

import errno
from collections.abc import Collection

import pytest

from fusewatchd.model.mounts import Device, Mount
from fusewatchd.model.servers import SERVED, Answer, Obstacle, Root
from fusewatchd.observe.connections.questions import Question, Shown, Timing, Way, credentials_of
from fusewatchd.observe.connections.state import ROOT_SECONDS
from fusewatchd.observe.connections.tracker import (
    MOST_PLACES,
    MOVED_SECONDS,
    SOON_SECONDS,
    WATCH_SECONDS,
    Connections,
)

D = Device(0, 40)
Q = Question(D, "/source")
TIMING = Timing(interval=10.0, deadline=5.0, hung_after=30.0)


def nowhere(_: Collection[Question], __: Device) -> Question | None:
    """There is no other place."""
    return None


def book(*mounts: int, question: Question = Q) -> Connections:
    connections = Connections(TIMING)
    connections.set_shown({D: Shown(question, frozenset(mounts or (1,)))})
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


def test_who_is_asked_in_turn_is_asked_together() -> None:
    connections, other = book(), Device(0, 41)
    connections.set_shown(
        {D: Shown(Q, frozenset({1})), other: Shown(Question(other, "/o"), frozenset({2}))}
    )
    assert len(connections.due(1.0)) == 2
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.1)
    connections.take_answer(other, Answer.ANSWERED, 0, 1.0, 1.9)
    assert connections.due(11.0) == []
    assert len(connections.due(11.1)) == 2
    # But nobody is asked for ever sooner because of others.
    connections.take_answer(D, Answer.ANSWERED, 0, 11.1, 11.2)
    assert connections.due(11.3) == []


def test_the_same_answer_in_turn_is_no_news() -> None:
    connections = book()
    connections.due(1.0)
    assert connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.1)
    connections.due(11.1)
    assert not connections.take_answer(D, Answer.ANSWERED, 0, 11.1, 11.2)
    connections.due(21.2)
    assert connections.take_answer(D, Answer.ERROR, 5, 21.2, 21.3)
    connections.due(31.3)
    late = 31.4 + TIMING.deadline
    assert connections.take_answer(D, Answer.ERROR, 5, 31.3, late)
    connections.ask_again([D])
    connections.due(late)
    assert connections.take_answer(D, Answer.ERROR, 5, late, late + 0.1)
    connections.server_gone(D, late + 1)
    connections.due(late + 1)
    assert connections.take_answer(D, Answer.ERROR, 5, late + 1, late + 1.1)


def test_one_that_is_dead_since_its_server_ended_is_never_asked_again() -> None:
    connections = book()
    connections.server_gone(D, 0.5)
    connections.due(1.0)
    connections.take_answer(D, Answer.DISCONNECTED, 107, 1.0, 1.5)
    connections.ask_all_again()
    connections.ask_doubtful()
    connections.set_shown({D: Shown(Question(D, "/other"), frozenset({2, 1}))})
    assert connections.due(1e6) == []


def test_what_a_living_server_may_have_passed_on_is_asked_again_after_a_while() -> None:
    """One that shows other file systems has their errors, until they are back."""
    connections = book()
    connections.due(1.0)
    connections.take_answer(D, Answer.DISCONNECTED, 107, 1.0, 1.5)
    connections.ask_all_again()
    assert connections.due(1.5) == []
    assert connections.due(1.5 + TIMING.interval) == [Q]


def test_it_is_asked_at_once_when_something_else_works_again() -> None:
    connections, other = book(), Device(0, 41)
    connections.set_shown(
        {D: Shown(Q, frozenset({1})), other: Shown(Question(other, "/o"), frozenset({2}))}
    )
    connections.due(1.0)
    connections.take_answer(D, Answer.DISCONNECTED, 107, 1.0, 1.5)
    connections.take_answer(other, Answer.ANSWERED, 0, 1.0, 1.6)
    assert connections.due(1.6) == [Q]
    connections.take_answer(D, Answer.DISCONNECTED, 107, 1.6, 1.7)
    connections.ask_doubtful()
    assert connections.due(1.7) == [Q]
    connections.take_answer(D, Answer.ANSWERED, 0, 1.7, 1.8)
    assert connections.view(2.0, {})[D].answer is Answer.ANSWERED


COVERED = Question(D, "/source", is_covered=True)


def test_a_dead_one_that_is_covered_is_still_dead() -> None:
    connections = book(1)
    connections.server_gone(D, 0.5)
    connections.due(1.0)
    connections.take_answer(D, Answer.DISCONNECTED, 107, 1.0, 1.5)
    assert connections.set_shown({D: Shown(COVERED, frozenset({1}))}) == []
    assert connections.view(2.0, {})[D].answer is Answer.DISCONNECTED
    assert connections.due(1e6) == []
    assert connections.set_shown({D: Shown(COVERED, frozenset({7}))}) == [D]


def test_a_living_one_that_is_covered_goes_on_being_asked() -> None:
    connections = book(1)
    connections.due(1.0)
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.5)
    assert connections.set_shown({D: Shown(COVERED, frozenset({1}))}) == []
    assert connections.due(1.5 + TIMING.interval) == [COVERED]


def test_one_that_nobody_gets_at_below_others_is_tried_when_its_turn_comes() -> None:
    connections = book(1, question=COVERED)
    connections.due(1.0)
    connections.take_back(D, 0, 1.1, nowhere)
    assert connections.due(1.1 + MOVED_SECONDS) == []
    assert connections.due(1.1 + TIMING.interval) == [COVERED]


def test_it_is_remembered_when_a_connection_was_asked_first() -> None:
    connections = book(1)
    assert connections.view(0.5, {})[D].first_asked_at is None
    connections.due(1.0)
    connections.take_back(D, 0, 1.1, nowhere)
    connections.due(1.1 + MOVED_SECONDS)
    assert connections.view(2.0, {})[D].first_asked_at == 1.0


def test_a_reused_device_number_has_no_past() -> None:
    connections = book(1)
    connections.due(1.0)
    connections.take_answer(D, Answer.DISCONNECTED, 107, 1.0, 1.5)
    assert connections.set_shown({D: Shown(Q, frozenset({2}))}) == [D]
    assert connections.view(2.0, {})[D].answer is None
    assert connections.due(2.0) == [Q]


def test_an_old_look_at_a_namespace_proves_nothing_about_a_device_of_the_host() -> None:
    """The superblock went and its number was reused before the namespace was looked at again."""
    connections = Connections(TIMING)
    connections.set_shown({D: Shown(Q, frozenset({1}), frozenset({7}))})
    connections.due(1.0)
    connections.take_answer(D, Answer.DISCONNECTED, 107, 1.0, 1.5)
    assert connections.set_shown({D: Shown(Q, frozenset({2}), frozenset({7}))}) == [D]
    assert connections.due(2.0) == [Q]


def test_what_only_a_container_shows_any_more_keeps_its_past() -> None:
    connections = Connections(TIMING)
    connections.set_shown({D: Shown(Q, frozenset({1}), frozenset({7}))})
    connections.due(1.0)
    connections.take_answer(D, Answer.DISCONNECTED, 107, 1.0, 1.5)
    inside = Question(D, "/data", pid=5)
    assert connections.set_shown({D: Shown(inside, frozenset(), frozenset({7, 8}))}) == []
    assert connections.view(2.0, {})[D].answer is Answer.DISCONNECTED
    assert connections.set_shown({D: Shown(inside, frozenset(), frozenset({9}))}) == [D]


def test_an_answer_to_the_predecessor_is_ignored() -> None:
    connections = book(1)
    connections.due(1.0)
    connections.set_shown({D: Shown(Q, frozenset({2}))})
    connections.due(2.0)
    connections.take_answer(D, Answer.DISCONNECTED, 107, 1.0, 2.5)
    assert connections.view(3.0, {})[D].answer is None


def test_one_that_lost_a_mount_is_asked_at_once() -> None:
    connections = book(1, 2)
    connections.due(1.0)
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.5)
    target = Question(D, "/target")
    connections.set_shown({D: Shown(target, frozenset({2}))})
    assert connections.due(1.6) == [target]


def test_a_question_that_missed_is_asked_elsewhere_at_once_or_here_later() -> None:
    connections = book(1, 2)
    connections.due(1.0)
    connections.take_back(D, 0, 1.1, nowhere)
    assert connections.due(1.2) == []
    assert connections.due(1.1 + MOVED_SECONDS) == [Q]
    target = Question(D, "/target")
    connections.set_shown({D: Shown(target, frozenset({2}))})
    connections.take_back(D, 0, 3.0, nowhere)
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


def test_what_happens_while_a_question_is_pending_is_asked_again_after_the_answer() -> None:
    connections = book()
    connections.due(1.0)
    connections.server_gone(D, 1.2)
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.5)
    (question,) = connections.due(1.5)
    assert question.is_urgent
    connections.take_answer(D, Answer.DISCONNECTED, 107, 1.5, 1.6)
    assert connections.due(1e6) == []


def test_a_pending_question_that_becomes_urgent_is_sent_once_more() -> None:
    connections = book()
    assert [q.is_urgent for q in connections.due(1.0)] == [False]
    connections.server_gone(D, 1.2)
    assert [q.is_urgent for q in connections.due(1.3)] == [True]
    assert connections.due(1.4) == []


def test_a_server_that_ended_was_the_one_of_whoever_is_dead_now() -> None:
    other = Device(0, 41)
    shown = {d: Shown(Question(d, f"/{d}"), frozenset({d.minor})) for d in (D, other)}
    connections = Connections(TIMING)
    connections.set_shown(shown)
    connections.due(1.0)
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.5)
    connections.some_server_gone(2.0)
    assert {question.device for question in connections.due(2.0)} == {D, other}
    connections.take_answer(D, Answer.DISCONNECTED, 107, 2.0, 2.1)
    # This answer may be from before, and is asked for again.
    connections.take_answer(other, Answer.ANSWERED, 0, 1.0, 2.2)
    assert [question.device for question in connections.due(2.2) if question.is_urgent] == [other]
    view = connections.view(2.2, {})
    assert (view[D].server_gone_at, view[other].server_gone_at) == (2.0, None)
    connections.take_answer(other, Answer.ANSWERED, 0, 2.2, 2.3)
    connections.due(20.0)
    connections.take_answer(other, Answer.DISCONNECTED, 107, 20.0, 20.1)
    assert connections.view(20.1, {})[other].server_gone_at is None


def test_the_server_of_a_doubtful_answer_may_have_ended() -> None:
    connections = book()
    connections.due(1.0)
    connections.some_server_gone(2.0)
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 2.1)
    connections.due(2.1)
    connections.take_answer(D, Answer.DISCONNECTED, 107, 2.1, 2.2)
    assert connections.view(2.2, {})[D].server_gone_at == 2.0


def test_what_comes_later_is_urgent_and_what_was_there_is_not() -> None:
    connections, other = book(), Device(0, 41)
    connections.set_shown(
        {D: Shown(Q, frozenset({1})), other: Shown(Question(other, "/o"), frozenset({2}))}
    )
    assert {q.device: q.is_urgent for q in connections.due(1.0)} == {D: False, other: True}
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.5)
    assert [q.is_urgent for q in connections.due(11.5)] == [False]


def test_what_nobody_asked_is_neither_slow_nor_hung() -> None:
    connections = book()
    connections.due(1.0)
    connections.note_unasked({D}, (), 1.0)
    assert connections.overdue(40.0) == []
    seen = connections.view(30.9, {})[D]
    assert (seen.is_overdue, seen.is_hung, seen.is_unasked) == (False, False, False)
    assert connections.view(31.0, {})[D].is_unasked
    connections.note_unasked((), (), 41.0)
    assert not connections.view(45.9, {})[D].is_overdue
    assert connections.view(46.0, {})[D].is_overdue
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 47.0)
    assert connections.view(47.0, {})[D].answer is Answer.ANSWERED


def test_a_hung_one_whose_question_was_withdrawn_stays_hung_and_unconfirmed() -> None:
    connections = book()
    connections.due(1.0)
    connections.note_unasked((), {D}, 40.0)
    connections.count_requests({D: 3}, 40.0)
    connections.count_requests({D: 3}, 50.0)
    seen = connections.view(50.0, {D: 0})[D]
    assert (seen.is_hung, seen.confirmations) == (True, 0)


Look = tuple[float, int | None]
"""Seconds since it was asked, and the requests that were found waiting."""


@pytest.mark.parametrize(
    ("looks", "confirmations"),
    [
        pytest.param([(30, 1)], 0, id="the first look is no confirmation"),
        pytest.param([(29, 1), (34.9, 1)], 0, id="before it is hung nothing counts"),
        pytest.param([(30, 1), (35, 1)], 1, id="one deadline later"),
        pytest.param([(30, 1), (31, 1), (32, 1), (33, 1), (34.9, 1)], 0, id="not once per look"),
        pytest.param([(30, 1), (35, 1), (40, 1), (45, 1)], 3, id="three in a row"),
        pytest.param([(30, 1), (35, 4), (40, 9)], 2, id="more and more waiting"),
        pytest.param([(30, 1), (60, 1)], 1, id="a long time without a look is one"),
        pytest.param([(30, 3), (35, 3), (36, 2), (40, 2)], 0, id="somebody was served"),
        pytest.param([(30, 3), (33, 5), (35, 4), (39, 4)], 0, id="served between two"),
        pytest.param([(30, 1), (35, 1), (36, 0), (40, 1)], 0, id="drained"),
        pytest.param([(30, 1), (35, 1), (36, None), (40, 1)], 0, id="one look without fusectl"),
        pytest.param([(30, None), (35, None), (40, None)], 0, id="never without fusectl"),
    ],
)
def test_confirmations(looks: list[Look], confirmations: int) -> None:
    connections = book()
    connections.due(1.0)
    for age, waiting in looks:
        connections.count_requests({D: waiting}, 1.0 + age)
    assert connections.view(70.0, {D: 1})[D].confirmations == confirmations


def test_one_that_never_answered_may_be_starting_unless_it_was_there_before() -> None:
    connections, other = book(), Device(0, 41)
    connections.set_shown(
        {D: Shown(Q, frozenset({1})), other: Shown(Question(other, "/o"), frozenset({2}))}
    )
    connections.due(1.0)
    for now in (31.0, 36.0):
        connections.count_requests({D: 1, other: 1}, now)
    seen = connections.view(36.0, {D: 1, other: 1})
    assert (seen[D].confirmations, seen[other].confirmations) == (1, 0)
    connections.take_answer(other, Answer.ANSWERED, 0, 1.0, 37.0)
    connections.due(47.0)
    for now in (77.0, 82.0):
        connections.count_requests({other: 1}, now)
    assert connections.view(82.0, {other: 1})[other].confirmations == 1


def confirmed() -> Connections:
    connections = book(1, 2)
    connections.due(1.0)
    for now in (31.0, 36.0, 41.0):
        connections.count_requests({D: 2}, now)
    assert connections.view(41.0, {D: 2})[D].confirmations == 2
    return connections


@pytest.mark.parametrize("answer", Answer)
def test_any_answer_ends_the_confirmations(answer: Answer) -> None:
    connections = confirmed()
    connections.take_answer(D, answer, 5, 1.0, 42.0)
    assert connections.view(42.0, {D: 2})[D].confirmations == 0


def test_confirmations_end_with_doubt_with_the_question_and_with_the_superblock() -> None:
    doubted, taken_back, gone, kept = (confirmed() for _ in range(4))
    doubted.doubt(D)
    taken_back.take_back(D, 0, 42.0, nowhere)
    gone.set_shown({D: Shown(Q, frozenset({3}))})
    kept.set_shown({D: Shown(Q, frozenset({2, 3}))})
    counts = [c.view(42.0, {D: 2})[D].confirmations for c in (doubted, taken_back, gone, kept)]
    assert counts == [0, 0, 0, 2]


def test_a_standstill_is_watched_while_somebody_wants_to_know() -> None:
    connections = confirmed()
    assert connections.next_change(41.0) is None
    connections.timing = Timing(10.0, 5.0, 30.0, confirms=True)
    assert connections.next_change(41.2) == 41.0 + WATCH_SECONDS


def test_time_alone_wakes_for_deadline_then_hung_then_never() -> None:
    connections = book()
    connections.due(1.0)
    assert connections.next_change(1.0) == 6.0
    assert connections.next_change(6.0) == 31.0
    assert connections.next_change(31.0) is None


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


HELD = Timing(interval=10.0, deadline=5.0, hung_after=30.0, confirms=True, held_grace=120.0)


def silent_since(asked_at: float) -> Connections:
    """One that answered once, was asked again, and says nothing."""
    connections = book()
    connections.timing = HELD
    connections.due(1.0)
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.5)
    connections.ask_all_again()
    connections.due(asked_at)
    return connections


def held_at(connections: Connections, now: float) -> tuple[float | None, bool]:
    connections.count_requests({D: 1}, now)
    view = connections.view(now, {D: 1})[D]
    return view.held_since, view.is_hung


def test_one_whose_server_ended_is_held_for_its_grace_and_hung_after_that() -> None:
    connections = silent_since(20.0)
    connections.server_gone(D, 20.0)
    assert held_at(connections, 24.9) == (None, False)
    assert held_at(connections, 25.0) == (20.0, False)
    assert held_at(connections, 139.9) == (20.0, False)
    assert connections.next_change(139.9) == 140.0
    assert connections.view(139.9, {D: 1})[D].confirmations == 0
    assert held_at(connections, 140.0) == (None, True)
    assert held_at(connections, 145.0) == (None, True)
    assert connections.view(145.0, {D: 1})[D].confirmations == 1


def test_one_whose_server_lives_is_hung_and_not_held() -> None:
    connections = silent_since(20.0)
    assert held_at(connections, 50.0) == (None, True)


def test_some_servers_end_makes_held_what_was_not_silent_before() -> None:
    connections = silent_since(20.0)
    connections.some_server_gone(24.0)
    assert held_at(connections, 30.0) == (24.0, False)
    # The end of further ones does not make it begin anew.
    connections.some_server_gone(40.0)
    assert held_at(connections, 50.0) == (24.0, False)
    before = silent_since(20.0)
    before.some_server_gone(25.1)
    assert held_at(before, 50.0) == (None, True)


def test_one_that_is_dead_is_not_held() -> None:
    connections = silent_since(20.0)
    connections.server_gone(D, 20.0)
    connections.take_answer(D, Answer.DISCONNECTED, 107, 20.0, 20.1)
    view = connections.view(60.0, {})[D]
    assert (view.held_since, view.disconnected_at) == (None, 20.1)


def test_a_successor_that_answers_ends_it_and_its_end_is_another_one() -> None:
    connections = silent_since(20.0)
    connections.server_gone(D, 20.0)
    assert held_at(connections, 40.0) == (20.0, False)
    (question,) = connections.ask_anew(40.0)
    assert question == Q
    assert connections.ask_anew(49.9) == []
    connections.take_answer(D, Answer.ANSWERED, 0, 40.0, 41.0)
    assert held_at(connections, 41.0) == (None, False)
    assert connections.view(41.0, {})[D].server_gone_at is None
    connections.server_gone(D, 60.0)
    assert connections.view(60.0, {})[D].server_gone_at == 60.0


def test_an_answer_from_before_the_end_proves_no_successor() -> None:
    connections = silent_since(20.0)
    connections.server_gone(D, 20.5)
    connections.take_answer(D, Answer.ANSWERED, 0, 20.0, 20.6)
    assert connections.view(20.6, {})[D].server_gone_at == 20.5


def test_nobody_who_serves_it_was_seen_at_all() -> None:
    """Its server ended before the daemon was started."""
    connections = silent_since(20.0)
    connections.note_served({Device(0, 99)}, 24.0)
    assert held_at(connections, 50.0) == (None, True)
    connections.note_served({Device(0, 99), D}, 25.0)
    assert held_at(connections, 50.0) == (None, True)
    connections.note_served({Device(0, 99)}, 25.0)
    assert held_at(connections, 50.0) == (20.0, False)


def test_the_next_question_is_due_when_the_last_answer_is_old() -> None:
    connections = book()
    assert connections.next_question(1.0) == 0.0
    connections.due(1.0)
    assert connections.next_question(2.0) is None
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.5)
    assert connections.next_question(2.0) == 11.5


def test_an_urgent_question_is_awaited_until_it_is_answered() -> None:
    connections = book()
    connections.due(1.0)
    assert not connections.awaits_urgent(0.0)  # one in turn decides nothing
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.5)
    connections.server_gone(D, 2.0)
    connections.due(2.0)
    assert connections.awaits_urgent(2.0)
    assert not connections.awaits_urgent(2.1)  # asked longer ago than anybody waits
    connections.take_answer(D, Answer.DISCONNECTED, 107, 2.0, 2.001)
    assert not connections.awaits_urgent(2.0)


# ------------------------------------------------------------------- whether it serves


def root_of(connections: Connections, now: float) -> Root:
    return connections.view(now, {})[D].root


def asked_for_root(connections: Connections, now: float) -> bool:
    (question,) = connections.due(now)
    return question.asks_root


def test_the_root_is_asked_for_at_first_then_seldom_and_often_in_trouble() -> None:
    connections = book()
    assert asked_for_root(connections, 1.0)
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.1, root_follows=True)
    assert root_of(connections, 1.1).is_pending
    connections.take_root(D, 0, 1.2)
    assert root_of(connections, 1.2) == SERVED
    now = 1.2
    while now + TIMING.interval < 1.1 + ROOT_SECONDS:
        now += TIMING.interval
        assert not asked_for_root(connections, now)
        connections.take_answer(D, Answer.ANSWERED, 0, now, now)
    now += TIMING.interval
    assert asked_for_root(connections, now)
    connections.take_answer(D, Answer.ANSWERED, 0, now, now, root_follows=True)
    assert root_of(connections, now) == SERVED  # as far as is known
    assert connections.take_root(D, 5, now)
    assert root_of(connections, now).fails
    assert asked_for_root(connections, now + TIMING.interval)


def test_nothing_follows_from_the_first_answer_before_the_root_is_known() -> None:
    connections = book()
    connections.due(1.0)
    assert not connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.1, root_follows=True)
    assert connections.take_root(D, 0, 1.2)
    connections.due(20.0)
    assert not connections.take_answer(D, Answer.ANSWERED, 0, 20.0, 20.1)
    assert not connections.take_root(D, 0, 20.2)


@pytest.mark.parametrize(
    ("number", "fails"),
    [(0, False), (13, False), (1, False), (38, False), (5, True), (2, True), (107, True)],
)
def test_what_a_root_that_fails_is(number: int, fails: bool) -> None:
    assert Root(number).fails is fails


def test_a_root_that_is_late_is_slow_and_no_failure() -> None:
    connections = book()
    connections.due(1.0)
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.1, root_follows=True)
    assert connections.take_root(D, None, 6.1)
    root = root_of(connections, 6.1)
    assert (root.is_slow, root.fails, root.is_pending) == (True, False, False)


def test_an_urgent_question_is_awaited_until_the_root_is_known() -> None:
    connections = book()
    other = Device(0, 41)
    connections.set_shown(
        {D: Shown(Q, frozenset({1})), other: Shown(Question(other, "/o"), frozenset({2}))}
    )
    connections.due(1.0)
    connections.take_answer(other, Answer.ANSWERED, 0, 1.0, 1.1, root_follows=True)
    assert connections.awaits_urgent(0.9)
    connections.take_root(other, 0, 1.2)
    assert not connections.awaits_urgent(0.9)


@pytest.mark.parametrize("answer", [Answer.ERROR, Answer.REFUSED])
def test_a_new_one_that_answers_badly_is_asked_soon_and_then_less_and_less(answer: Answer) -> None:
    connections = book()
    times, now = [], 1.0
    while len(times) < 8:
        connections.due(now)
        connections.take_answer(D, answer, 5, now, now)
        due = connections.next_question(now)
        assert due is not None
        times.append(due - now)
        now = due
    assert times[0] == SOON_SECONDS
    assert times == sorted(times)
    assert times[-1] == TIMING.interval


def test_a_refusal_after_the_end_of_a_server_is_doubted_soon() -> None:
    """Something may keep the connection for a moment more, and answer."""
    connections = book()
    connections.due(1.0)
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.1)
    connections.server_gone(D, 500.0)
    connections.due(500.0)
    connections.take_answer(D, Answer.REFUSED, 107, 500.0, 500.1)
    assert connections.next_question(500.1) == pytest.approx(500.1 + SOON_SECONDS)


def test_an_answer_from_before_the_end_of_its_server_counts_no_longer() -> None:
    connections = book()
    connections.due(1.0)
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.1)
    connections.server_gone(D, 2.0)
    assert connections.next_change(2.0) == 2.0 + TIMING.deadline
    connections.due(2.0)
    connections.take_back(D, 0, 2.1, nowhere)  # another mount was at its path
    assert not connections.view(2.2, {})[D].is_outdated
    assert connections.view(2.0 + TIMING.deadline, {})[D].is_outdated
    connections.due(8.0)
    connections.take_answer(D, Answer.ANSWERED, 0, 8.0, 8.1)
    assert not connections.view(20.0, {})[D].is_outdated


def test_every_other_place_is_tried_at_once_and_then_it_is_blocked() -> None:
    places = [Question(D, f"/place/{number}") for number in range(3)]

    def elsewhere(tried: Collection[Question], _: Device) -> Question | None:
        return next((place for place in places if place not in tried), None)

    connections = book(1, question=places[0])
    for place in places:
        assert connections.due(1.0) == [place]
        assert connections.view(1.0, {})[D].obstacle is None
        connections.take_back(D, errno.ENOTCONN, 1.0, elsewhere)
    assert connections.due(1.0) == []
    assert connections.view(1.0, {})[D].obstacle == Obstacle(errno.ENOTCONN)
    again = 1.0 + MOVED_SECONDS
    assert connections.due(again) == [places[2]]
    connections.take_answer(D, Answer.ANSWERED, 0, again, again)
    assert connections.view(again, {})[D].obstacle is None


def test_no_more_than_some_places_are_tried_without_a_rest() -> None:
    connections, asked = book(1), 0
    while connections.due(1.0):
        asked += 1
        connections.take_back(D, 0, 1.0, lambda tried, _: Question(D, f"/{len(tried)}"))
    assert asked == MOST_PLACES


def test_an_answer_counts_no_longer_when_no_place_leads_there_any_more() -> None:
    connections = book(1)
    connections.due(1.0)
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.1)
    connections.due(1.1 + TIMING.interval)
    connections.take_back(D, 0, 12.0, nowhere)
    assert not connections.view(12.0, {})[D].is_outdated
    assert connections.next_change(12.0) == 12.0 + TIMING.deadline
    known = connections.view(12.0 + TIMING.deadline, {})[D]
    assert known.is_outdated and known.obstacle == Obstacle()


def test_a_dead_one_stays_dead_when_no_place_leads_there() -> None:
    connections = book(1)
    connections.due(1.0)
    connections.take_answer(D, Answer.DISCONNECTED, 107, 1.0, 1.1)
    connections.due(1.1 + TIMING.interval)
    connections.take_back(D, errno.ENOTCONN, 12.0, nowhere)
    known = connections.view(100.0, {})[D]
    assert known.is_dead and not known.is_outdated and known.obstacle is None


OVER_FUSE = Question(D, "/outer/inner", way=Way.FUSE)


@pytest.mark.parametrize(
    ("question", "waiting", "hangs"),
    [(OVER_FUSE, 0, True), (OVER_FUSE, 1, False), (OVER_FUSE, None, False), (Q, 0, False)],
)
def test_what_hangs_on_the_way_is_told_by_requests_that_never_arrived(
    question: Question, waiting: int | None, hangs: bool
) -> None:
    connections = book(1, question=question)
    connections.due(1.0)
    known = connections.view(1.0 + TIMING.deadline, {D: waiting})[D]
    assert known.obstacle == (Obstacle(hangs=True) if hangs else None)


def test_one_that_was_asked_on_a_worse_way_is_asked_anew() -> None:
    connections = book(1, question=OVER_FUSE)
    connections.due(1.0)
    assert connections.ask_anew(2.0) == []
    connections.set_shown({D: Shown(Q, frozenset({1, 2}))})
    assert connections.ask_anew(2.0) == [Q]
    assert connections.ask_anew(2.1) == []
    connections.take_answer(D, Answer.ANSWERED, 0, 2.0, 2.1)
    assert connections.view(2.1, {})[D].answer is Answer.ANSWERED


def test_one_behind_an_automount_is_asked_so_seldom_that_it_can_expire() -> None:
    question = Question(D, "/net/one", way=Way.AUTOMOUNT, rest_seconds=600.0)
    connections = book(1, question=question)
    connections.due(1.0)
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.0)
    assert connections.next_question(1.0) == 601.0
    connections.server_gone(D, 30.0)
    assert connections.due(30.0) == [question]
    connections.take_answer(D, Answer.ERROR, errno.EIO, 30.0, 30.0)
    assert connections.due(31.0) == [question]
    connections.take_answer(D, Answer.ERROR, errno.EIO, 31.0, 60.0)
    assert connections.next_question(60.0) == 660.0


def test_what_outlives_its_server_counts_as_dead_and_is_never_asked() -> None:
    connections = book()
    connections.due(1.0)
    connections.take_answer(D, Answer.ANSWERED, 0, 1.0, 1.1)
    connections.due(11.1)  # a question is under way when its server ends
    connections.set_lost(frozenset({D}), 12.0)
    seen = connections.view(12.0, {})[D]
    assert seen.is_dead and seen.server_gone_at == 12.0 and not seen.is_overdue
    connections.ask_all_again()
    connections.ask_again([D])
    connections.ask_doubtful()
    connections.some_server_gone(13.0)
    assert connections.due(1e6) == [] and connections.ask_anew(1e6) == []
    assert connections.next_question(14.0) is None
    # The answer to the question that was under way comes too late to be of it.
    assert not connections.take_answer(D, Answer.ANSWERED, 0, 11.1, 14.0)
    assert connections.view(14.0, {})[D].is_dead


def test_what_is_shown_later_of_a_lost_connection_is_not_asked_either() -> None:
    connections = Connections(TIMING)
    connections.set_lost(frozenset({D}), 5.0)
    connections.set_shown({D: Shown(Q, frozenset(), frozenset({7}))})
    assert connections.due(6.0) == []
    assert connections.view(6.0, {})[D].is_dead
    connections.set_shown({D: Shown(Q, frozenset(), frozenset({9}))})
    assert connections.due(7.0) == []


def test_a_number_that_is_lost_no_more_is_asked_what_it_is() -> None:
    connections = book()
    connections.set_lost(frozenset({D}), 2.0)
    connections.set_lost(frozenset(), 3.0)
    assert [question.device for question in connections.due(3.0)] == [D]
    connections.take_answer(D, Answer.ANSWERED, 0, 3.0, 3.1)
    seen = connections.view(3.2, {})[D]
    assert not seen.is_dead and seen.server_gone_at is None
