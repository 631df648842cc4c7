"""The daemon's side of the keeper: what it is to hold, and when it may answer.

All talk is done by a worker; nothing here waits, but for once at the start.  After a restart of
either, the next talk makes both know the same.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from fusewatchd.act.keeper_steps import KeeperJob, KeeperReport
from fusewatchd.errors import WorkerError
from fusewatchd.json_values import decode, encode
from fusewatchd.keeper import protocol
from fusewatchd.model.cycle import CycleReport, Trigger
from fusewatchd.model.held import (
    EndedHold,
    HeldConnection,
    HoldEnd,
    HoldRefusal,
    KeeperView,
    NotHeld,
)
from fusewatchd.model.mounts import Device
from fusewatchd.plan import sending_on
from fusewatchd.plan.hold import HoldPlan, HoldPolicy, choose_holds
from fusewatchd.workers.fork_server import Worker
from fusewatchd.workers.single_worker import SoleWorker

TALK_SECONDS = 5.0
"""A worker that has not come back by then is replaced."""
FIRST_SECONDS = 1.5
"""So long the first cycle waits for it: until then a probe could wait in a held connection."""
OUTAGE_SECONDS = 0.1
"""Between two talks while the server of a held connection is away."""
QUIET_SECONDS = 10.0
"""Between two talks at other times: a keeper that was restarted is noticed by then."""


class Keeper:
    """Owns the worker that talks with the keeper; not thread safe."""

    def __init__(
        self, spawn: Callable[[], Worker], socket: str, marker: str, policy: HoldPolicy
    ) -> None:
        """Start nothing yet.

        Args:
            spawn: starts a worker with ``serve_keeper_jobs``.
            socket: of the keeper.
            marker: a file that is there while the keeper may hold something.  By that a daemon
                that is to hold nothing knows whether there is something to let go of.
            policy: may be replaced between two cycles.
        """
        self._marker = marker
        self._is_marked = os.path.exists(marker)
        self.policy = policy
        self.view = KeeperView(is_on=bool(policy.drivers))
        self._worker = SoleWorker(spawn, TALK_SECONDS, is_eager=False)
        self._socket = socket
        self._plan = HoldPlan()
        self._sending = sending_on.SendingOn()
        self._replaced: tuple[int, ...] = ()
        """Holds that are still to be answered."""
        self._failures: Mapping[Device, HoldRefusal] = {}
        self._ended_after = 0
        self._is_due = True
        self._talked_at = float("-inf")
        self._survives, self._pid, self._store_pid = True, 0, 0
        self._exited: set[int] = set()
        """Holds whose server was seen to end: the keeper may see it a moment later."""

    def fileno(self) -> int:
        """Return what becomes readable when a talk has ended."""
        return self._worker.fileno()

    @property
    def is_on(self) -> bool:
        """True while there is something to hold, or something may be held."""
        return bool(self.policy.drivers or self.view.held or self._is_marked)

    @property
    def due_at(self) -> float | None:
        """When to take a ``turn`` although nothing wakes; None: not at all."""
        if self._worker.started_at is not None:
            return self._worker.next_deadline()
        if not self.is_on:
            return None
        rest = OUTAGE_SECONDS if self.view.dead() else QUIET_SECONDS
        return self._talked_at if self._is_due else self._talked_at + rest

    @property
    def wants_look(self) -> bool:
        """True while only another look can tell whether a connection is still served."""
        return bool(self._plan.unserved)

    @property
    def cycle_due_at(self) -> float | None:
        """When a cycle is needed: callers may be sent on then, if nothing has changed."""
        return sending_on.due_at(self._sending)

    def begin(self) -> None:
        """Learn what is held before anything is asked; a silent keeper is waited for once."""
        if not self.is_on:
            return
        self.turn(time.monotonic())
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        end = time.monotonic() + FIRST_SECONDS
        while self._worker.started_at is not None and time.monotonic() < end:
            poll.poll(max(0.0, end - time.monotonic()) * 1000)
            self._collect(time.monotonic())
        # The cycle to come says what is to be held.
        self._is_due = False

    def note_exit(self, device: Device) -> bool:
        """Take in that the server of a connection has ended; True when that is held."""
        known = self.view.held.get(device)
        if known is None:
            return False
        self._exited.add(known.hold)
        held = {**self.view.held, device: replace(known, is_dead=True)}
        self._show(self.view.problem, held)
        self._is_due = True
        return True

    def take_cycle(self, cycle: CycleReport) -> None:
        """Decide what is to be held, and which of the held are replaced everywhere."""
        if not self.is_on:
            self.view = KeeperView()
            return
        held = self.view.held
        policy = replace(self.policy, mode=cycle.mode)
        plan = choose_holds(
            cycle.findings, cycle.snapshot, cycle.ledger.owners, policy, held, self._plan
        )
        has_news = plan.holds != self._plan.holds or plan.releases != self._plan.releases
        self._plan = plan
        self._sending, devices = sending_on.may_send_on(self._sending, cycle, held)
        replaced = tuple(held[device].hold for device in devices if device in held)
        self._replaced = tuple(dict.fromkeys((*self._replaced, *replaced)))
        self._is_due = self._is_due or has_news or bool(replaced) or bool(self.view.dead())
        self._show(self.view.problem)

    def turn(self, now: float) -> Trigger | None:
        """Take in how a talk ended, and begin the next one when it is time to."""
        before = self.view
        self._collect(now)
        due_at = self.due_at
        if self._worker.started_at is None and due_at is not None and now >= due_at:
            self._begin(now)
        is_news = (before.held.keys(), before.dead(), before.problem) != (
            self.view.held.keys(),
            self.view.dead(),
            self.view.problem,
        )
        return Trigger.KEEPER if is_news or self.view.ended != before.ended else None

    def close(self) -> None:
        """End the worker; what is held stays held."""
        self._worker.close()

    def _begin(self, now: float) -> None:
        self._is_due, self._talked_at = False, now
        job = KeeperJob(
            self._socket,
            self.policy.grace_seconds,
            self._plan.holds,
            self._plan.releases,
            self._replaced,
            self._ended_after,
        )
        if self._worker.start(encode(job), now):
            self._show(self.view.problem)
        else:
            self._show("there is nothing to make a worker of")

    def _collect(self, now: float) -> None:
        if self._worker.started_at is None:
            # That it ended between two talks is no news; the next one starts another.
            return
        try:
            answer = self._worker.collect(now)
        except (TimeoutError, WorkerError) as exc:
            self._show(str(exc))
            return
        if answer is not None:
            self._take(decode(KeeperReport, answer))

    def _take(self, report: KeeperReport) -> None:
        self._replaced = tuple(hold for hold in self._replaced if hold not in report.answered)
        self._failures = {
            failure.device: HoldRefusal(
                failure.device,
                self._driver_of(failure.device),
                NotHeld.IO_URING if failure.has_ring else NotHeld.FAILED,
                failure.text,
            )
            for failure in report.failures
        }
        listed = report.listed
        if listed is None:
            if not self.policy.drivers:
                self._mark(False)  # what does not run holds nothing
            self._show(report.problem)
            return
        ended = tuple(_ended(one) for one in listed.ended if one.number > self._ended_after)
        if ended:
            self._ended_after = ended[-1].number
        self._exited &= {one.hold for one in listed.connections}
        held = {one.device: one for one in map(self._held, listed.connections)}
        self._mark(bool(held or self.policy.drivers))
        self._survives, self._pid, self._store_pid = listed.survives, listed.pid, report.store_pid
        self._show(report.problem, held, (*self.view.ended, *ended)[-protocol.MAX_ENDED :])

    def _mark(self, is_used: bool, /) -> None:
        if is_used == self._is_marked:
            return
        # Without it a later run only finds what is held when it is to hold something.
        with suppress(OSError):
            if is_used:
                os.close(os.open(self._marker, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            else:
                os.unlink(self._marker)
        # The directory may only be made a moment later: then the next talk tries again.
        self._is_marked = os.path.exists(self._marker)

    def _show(
        self,
        problem: str,
        held: Mapping[Device, HeldConnection] | None = None,
        ended: tuple[EndedHold, ...] | None = None,
    ) -> None:
        held = self.view.held if held is None else held
        refused = {one.device: one for one in self._plan.refused}
        for hold in self._plan.holds:
            if hold.device in held:
                continue
            if hold.device in self._failures:
                refused[hold.device] = self._failures[hold.device]
            elif problem:
                refused[hold.device] = HoldRefusal(
                    hold.device, hold.driver, NotHeld.NO_KEEPER, problem
                )
        self.view = KeeperView(
            is_on=self.is_on,
            problem=problem,
            survives=self._survives,
            own_pids=frozenset({self._pid, self._worker.pid} - {0}),
            store_pid=self._store_pid,
            held=held,
            refused=tuple(refused[device] for device in sorted(refused)),
            ended=self.view.ended if ended is None else ended,
        )

    def _held(self, one: protocol.Connection) -> HeldConnection:
        is_dead = one.state is not protocol.State.HEALTHY or one.hold in self._exited
        return HeldConnection(
            Device.of_connection(one.connection),
            one.driver,
            one.hold,
            is_dead=is_dead,
            is_answered=one.state in (protocol.State.ANSWERING, protocol.State.ENDING),
            since_seconds=one.since_seconds,
            waiting=one.waiting,
            oldest_seconds=one.oldest_seconds,
        )

    def _driver_of(self, device: Device) -> str:
        return next((hold.driver for hold in self._plan.holds if hold.device == device), "")


def _ended(one: protocol.Ended) -> EndedHold:
    counts = one.counts
    return EndedHold(
        one.number,
        Device.of_connection(one.connection),
        one.driver,
        HoldEnd(one.how.value),
        waited=counts.waited,
        sent_on=counts.stale,
        refused_to_host=counts.host,
        given_up=counts.given_up,
        longest_seconds=counts.longest_seconds,
    )
