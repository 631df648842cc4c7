"""What is written when: shares of a cluster, moments by chance, order and bounds."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.kube.events.outbox import MAX_EVENTS, Outbox, Wait
from fusewatchd.kube.events.pace import CLUSTER_BURST, NODE_PER_SECOND, Pace, share
from fusewatchd.kube.events.series import Series
from fusewatchd.report.events.draft import EventDraft, ObjectReference


def draft(name: str, reason: str = "R") -> EventDraft:
    return EventDraft(ObjectReference("Pod", "shop", name, name), reason, "A", "n", "Normal")


def drained(outbox: Outbox, now: float, until: float) -> list[float]:
    """Return when everything that waits was written."""
    moments: list[float] = []
    while now <= until:
        found = outbox.next(now)
        if isinstance(found, Wait):
            if found.until is None:
                break
            now = found.until
            continue
        outbox.was_created(found, found.count, has_counts=True)
        moments.append(now)
    return moments


@given(st.integers(1, 100_000))
def test_all_shares_together_are_bounded(nodes: int) -> None:
    rate = share(nodes)
    assert nodes * rate.per_second <= max(20.0, nodes * NODE_PER_SECOND) + 1e-6
    assert nodes * rate.burst <= max(CLUSTER_BURST, nodes) + 1e-6


def test_the_only_node_says_everything_at_once() -> None:
    outbox = Outbox(Pace(random.Random(1).random))
    for number in range(100):
        outbox.add(draft(f"p{number}"), 5.0, 1e9)
    assert drained(outbox, 5.0, 100.0) == [5.0] * 100


def test_one_of_thousands_begins_at_a_moment_of_its_own_and_goes_on_slowly() -> None:
    firsts = []
    for seed in range(200):
        pace = Pace(random.Random(seed).random)
        pace.take_nodes(5000)
        outbox = Outbox(pace)
        for number in range(4):
            outbox.add(draft(f"p{number}"), 5.0, 1e9)
        moments = drained(outbox, 5.0, 1000.0)
        assert len(moments) == 4
        gaps = [b - a for a, b in pairwise(moments)]
        assert all(gap >= 1 / NODE_PER_SECOND - 1e-6 for gap in gaps)
        firsts.append(moments[0] - 5.0)
    # Evenly from now to the time of one write.
    assert min(firsts) < 2.0 < 38.0 < max(firsts)
    assert 16.0 < sum(firsts) / len(firsts) < 24.0


def test_waiting_does_not_start_the_moment_again() -> None:
    pace = Pace(lambda: 0.5)
    pace.take_nodes(5000)
    outbox = Outbox(pace)
    outbox.add(draft("a"), 0.0, 1e9)
    first = outbox.next(0.0)
    assert isinstance(first, Wait)
    outbox.add(draft("b"), 10.0, 1e9)
    assert outbox.next(10.0) == first
    assert first.until is not None
    assert isinstance(outbox.next(first.until), Series)


def test_the_end_does_not_wait() -> None:
    pace = Pace(lambda: 1.0)
    pace.take_nodes(5000)
    outbox = Outbox(pace)
    outbox.add(draft("a"), 0.0, 1e9)
    assert isinstance(outbox.next(0.0), Wait)
    assert isinstance(outbox.next(0.0, is_last=True), Series)


def test_a_repetition_is_no_second_event() -> None:
    outbox = Outbox(Pace(lambda: 0.0))
    for _ in range(3):
        assert outbox.add(draft("a"), 0.0, 1e9) == 0
    (series,) = outbox.all()
    assert (series.count, outbox.unsaid) == (3, 3)


@pytest.mark.parametrize("count", [MAX_EVENTS, MAX_EVENTS + 1, 2 * MAX_EVENTS])
def test_it_is_bounded_and_counts_what_is_given_up(count: int) -> None:
    outbox = Outbox(Pace(lambda: 0.0))
    dropped = sum(outbox.add(draft(f"p{n}"), 0.0, 1e9) for n in range(count))
    assert len(outbox.all()) == MAX_EVENTS
    assert dropped == count - MAX_EVENTS


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 100)), max_size=30), st.integers(1, 5000))
def test_everything_is_said_in_the_end(words: list[tuple[int, float]], nodes: int) -> None:
    pace = Pace(random.Random(7).random)
    pace.take_nodes(nodes)
    outbox = Outbox(pace)
    for name, at in sorted(words, key=lambda word: word[1]):
        outbox.add(draft(f"p{name}"), at, 1e9)
    drained(outbox, 100.0, 1e6)
    assert outbox.unsaid == 0
