"""Which dead mounts to look for in the hands of processes, and when.

After a recovery new opens work, and what was opened before does not: the processes that still
hold such files are the only ones that have to do anything.  They are looked for once a recovery
is complete and then ever more seldom, until the last one has let go.

No clock and no I/O: the shell passes the time in and carries the looks out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.mounts import Device
from fusewatchd.model.outages import Incident
from fusewatchd.model.servers import Answer, DeadMount, Holder, Holding
from fusewatchd.model.snapshot import Snapshot

FIRST_LOOK_SECONDS = 1.0
"""After a recovery: whoever retries by itself has opened its files anew by then."""
FIRST_REST_SECONDS = 4.0
LAST_REST_SECONDS = 300.0
REST_FACTOR = 20
"""After a look that took t, the next one begins 20 t later, whatever has happened."""
MAX_WATCHED = 64
"""Dead mounts that are looked for at a time; the oldest gives way."""
MAX_IDS = 10_000


@dataclass(slots=True)
class _Traces:
    """How the mounts of a dead file system may be known."""

    mount_ids: set[int] = field(default_factory=set)
    namespaces: set[int] = field(default_factory=set)
    """Mount namespaces other than the host's that showed it."""


@dataclass(slots=True)
class _Watched:
    incident: Incident
    traces: _Traces
    due_at: float
    rest: float = FIRST_REST_SECONDS
    holding: Holding | None = None
    """What the last look has found."""


@dataclass(frozen=True, slots=True)
class HolderJob:
    """What one look is for."""

    dead: tuple[DeadMount, ...]
    namespaces: tuple[int, ...] = ()
    """Inodes of the mount namespaces that showed one of them: looked at first, and closely."""
    is_shallow: bool = False
    """Descriptors only: an earlier look did not come back."""


@dataclass(frozen=True, slots=True)
class HolderLook:
    """What one look saw."""

    holders: tuple[Holder, ...]
    counts: tuple[int, ...]
    """How many there are of each dead mount, in the order of the job."""
    unseen: int
    """Processes that were not looked at."""
    elapsed: float


class Holdings:
    """The book of dead mounts that processes may still hold."""

    def __init__(self) -> None:
        """Begin with an empty book."""
        self._traces: dict[Device, _Traces] = {}
        self._watched: dict[Device, _Watched] = {}
        self._not_before = float("-inf")

    def take_cycle(self, cycle: CycleReport, open_incidents: Collection[Device]) -> None:
        """Note what is dead, and begin to look where a recovery is complete."""
        snapshot = cycle.snapshot
        dead = snapshot.dead_devices()
        self._note_traces(dead, snapshot)
        for incident in cycle.incidents_closed:
            traces = self._traces.get(incident.device)
            if traces is not None and incident.recovered_at is not None:
                due_at = cycle.finished_at + FIRST_LOOK_SECONDS
                self._watched.pop(incident.device, None)
                self._watched[incident.device] = _Watched(incident, traces, due_at)
        for device in self._traces.keys() - dead - set(open_incidents):
            del self._traces[device]
        for device, watched in tuple(self._watched.items()):
            if _is_used_again(device, watched.traces, snapshot):
                del self._watched[device]
        while len(self._watched) > MAX_WATCHED:
            del self._watched[next(iter(self._watched))]

    def wanted(self, now: float) -> HolderJob | None:
        """Return what to look for when a look is due: everything, since one walk does for all."""
        due_at = self.next_due()
        if due_at is None or now < due_at:
            return None
        namespaces = {inode for w in self._watched.values() for inode in w.traces.namespaces}
        dead = (
            DeadMount(device, tuple(sorted(watched.traces.mount_ids)))
            for device, watched in self._watched.items()
        )
        return HolderJob(tuple(dead), tuple(sorted(namespaces)))

    def take_look(self, job: HolderJob, look: HolderLook, began: float, now: float) -> None:
        """Take what one look has found; what nobody holds any more is forgotten.

        Args:
            job: what was looked for.
            look: what was found.
            began: when the look did.
            now: seconds of the monotonic clock.
        """
        self._not_before = now + REST_FACTOR * (now - began)
        by_device: dict[Device, list[Holder]] = {}
        for holder in look.holders:
            by_device.setdefault(holder.device, []).append(holder)
        for mount, count in zip(job.dead, look.counts, strict=True):
            watched = self._watched.get(mount.device)
            if watched is None or watched.incident.recovered_at is None:
                continue
            if watched.incident.recovered_at > began:
                continue  # another mount with this number, since
            is_whole = not look.unseen or watched.rest >= LAST_REST_SECONDS
            if not count and is_whole:
                del self._watched[mount.device]
                continue
            incident, found = watched.incident, tuple(by_device.get(mount.device, ()))
            source, driver = incident.source_path, incident.driver
            shown = Holding(mount.device, source, driver, began, found, count, look.unseen)
            watched.holding = shown if count else None
            self._rest(watched, now)

    def take_failure(self, began: float, now: float) -> None:
        """Take note that a look came to nothing: what is known stays, and is looked at later."""
        self._not_before = now + REST_FACTOR * (now - began)
        for watched in self._watched.values():
            self._rest(watched, now)

    def view(self) -> tuple[Holding, ...]:
        """Return who holds what, as of the last look."""
        return tuple(w.holding for w in self._watched.values() if w.holding is not None)

    def next_due(self) -> float | None:
        """Return when the next look is due; None: there is nothing to look for."""
        due_at = min((w.due_at for w in self._watched.values()), default=None)
        return None if due_at is None else max(due_at, self._not_before)

    def _note_traces(self, dead: Collection[Device], snapshot: Snapshot) -> None:
        if not dead:
            return
        for mount in snapshot.table.fuse_mounts():
            if mount.device in dead:
                _add(self._traces.setdefault(mount.device, _Traces()).mount_ids, mount.mount_id)
        for namespace in snapshot.namespaces:
            for mount in namespace.mounts:
                if mount.device in dead:
                    traces = self._traces.setdefault(mount.device, _Traces())
                    _add(traces.mount_ids, mount.mount_id)
                    _add(traces.namespaces, namespace.inode)

    @staticmethod
    def _rest(watched: _Watched, now: float) -> None:
        watched.due_at = now + watched.rest
        watched.rest = min(2 * watched.rest, LAST_REST_SECONDS)


def _add(numbers: set[int], number: int) -> None:
    if len(numbers) < MAX_IDS:
        numbers.add(number)


def _is_used_again(device: Device, traces: _Traces, snapshot: Snapshot) -> bool:
    """Return True when the number is another file system's: so nobody holds the dead one."""
    connection = snapshot.connections.get(device)
    if connection is not None and connection.answer is Answer.ANSWERED:
        return True
    shown = snapshot.table.on_device(device)
    return any(mount.mount_id not in traces.mount_ids for mount in shown)
