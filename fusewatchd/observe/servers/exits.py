"""Noticing the ends of FUSE servers, with what can be known of how they ended.

A pidfd tells that a process has ended, counters of OOM kills are compared in that very moment,
and the exit status follows when the kernel tells it.  Nothing here waits, and no server is held:
neither a pidfd nor a descriptor of a cgroup's file keeps anything from going away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from signal import SIGKILL

from fusewatchd.model.mounts import Device
from fusewatchd.model.servers import FuseServer, OomKill, ServerEnd
from fusewatchd.observe.servers.oom_kills import KillCounters, find_hierarchies, machine_kills
from fusewatchd.observe.servers.pidfd import ServerWatch

REFRESH_SECONDS = 5.0
"""How often counters of kills begin anew, at most.

A kill is counted before the process has ended, so it is compared with the last value but one.
"""
STATUS_SECONDS = 10.0
"""How long the exit status is asked for: parents are quick to wait, or never do."""

_Process = tuple[int, int]


class ServerEnds:
    """Watches servers; not thread safe, and never blocks."""

    def __init__(
        self,
        register: Callable[[int], object] = lambda fd: None,
        unregister: Callable[[int], object] = lambda fd: None,
    ) -> None:
        """Watch nothing yet; the arguments are those of ``ServerWatch``.

        Raises:
            OSError: the mount table cannot be read.
        """
        self._watch = ServerWatch(register, unregister)
        with open("/proc/self/mountinfo", "rb", 0) as file:
            self._hierarchies = find_hierarchies(file.read())
        self._counters: dict[_Process, KillCounters] = {}
        self._machine: tuple[int | None, int | None] = (None, None)
        """Kills on the whole machine, at the last refresh but one and the last."""
        self._refreshed_at = float("-inf")
        self._ends: list[ServerEnd] = []
        self._without_status: list[ServerEnd] = []

    def update(self, servers: Mapping[Device, tuple[FuseServer, ...]], now: float) -> None:
        """Watch exactly these servers from now on, as ``ServerWatch.update`` does."""
        self._watch.update(servers)
        self._take(now)
        watched = {(s.pid, s.start_time): s for group in servers.values() for s in group}
        for process in self._counters.keys() - watched.keys():
            self._counters.pop(process).close()
        self._refresh(now)
        for process in watched.keys() - self._counters.keys():
            self._counters[process] = KillCounters(watched[process].memory, self._hierarchies)

    @property
    def shortage(self) -> str:
        """Why not every server is watched, as ``ServerWatch.shortage`` has it."""
        return self._watch.shortage

    def exited(self, now: float) -> list[ServerEnd]:
        """Return the ends since the last call; each process is given once."""
        self._take(now)
        ends, self._ends = self._ends, []
        return ends

    def completed(self, now: float) -> dict[ServerEnd, ServerEnd]:
        """Return ends given before of which more is known by now, by what was given."""
        found: dict[ServerEnd, ServerEnd] = {}
        for end in self._without_status:
            fuller = self._with_status(end)
            if fuller.status is not None:
                found[end] = fuller
        self._without_status = [
            end
            for end in self._without_status
            if end not in found and now - end.seen_at < STATUS_SECONDS
        ]
        return found

    def close(self) -> None:
        """Close every descriptor."""
        self._watch.close()
        for counters in self._counters.values():
            counters.close()
        self._counters.clear()

    def _refresh(self, now: float) -> None:
        if now - self._refreshed_at >= REFRESH_SECONDS:
            self._refreshed_at = now
            kills, latest = machine_kills(), self._machine[1]
            self._machine = (kills if latest is None else latest, kills)
            for counters in self._counters.values():
                counters.refresh()

    def _take(self, now: float) -> None:
        for server in self._watch.exited():
            counters = self._counters.pop((server.pid, server.start_time), None)
            oom, why = OomKill.UNKNOWN, "it was not watched while it lived"
            if counters is not None:
                oom, why = counters.compare(self._is_machine_quiet)
                counters.close()
            end = self._with_status(ServerEnd(now, server, oom, why))
            self._ends.append(end)
            if end.status is None:
                self._without_status.append(end)

    def _is_machine_quiet(self) -> bool:
        before, now = self._machine[0], machine_kills()
        return before is not None and before == now

    def _with_status(self, end: ServerEnd) -> ServerEnd:
        status = self._watch.exit_status(end.server) if end.server is not None else None
        if status is None:
            return end
        if end.oom is not OomKill.NO and status & 0x7F != SIGKILL:
            why = "it was not ended by SIGKILL"
            return replace(end, status=status, oom=OomKill.NO, why=why)
        return replace(end, status=status)
