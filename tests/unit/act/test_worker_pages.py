"""What the daemon and a mount worker know of each other without asking."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from fusewatchd.act.mount_worker import MountWorker
from fusewatchd.act.worker_pages import BYTES, COUNT, Pages
from fusewatchd.errors import WorkerShortageError
from fusewatchd.model.actions import Action, DetachOrphan, Expect, Outcome, OutcomeStatus
from fusewatchd.model.mounts import Device, TargetKey
from fusewatchd.workers.channel import Channel


def action(number: int) -> Action:
    return DetachOrphan(TargetKey(0, f"/{number}"), Expect(f"/{number}", Device(0, 5)))


class Process:
    """The worker's side, which does what a test says."""

    pid = 1

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.channel, self.inside = Channel(ours), Channel(theirs)

    def end(self) -> None:
        self.kill()

    def kill(self) -> None:
        self.channel.close()
        self.inside.close()


def report(number: int, **more: Any) -> dict[str, Any]:
    return {
        "number": number, "status": "detached", "reason": "none", "errno": 0, "detail": "",
        "mount": None, "found": None, "depth": 1, "layer": None, "stand_ins": [], "started_at": 0.0, "finished_at": 0.0, **more,
    }  # fmt: skip


@pytest.fixture
def process() -> Iterator[Process]:
    made = Process()
    yield made
    made.kill()


def points(things: list[Outcome] | list[Action]) -> list[str]:
    actions = [t.action if isinstance(t, Outcome) else t for t in things]
    return [a.key.mount_point for a in actions]


def test_what_is_withdrawn_is_not_begun() -> None:
    page = Pages()[0]
    assert page.begin(1)
    page.withdraw(3)
    assert not page.begin(2)
    assert page.begun == 1
    assert not page.begin(3)
    assert page.begin(4)
    assert page.begun == 4


def test_what_has_no_room_is_not_noted() -> None:
    page = Pages()[1]
    assert page.add(b"one")
    assert not page.add(b"x" * BYTES)
    assert page.add(b"two")
    assert page.noted() == [b"one", b"two"]
    page.told()
    assert page.noted() == []


def test_a_page_is_for_one_worker_and_used_again_last() -> None:
    pages = Pages()
    taken = [pages.take() for _ in range(COUNT)]
    assert sorted(taken) == list(range(COUNT))
    with pytest.raises(WorkerShortageError):
        pages.take()
    pages[7].begin(9)
    pages.give_back(7)
    assert pages.take() == 7
    assert pages[7].begun == 0


def test_no_page_is_lost_to_a_worker_that_cannot_be_started() -> None:
    pages = Pages()

    def fail() -> Any:
        raise WorkerShortageError("no memory")

    for _ in range(COUNT + 1):
        with pytest.raises(WorkerShortageError):
            MountWorker(fail, pages)
    pages.take()


def test_what_ended_is_known_although_nothing_was_sent(process: Process) -> None:
    pages = Pages()
    worker = MountWorker(lambda: process, pages)  # type: ignore[arg-type,return-value]
    worker.send(map(action, range(1, 5)), may_ask=False)
    page = pages[0]
    for number in (1, 2):
        page.begin(number)
        assert page.add(json.dumps(report(number)).encode())
    page.begin(3)
    worker.withdraw()
    outcomes, back = worker.take_back()
    assert points(outcomes) == ["/1", "/2"]
    assert {o.status for o in outcomes} == {OutcomeStatus.DETACHED}
    assert points(back) == ["/4"]
    assert points(list(worker.actions)) == ["/3"]
    # It goes on after all, and tells everything: what is known by then is told once.
    process.inside.send([report(1), report(2), report(3)])
    assert points(worker.receive()) == ["/3"]


def test_a_worker_that_comes_late_across_what_was_withdrawn(process: Process) -> None:
    worker = MountWorker(lambda: process, Pages())  # type: ignore[arg-type,return-value]
    worker.send(map(action, (1, 2, 3)), may_ask=False)
    worker.withdraw()
    assert points(worker.take_back()[1]) == ["/2", "/3"]
    process.inside.send([report(1)])
    assert points(worker.receive()) == ["/1"]
    worker.send(map(action, (4, 5)), may_ask=False)
    process.inside.send([{"number": 2, "left": True}])
    assert worker.receive() == []
    assert points(list(worker.actions)) == ["/4", "/5"]


def test_one_that_had_not_begun_and_says_so(process: Process) -> None:
    worker = MountWorker(lambda: process, Pages())  # type: ignore[arg-type,return-value]
    worker.send(map(action, (1, 2)), may_ask=False)
    worker.withdraw()
    process.inside.send([{"number": 1, "left": True}])
    assert worker.receive() == []
    assert not worker.actions
    assert points(worker.take_back()[1]) == ["/1", "/2"]
