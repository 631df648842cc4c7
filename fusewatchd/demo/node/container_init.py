"""The inside of a demo container: builds its mount namespace as runc does, then obeys.

Started by ``fusewatchd.demo.node.container`` with one socket as stdin and stdout.  The first line
is the specification, each further line a command; every line is JSON, every answer one line.
It ends when the socket does.

Everything is imported before the root is changed: Python's own files need not be in there.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from fusewatchd.linux import syscalls

_NO_LIMIT: Final = 64 * 1024 * 1024
_HOST_DIRECTORIES: Final = ("/usr", "/bin", "/lib", "/lib64", "/sbin")
_PROPAGATION: Final = {
    "None": syscalls.MS_PRIVATE,
    "HostToContainer": syscalls.MS_SLAVE,
    "Bidirectional": syscalls.MS_SHARED,
}
# statvfs(3) ST_* of the flags that a remount must repeat, <bits/statvfs.h>
_KEPT_FLAGS: Final = {
    os.ST_NOSUID: syscalls.MS_NOSUID,
    os.ST_NODEV: syscalls.MS_NODEV,
    os.ST_NOEXEC: syscalls.MS_NOEXEC,
    os.ST_NOATIME: syscalls.MS_NOATIME,
    os.ST_NODIRATIME: syscalls.MS_NODIRATIME,
    os.ST_RELATIME: syscalls.MS_RELATIME,
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p

Json = Any
"""What json.loads returns."""


# ------------------------------------------------------------------ making the namespace


def enter_user_namespace(channel: socket.socket, count: int) -> list[int]:
    """Become root of a new user namespace and receive its idmapped volume mounts.

    The parent writes the mapping and makes the mounts: only it may (mount_setattr(2)).
    """
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    channel.sendall(b'{"phase": "user namespace"}\n')
    _, fds, _, _ = socket.recv_fds(channel, 1, max(count, 1))
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    return fds


def make_container(spec: Json, volume_fds: list[int]) -> None:
    """Move into a mount namespace whose root holds the volumes and little else."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    volumes = spec["volumes"]
    # runc makes everything a slave unless some volume must propagate upwards.
    if all(volume["propagation"] != "Bidirectional" for volume in volumes):
        syscalls.mount(None, "/", None, syscalls.MS_SLAVE | syscalls.MS_REC)
    if not spec["has_own_root"]:
        return
    root = os.path.join(spec["stage"], "rootfs")
    syscalls.mount("rootfs", root, "tmpfs", 0, "mode=755")
    _bind_host_directories(root)
    for index, volume in enumerate(volumes):
        target = root + volume["mount_path"]
        if volume_fds:
            _attach_volume(volume_fds[index], target)
        else:
            _bind_volume(volume, target)
    _pivot(root)


def _bind_host_directories(root: str) -> None:
    """Give the container programs, /proc and /dev/null."""
    for path in _HOST_DIRECTORIES:
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
        elif os.path.isdir(path):
            os.mkdir(root + path)
            syscalls.mount(path, root + path, None, syscalls.MS_BIND | syscalls.MS_REC)
            _remount_read_only(root + path)
    os.mkdir(root + "/proc")
    syscalls.mount("/proc", root + "/proc", None, syscalls.MS_BIND | syscalls.MS_REC)
    os.mkdir(root + "/tmp")
    os.mkdir(root + "/dev")
    _make_mount_point("/dev/null", root + "/dev/null")
    syscalls.mount("/dev/null", root + "/dev/null", None, syscalls.MS_BIND)


def _bind_volume(volume: Json, target: str) -> None:
    """Bind one volume recursively, as the CRI asks for, then set propagation and ``ro``."""
    source = volume["source"]
    _make_mount_point(source, target)
    syscalls.mount(source, target, None, syscalls.MS_BIND | syscalls.MS_REC)
    syscalls.mount(None, target, None, syscalls.MS_REC | _PROPAGATION[volume["propagation"]])
    if volume["read_only"]:
        _remount_read_only(target)


def _attach_volume(fd: int, target: str) -> None:
    """Attach an idmapped mount that came with its flags and propagation."""
    _make_mount_point(f"/proc/self/fd/{fd}", target)
    with syscalls.closing_fd(os.open(target, os.O_PATH | os.O_CLOEXEC)) as target_fd:
        syscalls.move_mount(fd, target_fd, path=target)
    os.close(fd)


def _make_mount_point(source: str, target: str) -> None:
    """Make what the volume will cover; asks the server when it is inside another volume."""
    if stat.S_ISDIR(os.stat(source).st_mode):
        os.makedirs(target, exist_ok=True)
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))


def _remount_read_only(target: str) -> None:
    kept = syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY
    try:
        found = os.statvfs(target).f_flag
    except OSError as error:
        if error.errno != errno.ENOSYS:  # a server without statfs
            raise
        found = 0
    for bit, flag in _KEPT_FLAGS.items():
        if found & bit:
            kept |= flag
    syscalls.mount(None, target, None, kept)


def _pivot(root: str) -> None:
    """Make ``root`` the root and let go of the old one without unmounting it anywhere else."""
    with syscalls.closing_fd(os.open("/", os.O_PATH | os.O_CLOEXEC)) as old_root:
        os.chdir(root)
        syscalls.pivot_root(".", ".")
        os.chdir(old_root)
        # Its peers on the host must not see the umount that follows.
        syscalls.mount(None, ".", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")


# ----------------------------------------------------------------------------- commands


def _now() -> float:
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def _read(path: str, limit: int = _NO_LIMIT) -> str:
    with syscalls.closing_fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        return _read_fd(fd, limit)


def _read_fd(fd: int, limit: int = _NO_LIMIT) -> str:
    parts = []
    while limit > 0 and (part := os.read(fd, min(limit, 1 << 20))):
        parts.append(part)
        limit -= len(part)
    return b"".join(parts).decode("utf-8", "surrogateescape")


class Loop:
    """Something done again and again in a thread until it is told to stop."""

    def __init__(self, step: Callable[[], None], interval: float) -> None:
        """``interval`` is the pause between two steps, in seconds."""
        self._step = step
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._step()
            self._stop.wait(self._interval)

    def stop(self) -> None:
        """Stop and wait for the step under way, for ever if it hangs."""
        self._stop.set()
        self._thread.join()


class OpenLoop:
    """An application that opens and reads one path all the time and notes each change."""

    def __init__(self, path: str, interval: float) -> None:
        self.attempts = 0
        self.refused = 0
        """Opens that failed; what fails on the open file is not counted."""
        self.longest = 0.0
        """Seconds of the longest attempt."""
        self.transitions: list[tuple[float, int, str]] = []
        """When (CLOCK_MONOTONIC, end of the attempt) the errno or the content changed."""
        self._path = path
        # The first attempt before start_open_loop answers: it tells how things were.
        self._step()
        self.loop = Loop(self._step, interval)

    def _step(self) -> None:
        number, content = 0, ""
        began, is_open = _now(), False
        try:
            with syscalls.closing_fd(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
                is_open = True
                content = _read_fd(fd, 256)
        except OSError as error:
            number = error.errno or -1
            self.refused += not is_open
        self.attempts += 1
        self.longest = max(self.longest, _now() - began)
        if not self.transitions or self.transitions[-1][1:] != (number, content):
            self.transitions.append((_now(), number, content))


class Commands:
    """The commands by name; each returns something JSON can carry or raises ``OSError``."""

    def __init__(self) -> None:
        self._open_loops: dict[str, OpenLoop] = {}
        self._swap: Loop | None = None
        self._swaps = 0
        self._maps: list[int] = []

    def read(self, path: str) -> str:
        return _read(path)

    def write(self, path: str, content: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with syscalls.closing_fd(os.open(path, flags, 0o644)) as fd:
            os.write(fd, content.encode("utf-8", "surrogateescape"))

    def list(self, path: str) -> Json:
        return sorted(os.listdir(path))

    def stat(self, path: str) -> Json:
        found = os.stat(path)
        names = ("st_mode", "st_ino", "st_dev", "st_uid", "st_gid", "st_size", "st_nlink")
        return {name: getattr(found, name) for name in names}

    def statfs(self, path: str) -> Json:
        found = os.statvfs(path)
        names = ("f_bsize", "f_blocks", "f_bfree", "f_files", "f_flag", "f_namemax")
        return {name: getattr(found, name) for name in names}

    def mountinfo(self) -> str:
        return _read("/proc/self/mountinfo")

    def chdir(self, path: str) -> None:
        os.chdir(path)

    def mkdir(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rename(self, path: str, new_path: str) -> None:
        os.rename(path, new_path)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, path)

    def mount_tmpfs(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)
        syscalls.mount("tmpfs", path, "tmpfs", 0, "mode=755")

    def umount(self, path: str) -> None:
        syscalls.umount2(path)

    def detach(self, path: str) -> None:
        """Unmount what may be in use."""
        syscalls.umount2(path, syscalls.MNT_DETACH)

    def open(self, path: str) -> int:
        """Open and keep; the number is for read_fd and close."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read_fd(self, fd: int) -> str:
        os.lseek(fd, 0, os.SEEK_SET)
        return _read_fd(fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def map(self, path: str) -> None:
        """Map a file for reading and close it; Python's own maps keep a descriptor."""
        with syscalls.closing_fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
            size = ctypes.c_size_t(mmap.PAGESIZE)
            area = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(0))
        if area == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap", path)
        self._maps.append(area)

    def unmap(self) -> None:
        """Unmap what was mapped last."""
        _libc.munmap(ctypes.c_void_p(self._maps.pop()), ctypes.c_size_t(mmap.PAGESIZE))

    def wait_until_readable(self, path: str, seconds: float, interval: float) -> float:
        """Open and read until it works; returns when that was (CLOCK_MONOTONIC).

        Raises the last ``OSError`` when ``seconds`` have passed.
        """
        end = _now() + seconds
        while True:
            try:
                _read(path, 1)
                return _now()
            except OSError:
                if _now() > end:
                    raise
            time.sleep(interval)

    def start_open_loop(self, path: str, interval: float) -> None:
        self._open_loops[path] = OpenLoop(path, interval)

    def open_loop(self, path: str) -> Json:
        loop = self._open_loops[path]
        return {
            "attempts": loop.attempts,
            "transitions": list(loop.transitions),
            "refused": loop.refused,
            "longest": loop.longest,
        }

    def stop_open_loop(self, path: str) -> Json:
        self._open_loops[path].loop.stop()
        answer = self.open_loop(path)
        del self._open_loops[path]
        return answer

    def start_swapping(self, path: str, target: str, interval: float) -> None:
        """Hostile: move ``path`` away, leave a symlink to ``target``, undo it, again."""
        moved = path + ".moved"

        def swap() -> None:
            os.rename(path, moved)
            os.symlink(target, path)
            time.sleep(interval)
            os.unlink(path)
            os.rename(moved, path)
            self._swaps += 1

        self._swap = Loop(swap, interval)

    def stop_swapping(self) -> int:
        if self._swap is not None:
            self._swap.stop()
            self._swap = None
        return self._swaps


def _failure(error: OSError) -> Json:
    return {"errno": error.errno, "message": error.strerror, "path": error.filename}


def answer(commands: Commands, request: Json) -> Json:
    """Carry out one request; an ``OSError`` is an answer, anything else a defect."""
    try:
        value = getattr(commands, request["do"])(**request["arguments"])
    except OSError as error:
        return {"id": request["id"], **_failure(error)}
    return {"id": request["id"], "value": value}


def main() -> int:
    """Build the container, say so, and obey until the socket closes."""
    channel = socket.socket(fileno=0)
    # Nothing printed by accident may get into the protocol.
    os.dup2(2, 1)
    with channel.makefile("r", encoding="utf-8") as lines:
        spec = json.loads(lines.readline())
        try:
            if spec["cgroup_directory"]:
                with open(spec["cgroup_directory"] + "/cgroup.procs", "w") as file:
                    file.write("0")
            os.umask(0o022)
            fds = []
            if spec["has_user_namespace"]:
                fds = enter_user_namespace(channel, len(spec["volumes"]))
            make_container(spec, fds)
        except OSError as error:
            failure = {"phase": "failed", **_failure(error)}
            channel.sendall(json.dumps(failure).encode() + b"\n")
            return 1
        channel.sendall(b'{"phase": "running"}\n')
        commands = Commands()
        for line in lines:
            channel.sendall(json.dumps(answer(commands, json.loads(line))).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
