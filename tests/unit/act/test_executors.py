"""Who mounts and who aborts are apart, and are one to the daemon."""

from __future__ import annotations

from typing import Any, cast

from fusewatchd.act.executor import Executor
from fusewatchd.act.executors import Executors
from fusewatchd.model.actions import AbortConnection, Outcome
from tests.unit.act.test_executor import Crew, action

NOW = 10.0
MOUNT = action(1)
ABORT = AbortConnection(action(2).key, action(2).expect, 3)


def both() -> tuple[Executors, Crew, Crew]:
    mounting, aborting = Crew(), Crew()
    executors = Executors(
        Executor(cast(Any, mounting), 2), Executor(cast(Any, aborting), is_eager=False)
    )
    return executors, mounting, aborting


def test_nobody_who_aborts_is_there_before_it_is_needed() -> None:
    executors, mounting, aborting = both()
    assert (len(mounting.workers), len(aborting.workers)) == (2, 0)
    executors.submit([MOUNT], NOW)
    assert not aborting.workers
    executors.submit([ABORT], NOW)
    assert len(aborting.workers) == 1


def test_each_gets_its_own_and_the_daemon_sees_both() -> None:
    executors, mounting, aborting = both()
    executors.submit([ABORT, MOUNT], NOW)
    (aborter,), mounter = aborting.workers, max(mounting.workers, key=lambda w: len(w.given))
    assert (mounter.given, aborter.given) == ([MOUNT], [ABORT])
    assert executors.in_flight() == {MOUNT.key, ABORT.key}
    assert set(executors.workers) == {*mounting.workers, aborter}
    assert executors.next_deadline() is not None

    mounter.done = 1
    assert [outcome.action for outcome in executors.collect(NOW)] == [MOUNT]
    assert not executors.is_idle
    aborter.done = 1
    executors.dispatch_next(NOW)
    assert executors.has_outcomes
    ended: list[Outcome] = executors.collect(NOW)
    assert [outcome.action for outcome in ended] == [ABORT]
    assert executors.is_idle
    assert executors.next_deadline() is None
    executors.close()
    assert all(worker.was_killed for worker in (*mounting.workers, aborter))


def test_one_that_cannot_be_had_is_a_gap() -> None:
    executors, _, aborting = both()
    aborting.is_short = True
    executors.submit([ABORT], NOW)
    assert [gap.source for gap in executors.gaps] == ["workers"]
