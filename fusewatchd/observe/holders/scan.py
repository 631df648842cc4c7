"""Which processes still hold files of mounts that are dead: one look through /proc.

A mount that was replaced is in no mount table any more, and lives on for whoever has a file of
it open; its id is given to no other mount until the last of them lets go.  So the ``mnt_id`` in
``/proc/<pid>/fdinfo``, proc_pid_fdinfo(5), tells it, whatever the file's name says.

No request is ever sent to a FUSE server by this: links and fdinfo are read, never followed.  A
working directory, a root and a mapped area have no fdinfo: they are opened with O_PATH for a
moment, which asks no FUSE server either.  These are looked at only in the mount namespaces that
showed the dead mount: a list of mapped areas needs a lock of that process, and the directory of
any other one could be on a file system that does ask.

Done in a worker, at low priority and within bounds.  Not seen are files that are under way over
a socket, and those of threads with a table of descriptors or a directory of their own.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fusewatchd.errors import ParseError
from fusewatchd.json_values import decode, encode
from fusewatchd.linux import procfs
from fusewatchd.linux.procfs import Process, open_process
from fusewatchd.linux.statmount import fdinfo_mount_id
from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model.mount_table import mount_from_line
from fusewatchd.model.mounts import Device
from fusewatchd.model.servers import Holder
from fusewatchd.observe.holders.targets import HolderJob, HolderLook
from fusewatchd.observe.namespaces.cgroupfs import CgroupTrees
from fusewatchd.workers.channel import Channel
from fusewatchd.workers.fork_server import Worker
from fusewatchd.workers.single_worker import SoleWorker

LOOK_SECONDS = 5.0
"""After this the processes not looked at are only counted."""
DEADLINE_SECONDS = 20.0
"""After this the worker is given up: another process's lock holds it."""
NICENESS = 10
MAX_COUNTED = 1000
"""Files or areas of one process."""
MAX_HOLDERS = 200
"""Named for each dead mount; more are counted."""
MAX_THREADS = 512
_MOUNT_ID = re.compile(rb"^mnt_id:\s*(\d+)", re.M)
_AREA = re.compile(rb"^([0-9a-f]+-[0-9a-f]+) \S+ \S+ ([0-9a-f]+):([0-9a-f]+) [1-9]", re.M)


def serve_holder_looks(channel: Channel) -> None:
    """Main function of the worker."""
    os.nice(NICENESS)
    channel.serve(lambda job: channel.send(encode(look(decode(HolderJob, job)))))


def look(
    job: HolderJob, clock: Callable[[], float] = time.monotonic, seconds: float = LOOK_SECONDS
) -> HolderLook:
    """Look at every process once, the likely ones first, until the time is up.

    Args:
        job: what to look for.
        clock: monotonic.
        seconds: how long this may take.
    """
    began = clock()
    search = _Search(job, began + seconds, clock)
    likely, others, unseen = _in_order(frozenset(job.namespaces))
    for pid, is_likely in [*((pid, True) for pid in likely), *((pid, False) for pid in others)]:
        if clock() >= search.until:
            unseen += 1
            continue
        try:
            with open_process(pid) as process:
                search.look_at(process, is_close=is_likely and not job.is_shallow)
        except OSError as exc:
            # Every other error is how a process that ended answers.
            unseen += exc.errno in (errno.EACCES, errno.EPERM)
        except _OutOfTimeError:
            unseen += 1
    counts = tuple(search.counts.get(mount.device, 0) for mount in job.dead)
    return HolderLook(tuple(search.holders), counts, unseen, clock() - began)


def _in_order(namespaces: frozenset[int]) -> tuple[list[int], list[int], int]:
    likely: list[int] = []
    others: list[int] = []
    refused = 0
    for pid in procfs.list_pids():
        try:
            inode = procfs.ns_inode(pid, "mnt")
        except OSError:
            refused += 1
            continue
        if inode is not None and pid != os.getpid():
            (likely if inode in namespaces else others).append(pid)
    return likely, others, refused


class _OutOfTimeError(Exception):
    """Inside one process with very many descriptors."""


@dataclass(slots=True)
class _Found:
    files: int = 0
    mapped: int = 0
    has_directory: bool = False
    roots: int = 0
    mount_ids: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Search:
    job: HolderJob
    until: float
    clock: Callable[[], float]
    trees: CgroupTrees = field(default_factory=CgroupTrees)
    holders: list[Holder] = field(default_factory=list)
    counts: dict[Device, int] = field(default_factory=dict)
    devices: dict[int, Device] = field(init=False)
    """The dead devices by the ids of their mounts."""

    def __post_init__(self) -> None:
        self.devices = {number: m.device for m in self.job.dead for number in m.mount_ids}

    def look_at(self, process: Process, *, is_close: bool) -> None:
        found: dict[Device, _Found] = {}

        def held(number: int) -> _Found:
            one = found.setdefault(self.devices[number], _Found())
            one.mount_ids.add(number)
            return one

        for number, is_root in self._open_files(process):
            held(number).files += 1
            held(number).roots += is_root
        if is_close:
            for name in ("cwd", "root"):
                number = _mount_id_through(process, name)
                if number in self.devices:
                    held(number).has_directory = True
                    held(number).roots += name == "root"
            for number in self._mapped_areas(process):
                held(number).mapped += 1
        if found:
            self._keep(process, found)

    def _open_files(self, process: Process) -> Iterator[tuple[int, bool]]:
        """Yield the mount id of each open file of a dead mount, and whether it is its root."""
        with process.descriptors() as fds:
            for name in os.listdir(fds):
                if self.clock() >= self.until:
                    raise _OutOfTimeError
                with suppress(FileNotFoundError):  # closed meanwhile
                    # Sockets, pipes and their like have no path.
                    path = os.readlink(name, dir_fd=fds)
                    if path.startswith("/"):
                        number = _mount_id(process.read(f"fdinfo/{name}"))
                        if number in self.devices:
                            # A mount that was detached begins at its own root.
                            yield number, path == "/"

    def _mapped_areas(self, process: Process) -> Iterator[int]:
        """Yield the id of a dead mount for each mapped area of its file system.

        The number of a device is used again, so one of its areas must be of a dead mount; the
        others are of the same file system then.
        """
        if _has_stuck_thread(process):
            return
        proven: dict[Device, int] = {}
        wanted = set(self.devices.values())
        for area in _AREA.finditer(process.read("maps")):
            device = Device(int(area[2], 16), int(area[3], 16))
            if device in wanted and device not in proven:
                number = _mount_id_through(process, f"map_files/{_canonical(area[1])}")
                if self.devices.get(number) == device:
                    proven[device] = number
            if device in proven:
                yield proven[device]

    def _keep(self, process: Process, found: dict[Device, _Found]) -> None:
        shown = _devices_shown(process, self.devices)
        name, _, start_time = process.stat()
        owner = self.trees.owner(process)
        for device, what in found.items():
            # The number of a mount that is gone is used again.
            if all(shown.get(number, device) != device for number in what.mount_ids):
                continue
            count = self.counts[device] = self.counts.get(device, 0) + 1
            if count <= MAX_HOLDERS:
                self.holders.append(
                    Holder(
                        device, process.pid, start_time, name,
                        min(what.files, MAX_COUNTED), min(what.mapped, MAX_COUNTED),
                        what.has_directory,
                        owner.pod_uid, owner.container_id, owner.unit, what.roots,
                    )
                )  # fmt: skip


def _devices_shown(process: Process, numbers: dict[int, Device]) -> dict[int, Device]:
    """Return what the mount table of a process says of mounts with these ids."""
    shown: dict[int, Device] = {}
    for line in process.read("mountinfo").split(b"\n"):
        number = line.partition(b" ")[0]
        if number.isdigit() and int(number) in numbers:
            with suppress(ParseError):
                shown[int(number)] = mount_from_line(line).device
    return shown


def _mount_id(fdinfo: bytes) -> int:
    found = _MOUNT_ID.search(fdinfo)
    return int(found.group(1)) if found is not None else 0


def _mount_id_through(process: Process, name: str) -> int:
    """Return the id of the mount that a link of ``/proc/<pid>`` leads to; 0: not told."""
    try:
        fd = process.open_link(name)
    except OSError:
        return 0
    with closing_fd(fd):
        return fdinfo_mount_id(fd)


def _canonical(area: bytes) -> str:
    """Return the name in ``map_files``, which has no leading zeros; ``maps`` has some."""
    return "-".join(f"{int(part, 16):x}" for part in area.split(b"-"))


def _has_stuck_thread(process: Process) -> bool:
    """Return True when a thread waits uninterruptibly: it may hold the lock of its areas."""
    for number, tid in enumerate(process.threads()):
        if number >= MAX_THREADS:
            return True
        with suppress(FileNotFoundError, ProcessLookupError):
            if process.stat(f"task/{tid}/stat")[1] == "D":
                return True
    return False


class HolderScanner:
    """The daemon's side: one look at a time."""

    def __init__(self, spawn: Callable[[], Worker]) -> None:
        """Take the means to start a worker; none is started before the first look."""
        self._worker = SoleWorker(spawn, DEADLINE_SECONDS, is_eager=False)

    def fileno(self) -> int:
        """Return what becomes readable when a look has ended."""
        return self._worker.fileno()

    @property
    def is_running(self) -> bool:
        """True while a look is under way."""
        return self._worker.started_at is not None

    def request(self, job: HolderJob, now: float) -> bool:
        """Begin a look while there is none; False: there is nothing to make a worker of."""
        return self._worker.start(encode(job), now)

    def postpone(self, seconds: float) -> None:
        """Give a look that is under way so much more time."""
        self._worker.postpone(seconds)

    def next_deadline(self) -> float | None:
        """Return when ``collect`` must be called although nothing arrived."""
        return self._worker.next_deadline()

    def collect(self, now: float) -> HolderLook | None:
        """Return a finished look.

        Raises:
            TimeoutError: it did not end; its worker is replaced.
            WorkerError: it cannot be replaced.
        """
        message: Any = self._worker.collect(now)
        return None if message is None else decode(HolderLook, message)

    def close(self) -> None:
        """End the worker."""
        self._worker.close()
