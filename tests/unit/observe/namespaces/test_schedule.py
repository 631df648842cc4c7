"""When the mount namespaces of others are looked at."""

from __future__ import annotations

from fusewatchd.observe.namespaces.schedule import AFTER_RECOVERY_SECONDS, REST_FACTOR, ScanSchedule


def looked(at: float, took: float = 0.001) -> ScanSchedule:
    schedule = ScanSchedule()
    schedule.begin(at, 60.0)
    schedule.end(at, took)
    return schedule


def test_the_first_look_is_due_at_once_and_then_one_in_each_period() -> None:
    schedule = ScanSchedule()
    assert schedule.due_at == 0.0
    schedule.begin(5.0, 60.0)
    assert schedule.due_at == 65.0


def test_a_new_container_is_looked_for_soon_and_many_of_them_no_more_often() -> None:
    schedule = looked(5.0)
    schedule.expect_containers(10.0)
    schedule.expect_containers(10.1)
    assert schedule.due_at == 10.2
    schedule.begin(10.2, 60.0)
    assert schedule.due_at == 70.2


def test_looks_that_take_long_are_rare() -> None:
    schedule = looked(5.0, took=2.0)
    schedule.expect_containers(10.0)
    assert schedule.due_at == 5.0 + REST_FACTOR * 2.0


def test_a_recovery_is_followed_by_looks_that_grow_rare() -> None:
    schedule = looked(5.0)
    schedule.expect_late_births(10.0)
    for delay in AFTER_RECOVERY_SECONDS:
        assert schedule.due_at == 10.0 + delay
        schedule.begin(10.0 + delay, 60.0)
    assert schedule.due_at > 60.0


def test_one_that_is_wanted_now_is_due_now() -> None:
    schedule = looked(5.0)
    schedule.want_now()
    assert schedule.due_at <= 5.0
