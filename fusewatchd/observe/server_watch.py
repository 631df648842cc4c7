"""The servers as the daemon follows them: processes that end, sockets that hang up.

What is noticed makes connections be asked, and is written down as evidence; neither is a proof.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from fusewatchd.config.settings import SocketSettings
from fusewatchd.model.cycle import CycleReport, Trigger
from fusewatchd.model.degraded import Degraded
from fusewatchd.model.findings import Finding
from fusewatchd.model.mounts import Device
from fusewatchd.model.servers import FuseServer
from fusewatchd.observe.observer import Observer
from fusewatchd.observe.servers.exits import ServerEnds
from fusewatchd.observe.servers.socket_owners import devices_behind
from fusewatchd.observe.servers.sockets import SocketWatch

NO_DEVICE = Device(0, 0)
"""Stands for the connections of servers of which the kernel does not tell them."""

Register = Callable[[int, Callable[[], Trigger | None]], None]


class Servers:
    """Owns the pidfds and the connections to sockets."""

    def __init__(
        self,
        sockets: Sequence[SocketSettings],
        observer: Observer,
        register: Register,
        unregister: Callable[[int], None],
        ends_held: Callable[[Device], bool],
    ) -> None:
        """Watch nothing yet.

        ``ends_held`` gets each connection that lost its server.  It returns True for one that is
        held, and must not be asked.
        """
        self._ends_held = ends_held
        self._entries = tuple(sockets)
        self._observer = observer
        self._findings: Sequence[Finding] = ()
        self._ends = ServerEnds(lambda fd: register(fd, self._on_exit), unregister)
        self._sockets = SocketWatch(
            [entry.glob for entry in sockets],
            lambda fd: register(fd, self.look_at_sockets),
            unregister,
        )

    @property
    def due_at(self) -> float | None:
        """When to ``look_at_sockets`` although nothing wakes."""
        return self._sockets.due_at

    def update(
        self,
        servers: Mapping[Device, tuple[FuseServer, ...]],
        anonymous: tuple[FuseServer, ...],
        now: float,
    ) -> None:
        """Watch exactly these servers from now on."""
        self._ends.update({**servers, NO_DEVICE: anonymous}, now)
        self._observer.degraded.note(Degraded.PIDFD, self._ends.shortage)
        self._note_exits(now)

    def take_cycle(self, cycle: CycleReport) -> None:
        """Note which binds there are: a socket is known by the volumes of its server."""
        self._findings = cycle.findings

    def complete(self, now: float) -> None:
        """Take in what became known of servers that have ended."""
        fuller = self._ends.completed(now)
        if fuller:
            self._observer.ends.complete(fuller)

    def look_at_sockets(self) -> Trigger | None:
        """Connect to new sockets, and take in which ones hung up."""
        now = time.monotonic()
        hung_up = self._sockets.drain(now).hung_up
        self._observer.degraded.note(Degraded.SOCKET_INOTIFY, self._sockets.shortage)
        self._observer.degraded.note(Degraded.SOCKETS, self._sockets.barred)
        for path in hung_up:
            self._note_hang_up(path, now)
        return Trigger.SOCKET if hung_up else None

    def _on_exit(self) -> Trigger:
        self._note_exits(time.monotonic())
        return Trigger.SERVER_EXIT

    def _note_exits(self, now: float) -> None:
        connections = self._observer.connections
        for end in self._ends.exited(now):
            devices = end.server.devices if end.server is not None else ()
            self._observer.ends.take(end, devices)
            if not devices:
                connections.some_server_gone(now)
            for device in devices:
                if not self._ends_held(device):
                    connections.server_gone(device, now)

    def _note_hang_up(self, path: str, now: float) -> None:
        connections, mounts = self._observer.connections, self._observer.fuse_mounts
        behind = devices_behind(path, self._entries, mounts, self._findings)
        if behind is None:
            connections.ask_all_again()
            return
        connections.some_server_gone(now, behind)
        self._observer.ends.take_hang_up(path, behind, now)
