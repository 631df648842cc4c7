"""The worker that takes descriptors of servers and talks with the keeper.

It alone may call pidfd_getfd(2).  Between two jobs it keeps its connection and what it has said.
A keeper that does not answer holds up this worker, and not the daemon.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from fusewatchd.act.keeper_steps import (
    Failure,
    KeeperJob,
    KeeperReport,
    Steps,
    pod_cgroups,
    server_cgroups,
    steps,
)
from fusewatchd.act.take_descriptor import RingError, Taken, taken
from fusewatchd.errors import ParseError
from fusewatchd.json_values import decode, encode
from fusewatchd.keeper import protocol
from fusewatchd.keeper.client import Client
from fusewatchd.linux.procfs import PROC, open_process, open_same_process
from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model.held import Caller, Hold
from fusewatchd.workers.channel import Channel

ASK_SECONDS = 1.0
"""For one answer of the keeper."""
_PAGES = 64
"""Of connections, at most."""


def serve_keeper_jobs(channel: Channel) -> None:
    """Main function of the worker."""
    talk = Talk()

    def take(message: Any) -> None:
        channel.send(encode(talk.run(decode(KeeperJob, message))))

    channel.serve(take)


class Talk:
    """One connection to the keeper, and what was said through it."""

    def __init__(self) -> None:
        """Connect with the first job."""
        self._client: Client | None = None
        self._told: dict[int, tuple[object, ...]] = {}
        """Of each hold: who may wait."""
        self._servers: dict[int, tuple[str, ...]] = {}
        """Of each hold that was taken here: the cgroups of its server."""
        self._cgroups: dict[tuple[int, int], str] = {}
        """``/proc/<pid>/cgroup`` of callers, by pid and start time."""

    def run(self, job: KeeperJob) -> KeeperReport:
        """Do one job; never raises for what a keeper or a server may do."""
        try:
            if self._client is None:
                self._client = Client(job.socket, ASK_SECONDS)
            return self._run(self._client, job)
        except (OSError, ParseError) as exc:
            self._hang_up()
            return KeeperReport(problem=_text(exc))

    def _run(self, client: Client, job: KeeperJob) -> KeeperReport:
        answered = []
        for hold in job.replaced:
            answer = client.ask(protocol.Replaced(hold))
            is_gone = isinstance(answer, protocol.Refused) and (
                answer.why is protocol.Refusal.NOT_HELD
            )
            if isinstance(answer, protocol.Answered) or is_gone:
                answered.append(hold)
        listed = _listed(client, job.ended_after)
        todo = steps(listed.connections, job)
        if todo.releases or todo.takes or todo.updates:
            failures = self._do(client, todo, job)
            if todo.releases or todo.takes:
                listed = _listed(client, job.ended_after)
        else:
            failures = []
        self._forget(listed, job.holds)
        store_pid = _parent_of(listed.pid) if listed.survives else 0
        return KeeperReport("", tuple(failures), tuple(answered), listed, store_pid)

    def _do(self, client: Client, todo: Steps, job: KeeperJob) -> list[Failure]:
        for number in todo.releases:
            client.ask(protocol.Release(number))
        for number, hold in todo.updates:
            self._update(client, number, hold)
        failures = []
        for hold in todo.takes:
            try:
                failure = self._take(client, hold, job.grace_seconds)
            except RingError as exc:
                failure = Failure(hold.device, str(exc.strerror), has_ring=True)
            except ProcessLookupError:
                failure = None  # it has ended: the next look finds that
            except FileNotFoundError as exc:
                failure = Failure(hold.device, str(exc.strerror))
            except PermissionError as exc:
                failure = Failure(hold.device, f"its descriptor is not given away: {exc.strerror}")
            failures += [failure] if failure is not None else []
        return failures

    def _take(self, client: Client, hold: Hold, grace_seconds: float) -> Failure | None:
        server = hold.server
        assert server is not None
        with taken(hold.device, server.pid, server.start_time) as found:
            pods, deleting = self._callers(hold.callers)
            if not pods:
                return Failure(hold.device, "no cgroup tells its pods from others")
            servers = server_cgroups(found.cgroup, self._texts(hold.callers))
            order = _order(hold, found, grace_seconds, (pods, deleting, servers))
            answer = client.ask(order, (found.descriptor, found.pidfd))
        if isinstance(answer, protocol.Held):
            self._told[answer.hold] = (pods, deleting, servers)
            self._servers[answer.hold] = servers
            return None
        why = answer.why.value if isinstance(answer, protocol.Refused) else "no answer to that"
        text = answer.text if isinstance(answer, protocol.Refused) else ""
        return Failure(hold.device, f"the keeper refuses it: {why}{': ' if text else ''}{text}")

    def _update(self, client: Client, number: int, hold: Hold) -> None:
        """Tell who may wait now, if that is not what was said before."""
        pods, deleting = self._callers(hold.callers)
        if not pods:
            return
        servers = self._servers.get(number)
        if servers is None and hold.server is not None:
            servers = self._servers_of(hold)
        if hold.server is None and number not in self._told and not deleting:
            return  # of those that wait there some may be replaced: the list may not be whole
        told = (pods, deleting, servers or ())
        if self._told.get(number) == told:
            return
        if isinstance(client.ask(protocol.Update(number, *told)), protocol.Done):
            self._told[number] = told
            self._servers[number] = told[2]

    def _servers_of(self, hold: Hold) -> tuple[str, ...] | None:
        assert hold.server is not None
        text = _cgroup(hold.server.pid, hold.server.start_time)
        return server_cgroups(text, self._texts(hold.callers)) if text else None

    def _texts(self, callers: Iterable[Caller]) -> list[str]:
        found = (self._cgroups.get((caller.pid, caller.start_time)) for caller in callers)
        return [text for text in found if text]

    def _callers(self, callers: Iterable[Caller]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        pods: set[str] = set()
        deleting: set[str] = set()
        for caller in callers:
            place = (caller.pid, caller.start_time)
            if place not in self._cgroups:
                self._cgroups[place] = _cgroup(*place)
            known = pod_cgroups(self._cgroups[place])
            pods |= known
            deleting |= known if caller.is_deleting else frozenset()
        return tuple(sorted(pods)), tuple(sorted(deleting))

    def _forget(self, listed: protocol.Connections, holds: Iterable[Hold]) -> None:
        numbers = {one.hold for one in listed.connections}
        self._told = {hold: told for hold, told in self._told.items() if hold in numbers}
        self._servers = {hold: own for hold, own in self._servers.items() if hold in numbers}
        wanted = {(c.pid, c.start_time) for hold in holds for c in hold.callers}
        self._cgroups = {place: kept for place, kept in self._cgroups.items() if place in wanted}

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None
        self._told.clear()


def _order(
    hold: Hold,
    found: Taken,
    grace_seconds: float,
    lists: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]],
) -> protocol.Hold:
    driver = hold.driver[: protocol.MAX_TEXT]
    return protocol.Hold(hold.device.connection, driver, grace_seconds, found.is_of_host, *lists)


def _listed(client: Client, ended_after: int) -> protocol.Connections:
    """Ask for everything that is held, page by page."""
    page = _page(client, protocol.List(0, ended_after))
    connections = [*page.connections]
    for _ in range(_PAGES):
        if len(page.connections) < protocol.PAGE:
            break
        page = _page(client, protocol.List(connections[-1].hold, ended_after))
        connections += page.connections
    return replace(page, connections=tuple(connections))


def _page(client: Client, request: protocol.List) -> protocol.Connections:
    answer = client.ask(request)
    if not isinstance(answer, protocol.Connections):
        raise ParseError("no answer to the question what is held")
    return answer


def _cgroup(pid: int, start_time: int) -> str:
    """Return ``/proc/<pid>/cgroup``; empty when the process has ended."""
    with (
        suppress(OSError),
        closing_fd(os.open(PROC, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as proc,
        open_same_process(pid, start_time, proc) as process,
    ):
        return process.cgroup()
    return ""


def _parent_of(pid: int) -> int:
    """Return the parent of a process; 0 when it has ended."""
    with suppress(OSError), open_process(pid) as process:
        for line in process.read("status").splitlines():
            if line.startswith(b"PPid:"):
                return int(line.split()[1])
    return 0


def _text(exc: OSError | ParseError) -> str:
    if isinstance(exc, TimeoutError):
        return "it does not answer"
    if isinstance(exc, OSError):
        return f"{exc.strerror or exc}" + (f": {exc.filename}" if exc.filename else "")
    return f"it says what this version does not understand: {exc}"
