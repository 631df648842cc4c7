"""When the mount namespaces of others are looked at."""

from __future__ import annotations

from fusewatchd.observe.namespaces.schedule import AFTER_RECOVERY_SECONDS, REST_FACTOR, Looks


def looked(at: float, took: float = 0.001) -> Looks:
    looks = Looks()
    looks.begin(at, 60.0)
    looks.end(at, took)
    return looks


def test_the_first_look_is_due_at_once_and_then_one_in_each_period() -> None:
    looks = Looks()
    assert looks.due_at == 0.0
    looks.begin(5.0, 60.0)
    assert looks.due_at == 65.0


def test_a_new_container_is_looked_for_soon_and_many_of_them_no_more_often() -> None:
    looks = looked(5.0)
    looks.expect_containers(10.0)
    looks.expect_containers(10.1)
    assert looks.due_at == 10.2
    looks.begin(10.2, 60.0)
    assert looks.due_at == 70.2


def test_looks_that_take_long_are_rare() -> None:
    looks = looked(5.0, took=2.0)
    looks.expect_containers(10.0)
    assert looks.due_at == 5.0 + REST_FACTOR * 2.0


def test_a_recovery_is_followed_by_looks_that_grow_rare() -> None:
    looks = looked(5.0)
    looks.expect_late_births(10.0)
    for delay in AFTER_RECOVERY_SECONDS:
        assert looks.due_at == 10.0 + delay
        looks.begin(10.0 + delay, 60.0)
    assert looks.due_at > 60.0


def test_one_that_is_wanted_now_is_due_now() -> None:
    looks = looked(5.0)
    looks.want_now()
    assert looks.due_at <= 5.0
