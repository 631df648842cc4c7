"""The daemon's side of the walks through /proc; the worker's is ``walk``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fusewatchd.json_values import decode
from fusewatchd.model.findings import Gap
from fusewatchd.model.held import KeeperView
from fusewatchd.model.mounts import Device, MountNamespace
from fusewatchd.model.quota import RefusedOwner
from fusewatchd.model.servers import FuseServer
from fusewatchd.observe.namespaces.proven import ProvenContainers
from fusewatchd.observe.namespaces.walk import Walker
from fusewatchd.workers.channel import Channel
from fusewatchd.workers.fork_server import Worker
from fusewatchd.workers.single_worker import SoleWorker

DEADLINE_SECONDS = 10.0


def serve_scans(
    channel: Channel, proven: ProvenContainers, *, reads_connections: bool = True
) -> None:
    """Main function of a scan worker; what it proves is noted in ``proven``.

    Without ``reads_connections`` it is as before Linux 6.16, where fdinfo does not tell which
    connection a server serves.
    """
    walker = Walker(reads_connections=reads_connections)

    def tell(message: Any) -> None:
        proven.note(message.get("namespaces", ()))
        channel.send(message)

    channel.serve(lambda _: walker.walk(tell))


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What one walk saw."""

    namespaces: tuple[MountNamespace, ...]
    servers: dict[Device, tuple[FuseServer, ...]]
    anonymous: tuple[FuseServer, ...]
    """Servers of which the kernel does not tell the connection (before about 6.16)."""
    started_at: float
    elapsed: float
    gaps: tuple[Gap, ...] = ()
    has_everybody: bool = True
    """Every process and every table could be read.

    Whoever has a quota is nobody who could serve what root mounted.
    """
    kept: frozenset[int] = frozenset()
    """Inodes of namespaces for which there was no time: they are as they were seen before."""
    refused_owners: tuple[RefusedOwner, ...] = ()
    """Of whom not everything was looked at."""

    def without_keeper(self, view: KeeperView) -> ScanResult:
        """Return it without those that have descriptors of held connections and serve none."""
        if not view.own_pids:
            return self
        servers: dict[Device, tuple[FuseServer, ...]] = {}
        for device, found in self.servers.items():
            pids = {*view.own_pids, *((view.store_pid,) if device in view.held else ())}
            left = tuple(server for server in found if server.pid not in pids)
            if left:
                servers[device] = left
        anonymous = tuple(s for s in self.anonymous if s.pid not in view.own_pids)
        return replace(self, servers=servers, anonymous=anonymous)


class UnfinishedWalkError(TimeoutError):
    """A walk did not end; carries the namespaces that were never seen before it."""

    def __init__(self, new: tuple[MountNamespace, ...], started_at: float) -> None:
        """Those that were known before are as they were: nobody tells when the rest was seen."""
        super().__init__("the walk through /proc did not end")
        self.new = new
        self.started_at = started_at


class NamespaceScanner:
    """The daemon's side: at most one walk at a time, and one more asked for."""

    def __init__(self, spawn: Callable[[], Worker]) -> None:
        """Take the means to start a worker; the first one is started at once."""
        self._known: dict[int, MountNamespace] = {}
        self._seen: dict[int, MountNamespace] = {}
        """In the present walk."""
        self._kept: set[int] = set()
        self._is_wanted = False
        # A new worker has told nothing yet: nothing it says refers to what is known.
        self._worker = SoleWorker(
            spawn, DEADLINE_SECONDS, lambda: self._known.clear(), on_part=self._take_part
        )

    def fileno(self) -> int:
        """Return what becomes readable when a walk has ended; it outlives the worker."""
        return self._worker.fileno()

    @property
    def is_running(self) -> bool:
        """True while a walk is under way."""
        return self._worker.started_at is not None

    def request(self, now: float) -> None:
        """Ask for a walk that begins now or right after the present one."""
        if self.is_running:
            self._is_wanted = True
            return
        self._is_wanted = False
        self._worker.start("walk", now)

    def postpone(self, seconds: float) -> None:
        """Give a look that is under way so much more time."""
        self._worker.postpone(seconds)

    def next_deadline(self) -> float | None:
        """Return when ``collect`` must be called although nothing arrived."""
        return self._worker.next_deadline()

    def collect(self, now: float) -> ScanResult | None:
        """Return a finished walk.

        Raises:
            TimeoutError: the walk did not end; its worker is replaced, now or with the next one.
            WorkerError: it cannot be replaced.
        """
        started, known = self._worker.started_at, dict(self._known)
        try:
            message = self._worker.collect(now)
        except TimeoutError:
            new = {i: seen for i, seen in self._seen.items() if i not in known}
            self._forget_walk()
            if self._is_wanted:
                self.request(now)
            raise UnfinishedWalkError(tuple(new.values()), started or now) from None
        if message is None or started is None:
            return None
        result = self._result(message, started, now)
        self._forget_walk()
        if self._is_wanted:
            self.request(now)
        return result

    def _take_part(self, message: Any) -> bool:
        """Take what is told of some namespaces; False: it is the end of the walk."""
        for item in message.get("namespaces", ()):
            namespace = decode(MountNamespace, item)
            self._seen[namespace.inode] = namespace
        if "end" not in message:
            return True
        self._kept = set(message["kept"])
        self._seen |= {inode: self._known[inode] for inode in message["unchanged"]}
        self._seen |= {inode: self._known[inode] for inode in self._kept}
        return False

    def _forget_walk(self) -> None:
        self._seen, self._kept = {}, set()

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    def _result(self, message: dict[str, Any], started: float, now: float) -> ScanResult:
        self._known = self._seen
        by_device: dict[Device, tuple[FuseServer, ...]] = {}
        anonymous: list[FuseServer] = []
        for item in message["servers"]:
            server = decode(FuseServer, item)
            if not server.devices:
                anonymous.append(server)
            for device in server.devices:
                by_device[device] = (*by_device.get(device, ()), server)
        refused, malformed, unseen = (message[k] for k in ("refused", "malformed", "unseen"))
        return ScanResult(
            tuple(sorted(self._seen.values(), key=lambda namespace: namespace.pid)),
            by_device,
            tuple(anonymous),
            started,
            now - started,
            _gaps(refused, malformed, unseen),
            has_everybody=not refused and not malformed,
            kept=frozenset(self._kept),
            refused_owners=tuple(decode(RefusedOwner, one) for one in message["over"]),
        )


def _gaps(refused: int, malformed: int, unseen: int) -> tuple[Gap, ...]:
    reasons = []
    if refused:
        reasons.append(f"{refused} processes may not be looked at")
    if malformed:
        reasons.append(f"{malformed} mount tables could not be read")
    if unseen:
        reasons.append(
            f"{unseen} processes are not believed to be a container's: their cgroups are not "
            "below a cgroup mount of this node"
        )
    return tuple(Gap("namespaces", reason) for reason in reasons)
