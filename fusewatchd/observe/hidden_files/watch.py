"""Has directories of volumes looked at that were not mounted for some time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fusewatchd.json_values import decode, encode
from fusewatchd.model.cycle import CycleReport, Trigger
from fusewatchd.model.findings import Bind
from fusewatchd.model.hidden_files import DirectoryCount, DirectoryJob, HiddenFiles
from fusewatchd.model.mount_table import MountTable, below
from fusewatchd.model.stacks import ground_at
from fusewatchd.workers.fork_server import Worker
from fusewatchd.workers.single_worker import SoleWorker

AGAIN_SECONDS = 30.0
"""While a container may be writing to a directory."""
DEADLINE_SECONDS = 20.0
MOST = 64
"""Directories that are known at a time, and that one look may have."""


@dataclass(slots=True)
class _Place:
    """A directory, and the path at which its volume is mounted, or was."""

    point: str
    pod_uid: str
    volume: str
    is_open: bool = True
    """A container may be writing to it, or the volume is not mounted."""
    due_at: float | None = 0.0


class HiddenFilesWatch:
    """Owns the worker; no recovery waits for it."""

    def __init__(self, spawn: Callable[[], Worker]) -> None:
        """Take the means to start a worker; none is started before the first look."""
        self.known: dict[str, HiddenFiles] = {}
        """By path of the directory."""
        self._worker = SoleWorker(spawn, DEADLINE_SECONDS, is_eager=False)
        self._places: dict[str, _Place] = {}
        self._asked: list[str] = []
        self._table = MountTable()

    def take_cycle(self, cycle: CycleReport) -> None:
        """Note what a cycle found, and begin a look when one is due."""
        if not cycle.uncovered and not self._places:
            return
        now, self._table = cycle.finished_at, cycle.snapshot.table
        self._follow(cycle.uncovered, now)
        if self._worker.started_at is not None:
            return
        due = [p for p, one in self._places.items() if one.due_at is not None and now >= one.due_at]
        jobs = [job for path in due if (job := self._job(path)) is not None]
        for path in due:
            one = self._places[path]
            one.due_at = now + AGAIN_SECONDS if one.is_open else None
        if jobs and self._worker.start([encode(job) for job in jobs], now):
            self._asked = [job.path for job in jobs]

    def _follow(self, uncovered: tuple[Bind, ...], now: float) -> None:
        seen: set[str] = set()
        for bind in uncovered:
            path, point = bind.key.mount_point, bind.key.mount_point
            if bind.underneath is not None and bind.origin is not None:
                path, point = bind.underneath.host_path, bind.origin.mount_point
            if path in self._places or len(self._places) < MOST:
                place = _Place(point, bind.path.pod_uid, bind.path.volume)
                self._places.setdefault(path, place).is_open = True
                seen.add(path)
        for path, place in tuple(self._places.items()):
            if path in seen:
                continue
            if not self._table.at(place.point):
                del self._places[path]
                self.known.pop(path, None)
            elif place.is_open:
                place.is_open, place.due_at = False, now

    def _job(self, path: str) -> DirectoryJob | None:
        ground = ground_at(self._places[path].point, self._table)
        inside = below(path, ground.mount_point) if ground is not None else None
        if ground is None or inside is None:
            return None
        return DirectoryJob(path, ground.mount_point, ground.mount_id, inside)

    def collect(self) -> Trigger | None:
        """Take in a finished look."""
        try:
            message: Any = self._worker.collect(time.monotonic())
        except TimeoutError:
            return None
        if message is None:
            return None
        before = dict(self.known)
        for path, item in zip(self._asked, message, strict=True):
            place = self._places.get(path)
            if place is not None and item is not None:
                self._note(path, place, decode(DirectoryCount, item))
        return Trigger.HIDDEN_FILES if self.known != before else None

    def _note(self, path: str, place: _Place, count: DirectoryCount) -> None:
        is_covered = bool(self._table.at(place.point))
        if count.files:
            found = HiddenFiles(path, place.pod_uid, place.volume, count, is_covered)
            self.known[path] = found
        else:
            self.known.pop(path, None)

    def fileno(self) -> int:
        """Return what becomes readable when a look has ended."""
        return self._worker.fileno()

    def postpone(self, seconds: float) -> None:
        """Give a look that is under way so much more time."""
        self._worker.postpone(seconds)

    @property
    def overdue_at(self) -> float | None:
        """When to ``collect`` although nothing wakes."""
        return self._worker.next_deadline()

    def next_due(self) -> float | None:
        """Return when a cycle is needed although nothing wakes it."""
        if self._worker.started_at is not None:
            return None
        return min(self._due(), default=None)

    def _due(self) -> Iterator[float]:
        for place in self._places.values():
            if place.due_at is not None:
                yield place.due_at

    def close(self) -> None:
        """End the process that looks."""
        self._worker.close()
