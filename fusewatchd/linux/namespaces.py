"""Who else shows FUSE file systems, and who serves them: one walk through /proc.

Done in a worker, since a node has thousands of processes and the daemon has better things to
do.  The worker keeps the tables of namespaces that did not change, so that a second walk
parses next to nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fusewatchd.kubeletdir import pod_uid_of_cgroup
from fusewatchd.linux.channel import Channel
from fusewatchd.linux.forkserver import Worker
from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model import Device, FuseServer, MountNamespace, NamespaceKind
from fusewatchd.mountinfo import mount_from_line
from fusewatchd.wire import decode, encode

DEADLINE_SECONDS = 10.0
_CONNECTION = re.compile(rb"^fuse_connection:\s*(\d+)", re.M)
_MINOR_BITS = 20


def serve_scans(channel: Channel) -> None:
    """Main function of a scan worker."""
    walk = _Walk()
    channel.serve(lambda _: channel.send(walk.run()))


class _Walk:
    """Walks /proc; remembers the tables it has parsed."""

    def __init__(self) -> None:
        self._parsed: dict[int, tuple[bytes, list[Any]]] = {}

    def run(self) -> dict[str, Any]:
        host = os.stat("/proc/self/ns/mnt").st_ino
        seen: dict[int, Any] = {}
        servers: list[Any] = []
        tables: dict[int, tuple[bytes, list[Any]]] = {}
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                with closing_fd(os.open(f"/proc/{entry}", os.O_PATH | os.O_CLOEXEC)) as fd:
                    inode = _inode_of(os.readlink("ns/mnt", dir_fd=fd))
                    if inode != host and inode not in seen:
                        seen[inode] = self._namespace(int(entry), fd, inode, tables)
                    server = _server(int(entry), fd)
                    if server is not None:
                        servers.append(server)
            except OSError:
                continue  # ended meanwhile, or a kernel thread
        self._parsed = tables
        return {"namespaces": [n for n in seen.values() if n is not None], "servers": servers}

    def _namespace(
        self, pid: int, fd: int, inode: int, tables: dict[int, tuple[bytes, list[Any]]]
    ) -> Any:
        data = _read(fd, "mountinfo")
        if b" - fuse" not in data:
            return None
        known = self._parsed.get(inode)
        mounts = known[1] if known and known[0] == data else _relevant(data)
        tables[inode] = (data, mounts)
        if not mounts:
            return None
        pod = pod_uid_of_cgroup(_read(fd, "cgroup").decode("utf-8", "replace"))
        return {
            "inode": inode,
            "pid": pid,
            "start_time": _start_time(fd),
            "kind": (NamespaceKind.CONTAINER if pod else NamespaceKind.FOREIGN).value,
            "pod_uid": pod[0] if pod else "",
            "container_id": pod[1] if pod else "",
            "mounts": mounts,
            "own_user_namespace": os.readlink("ns/user", dir_fd=fd)
            != os.readlink("/proc/self/ns/user"),
        }


def _inode_of(link: str) -> int:
    return int(link.partition("[")[2].rstrip("]"))


def _read(fd: int, name: str) -> bytes:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=fd), "rb") as file:
        return file.read()


def _start_time(fd: int) -> int:
    return int(_read(fd, "stat").rpartition(b")")[2].split()[19])


def _relevant(data: bytes) -> list[Any]:
    """Keep the FUSE mounts, what they are mounted on and everything mounted inside."""
    mounts = [mount_from_line(line) for line in data.splitlines()]
    fuse = [mount for mount in mounts if mount.is_fuse]
    kept = {mount.mount_id for mount in fuse}
    inside = set(kept)
    for _ in range(len(mounts)):
        below = {m.mount_id for m in mounts if m.parent_id in inside} - inside
        if not below:
            break
        inside |= below
    kept |= inside | {mount.parent_id for mount in fuse}
    return [encode(mount) for mount in mounts if mount.mount_id in kept]


def _server(pid: int, fd: int) -> Any:
    """Describe a process with a ``/dev/fuse`` descriptor; None for any other."""
    devices: list[list[int]] = []
    holds_one = False
    with closing_fd(os.open("fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)) as fds:
        for name in os.listdir(fds):
            try:
                if os.readlink(name, dir_fd=fds) != "/dev/fuse":
                    continue
                holds_one = True
                found = _CONNECTION.search(_read(fd, f"fdinfo/{name}"))
            except OSError:
                continue
            if found:
                number = int(found.group(1))
                device = [number >> _MINOR_BITS, number & ((1 << _MINOR_BITS) - 1)]
                if device not in devices:
                    devices.append(device)
    if not holds_one:
        return None
    pod = pod_uid_of_cgroup(_read(fd, "cgroup").decode("utf-8", "replace"))
    command = _read(fd, "cmdline")[:256].replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return {
        "pid": pid,
        "start_time": _start_time(fd),
        "devices": [{"major": major, "minor": minor} for major, minor in devices],
        "command": command,
        "pod_uid": pod[0] if pod else "",
    }


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What one walk saw."""

    namespaces: tuple[MountNamespace, ...]
    servers: dict[Device, tuple[FuseServer, ...]]
    anonymous: tuple[FuseServer, ...]
    """Servers of which the kernel does not tell the connection (before about 6.16)."""
    started_at: float
    elapsed: float


class NamespaceScanner:
    """The daemon's side: at most one walk at a time, and one more asked for."""

    def __init__(self, spawn: Callable[[], Worker]) -> None:
        """Take the means to start a worker; the first one is started at once."""
        self._spawn = spawn
        self._worker = spawn()
        self._started_at: float | None = None
        self._is_wanted = False

    def fileno(self) -> int:
        """Return what becomes readable when a walk has ended."""
        return self._worker.channel.fileno()

    @property
    def is_running(self) -> bool:
        """True while a walk is under way."""
        return self._started_at is not None

    def request(self, now: float) -> None:
        """Ask for a walk that begins now or right after the present one."""
        if self._started_at is not None:
            self._is_wanted = True
            return
        self._is_wanted = False
        self._started_at = now
        self._worker.channel.send("walk")

    def collect(self, now: float) -> ScanResult | None:
        """Return a finished walk.

        Raises:
            TimeoutError: the walk did not end; its worker was replaced.
        """
        started = self._started_at
        try:
            messages = self._worker.channel.receive()
        except EOFError:
            messages, started = [], -DEADLINE_SECONDS if started is not None else None
        if not messages:
            if started is not None and now - started >= DEADLINE_SECONDS:
                self._worker.kill()
                self._worker, self._started_at = self._spawn(), None
                raise TimeoutError("the walk through /proc did not end")
            return None
        result = _result(messages[-1], started or now, now)
        self._started_at = None
        if self._is_wanted:
            self.request(now)
        return result

    def close(self) -> None:
        """End the worker."""
        self._worker.kill()


def _result(message: dict[str, Any], started: float, now: float) -> ScanResult:
    namespaces = tuple(decode(MountNamespace, item) for item in message["namespaces"])
    by_device: dict[Device, tuple[FuseServer, ...]] = {}
    anonymous: list[FuseServer] = []
    for item in message["servers"]:
        server = decode(FuseServer, item)
        if not server.devices:
            anonymous.append(server)
        for device in server.devices:
            by_device[device] = (*by_device.get(device, ()), server)
    return ScanResult(namespaces, by_device, tuple(anonymous), started, now - started)
