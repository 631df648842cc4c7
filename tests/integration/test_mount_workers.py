"""The executor with real workers: what it knows of one that hangs, and that nothing is done twice."""

from __future__ import annotations

import os
import select
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusewatchd.act.executor import Executor
from fusewatchd.act.mount_worker import CHUNK, MountWorker, serve_actions
from fusewatchd.act.worker_pages import Pages
from fusewatchd.demo.timeouts import patient
from fusewatchd.model.actions import (
    Action,
    Expect,
    NamespaceRef,
    Outcome,
    OutcomeStatus,
    Propagation,
    ReplaceMount,
)
from fusewatchd.model.mounts import Device, TargetKey
from fusewatchd.model.verdicts import Reason
from fusewatchd.workers.channel import Channel
from fusewatchd.workers.fork_server import ForkServer, WorkerKind
from fusewatchd.workers.privileges import PRIVILEGES, Calls, Kind, Privileges

SECONDS = 30.0
_MOUNT = PRIVILEGES[Kind.MOUNT]
STOPS_ITSELF = Privileges(_MOUNT.keeps, _MOUNT.denies - {Calls.SIGNALS})


def carry_out(log: int, action: Action) -> Outcome:
    """Do what the target's name says: ``hang``, ``die``, ``sleep <ms>``, or nothing."""
    os.write(log, f"{action.key.mount_point}\n".encode())
    what, _, argument = action.key.mount_point.rpartition("/")[2].partition(" ")
    match what:
        case "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "sleep":
            time.sleep(int(argument) / 1000)
    return Outcome(action, OutcomeStatus.RECOVERED, detail=what)


class Crew:
    """An executor with its workers, and the log of what they were at."""

    def __init__(self, forks: ForkServer, pages: Pages, log: Path, parallel: int) -> None:
        self._log = log
        self.executor = Executor(lambda: MountWorker(lambda: forks.spawn("mount"), pages), parallel)

    def run(self, until: Callable[[list[Outcome]], bool]) -> list[Outcome]:
        """Do what the daemon's loop does."""
        outcomes: list[Outcome] = []
        end = time.monotonic() + patient(SECONDS)
        while not until(outcomes):
            now = time.monotonic()
            assert now < end, outcomes
            due = self.executor.next_deadline()
            wait = max(0.0, min(end, due if due is not None else end) - now)
            select.select(self.executor.workers, [], [], wait)
            outcomes += self.executor.collect(time.monotonic())
        return outcomes

    def begun(self) -> Counter[str]:
        """Return what was begun, and how often."""
        return Counter(self._log.read_text().splitlines())


@contextmanager
def crew_of(directory: Path, parallel: int = 1) -> Iterator[Crew]:
    log, pages = directory / "log", Pages()
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def serve(channel: Channel) -> None:
        # The fork server closes what is open: the workers open it themselves.
        fd = os.open(log, os.O_WRONLY | os.O_APPEND)
        serve_actions(channel, pages, lambda action, _: carry_out(fd, action))

    os.close(fd)
    forks = ForkServer.start({"mount": WorkerKind(serve, STOPS_ITSELF)})
    try:
        crew = Crew(forks, pages, log, parallel)
        yield crew
        crew.executor.close()
    finally:
        forks.close()


def in_namespace(number: int, name: str) -> ReplaceMount:
    point = f"/{number}/{name}"
    return ReplaceMount(
        TargetKey(number, point), Expect(point, Device(0, 5)),
        Expect(f"/host/{number}", Device(0, 9)), Propagation.PRIVATE, namespace=NamespaceRef(number, 1, 1),
    )  # fmt: skip


def names(outcomes: list[Outcome], status: OutcomeStatus) -> set[str]:
    return {o.action.key.mount_point for o in outcomes if o.status is status}


@pytest.mark.parametrize("place", [0, 1, CHUNK - 1, CHUNK, 60])
def test_only_what_hangs_fails_and_everything_else_is_told_before(
    tmp_path: Path, place: int
) -> None:
    actions = [in_namespace(n, "hang" if n == place else "well") for n in range(61)]
    with crew_of(tmp_path) as crew:
        crew.executor.submit(actions, time.monotonic())
        outcomes = crew.run(lambda done: len(done) == len(actions))
    assert outcomes[-1].action == actions[place]
    assert outcomes[-1].reason is Reason.TIMED_OUT
    assert names(outcomes, OutcomeStatus.FAILED) == {f"/{place}/hang"}
    assert set(crew.begun().values()) == {1}


def test_several_that_hang(tmp_path: Path) -> None:
    actions = [in_namespace(n, "hang" if n in (3, 4, 20) else "well") for n in range(40)]
    with crew_of(tmp_path, 2) as crew:
        crew.executor.submit(actions, time.monotonic())
        outcomes = crew.run(lambda done: len(done) == len(actions))
    assert names(outcomes[-3:], OutcomeStatus.FAILED) == {"/3/hang", "/4/hang", "/20/hang"}
    assert names(outcomes[:-3], OutcomeStatus.RECOVERED) == {f"/{n}/well" for n in range(40)} - {
        "/3/well", "/4/well", "/20/well",
    }  # fmt: skip


def test_one_that_ends_loses_only_what_it_was_at(tmp_path: Path) -> None:
    actions = [in_namespace(n, "die" if n == 30 else "well") for n in range(40)]
    with crew_of(tmp_path) as crew:
        crew.executor.submit(actions, time.monotonic())
        outcomes = crew.run(lambda done: len(done) == len(actions))
    assert names(outcomes, OutcomeStatus.FAILED) == {"/30/die"}
    assert set(crew.begun().values()) == {1}


def test_what_is_slow_now_and_then_is_done_once_and_told_once(tmp_path: Path) -> None:
    """What is taken back from a worker must never be begun by it as well."""
    slow = [f"sleep {5 * (n % 30)}" if n % 7 == 0 else "well" for n in range(400)]
    actions = [in_namespace(n, name) for n, name in enumerate(slow)]
    with crew_of(tmp_path, 2) as crew:
        crew.executor.submit(actions, time.monotonic())
        outcomes = crew.run(lambda done: len(done) >= len(actions))
    assert {o.status for o in outcomes} == {OutcomeStatus.RECOVERED}
    assert Counter(o.action.key.mount_point for o in outcomes) == Counter(
        action.key.mount_point for action in actions
    )
    assert crew.begun() == Counter(action.key.mount_point for action in actions)


def test_one_that_was_given_up_and_ended_is_buried(tmp_path: Path) -> None:
    with crew_of(tmp_path) as crew:
        crew.executor.submit([in_namespace(1, "hang")], time.monotonic())
        crew.run(lambda done: len(done) == 1)
        crew.run(lambda _: not crew.executor.stuck)
