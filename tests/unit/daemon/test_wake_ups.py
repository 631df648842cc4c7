"""Which wake-ups start a cycle at once, and which wait."""

from __future__ import annotations

import pytest

from fusewatchd.daemon.wake_ups import ANSWER_SECONDS, REST_FACTOR, WakeUps
from fusewatchd.model.cycle import Trigger


def test_nothing_is_due_before_something_happens() -> None:
    wake_ups = WakeUps()
    assert wake_ups.due_at is None
    assert wake_ups.take() == []


def test_a_wake_up_is_due_at_once_and_taken_once() -> None:
    wake_ups = WakeUps()
    wake_ups.add(Trigger.PROBE, 5.0)
    assert wake_ups.due_at == 5.0
    assert wake_ups.take() == [Trigger.PROBE]
    assert wake_ups.due_at is None


def test_what_comes_without_pause_rests_as_long_as_the_last_cycle_was_expensive() -> None:
    wake_ups = WakeUps()
    wake_ups.note_cycle(10.0, 10.5)
    wake_ups.add_after_rest(Trigger.MOUNTS, 10.6)
    rested_at = 10.5 + REST_FACTOR * 0.5
    assert wake_ups.due_at == rested_at
    wake_ups.add_after_rest(Trigger.MOUNTS, 11.0)
    assert wake_ups.due_at == rested_at  # however often it comes


def test_what_comes_after_the_rest_does_not_wait() -> None:
    wake_ups = WakeUps()
    wake_ups.note_cycle(10.0, 10.5)
    wake_ups.add_after_rest(Trigger.MOUNTS, 20.0)
    assert wake_ups.due_at == 20.0


def test_what_rests_goes_along_with_what_does_not() -> None:
    wake_ups = WakeUps()
    wake_ups.note_cycle(10.0, 10.5)
    wake_ups.add_after_rest(Trigger.OUTCOME, 10.6)
    wake_ups.add(Trigger.SERVER_EXIT, 10.7)
    assert wake_ups.due_at == 10.7
    assert wake_ups.take() == [Trigger.OUTCOME, Trigger.SERVER_EXIT]


def test_an_answer_is_waited_for_but_not_for_long() -> None:
    wake_ups = WakeUps()
    wake_ups.add(Trigger.MOUNTS, 5.0)
    wake_ups.hold(5.1)
    assert wake_ups.due_at == pytest.approx(5.1 + ANSWER_SECONDS)


def test_what_else_is_due_meanwhile_has_to_wait_as_long() -> None:
    wake_ups = WakeUps()
    wake_ups.add(Trigger.MOUNTS, 5.0)
    wake_ups.hold(5.0)
    wake_ups.add(Trigger.TIMER, 5.0)
    until = wake_ups.held_until
    assert until is not None
    assert not wake_ups.is_due(5.0)
    assert wake_ups.is_due(until)
    wake_ups.take()
    assert wake_ups.held_until is None


def test_an_answer_ends_the_wait() -> None:
    wake_ups = WakeUps()
    wake_ups.add(Trigger.MOUNTS, 5.0)
    wake_ups.hold(5.0)
    wake_ups.add(Trigger.PROBE, 5.001)
    wake_ups.release()
    assert wake_ups.due_at == 5.0
    assert wake_ups.take() == [Trigger.MOUNTS, Trigger.PROBE]


def test_the_rest_of_an_answer_is_waited_for_once() -> None:
    wake_ups = WakeUps()
    wake_ups.add(Trigger.MOUNTS, 5.0)
    wake_ups.hold_on(5.0)
    assert wake_ups.is_due(5.0)
    wake_ups.hold(5.0)
    wake_ups.hold_on(5.0015)
    assert wake_ups.held_until == pytest.approx(5.0015 + ANSWER_SECONDS)
    wake_ups.hold_on(5.003)
    assert wake_ups.held_until == pytest.approx(5.0015 + ANSWER_SECONDS)
    wake_ups.release()
    wake_ups.hold_on(5.0031)
    assert wake_ups.is_due(5.0031)
    wake_ups.take()
    wake_ups.hold(6.0)
    wake_ups.hold_on(6.001)
    assert wake_ups.held_until == pytest.approx(6.001 + ANSWER_SECONDS)


def test_answers_are_waited_for_once_in_a_cycle() -> None:
    wake_ups = WakeUps()
    wake_ups.add(Trigger.MOUNTS, 5.0)
    assert wake_ups.may_hold
    wake_ups.hold(5.0)
    wake_ups.hold(5.0015)  # else a node that always asks would never have a cycle
    assert wake_ups.due_at == pytest.approx(5.0 + ANSWER_SECONDS)
    wake_ups.release()
    assert not wake_ups.may_hold
    wake_ups.take()
    assert wake_ups.may_hold


def test_to_release_without_a_wait_changes_nothing() -> None:
    wake_ups = WakeUps()
    wake_ups.release()
    assert wake_ups.may_hold
