"""A keeper, callers in containers, and mounts that are replaced, for tests of what callers see."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.node import cgroups
from fusewatchd.demo.timeouts import patient
from fusewatchd.keeper.client import Client
from fusewatchd.keeper.protocol import Connection, Connections, Ended, Held, Hold, List, socket_path
from fusewatchd.linux import syscalls
from fusewatchd.linux.fuse_device import clone, is_fuse_device
from tests.waiting import wait_until

TOP = Path(__file__).parents[1]
_PIDFD_GETFD = 438


class KeeperProcess:
    """``fusewatchd keeper`` below a service manager, for the length of a ``with`` block."""

    def __init__(self, directory: str) -> None:
        """Its socket and log are in this directory."""
        self.runtime_dir = os.path.join(directory, "run")
        self.path = socket_path(self.runtime_dir)
        self._notify = os.path.join(directory, "notify")
        self._log = Path(directory, "keeper.log")
        self._manager: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> KeeperProcess:
        command = [sys.executable, "-m", "fusewatchd", "keeper"]
        command += ["--set", f"runtime_dir={self.runtime_dir}"]
        with self._log.open("wb") as log:
            self._manager = subprocess.Popen(
                [sys.executable, "-m", "tests.servicemanager", self._notify, self.path, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=python_environment(str(TOP)),
            )
        self.wait_for("ready")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._manager is not None
        print(self.log())
        self._manager.kill()
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._manager.wait()

    def log(self) -> str:
        return self._log.read_text()

    def lines(self, word: str) -> list[str]:
        return [line for line in self.log().splitlines() if line.split(" ")[0] == word]

    def wait_for(self, word: str, count: int = 1) -> None:
        wait_until(lambda: len(self.lines(word)) >= count, self.log)

    def pids(self) -> list[int]:
        return [int(line.split()[1]) for line in self.lines("started")]

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pids()[-1], number)

    def client(self) -> Client:
        return Client(self.path, patient(5.0))

    def listed(self) -> Connections:
        with self.client() as client:
            answer = client.ask(List())
        assert isinstance(answer, Connections)
        return answer

    def connection(self, hold: int) -> Connection | None:
        return next((one for one in self.listed().connections if one.hold == hold), None)

    def ended(self, hold: int) -> Ended | None:
        return next((one for one in self.listed().ended if one.hold == hold), None)

    def hold(
        self, server: int, mount: str, pods: Sequence[str], *, grace: float = 20.0, **more: Any
    ) -> int:
        """Hold the connection of a server that knows nothing of it."""
        major, minor = os.major(os.stat(mount).st_dev), os.minor(os.stat(mount).st_dev)
        request = Hold(
            connection=major << 20 | minor,
            driver="test",
            grace_seconds=grace,
            pids_are_hosts=more.pop("pids_are_hosts", True),
            pods=tuple(pods),
            **more,
        )
        pidfd = os.pidfd_open(server)
        copy = clone_of_server(server)
        try:
            with self.client() as client:
                answer = client.ask(request, [copy, pidfd])
        finally:
            os.close(copy)
            os.close(pidfd)
        assert isinstance(answer, Held), answer
        return answer.hold


def clone_of_server(pid: int) -> int:
    """Return a clone of the connection of a server, pidfd_getfd(2)."""
    take = syscalls.system_call(_PIDFD_GETFD, ctypes.c_int, ctypes.c_int, ctypes.c_uint)
    pidfd = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            if not os.readlink(f"/proc/{pid}/fd/{name}").endswith("/fuse"):
                continue
            copy = take(None, pidfd, int(name), 0)
            try:
                if is_fuse_device(copy):
                    return clone(copy)
            finally:
                os.close(copy)
    finally:
        os.close(pidfd)
    raise AssertionError(f"process {pid} has no /dev/fuse")


# ------------------------------------------------------------------------------- containers


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one caller saw."""

    value: Any
    errno: int
    seconds: float


class Room:
    """A mount namespace and a cgroup, as a container has; nothing runs in it but a sleeper."""

    def __init__(self, cgroup: str, propagation: int = syscalls.MS_PRIVATE) -> None:
        """Copy the caller's mounts now."""
        self.cgroup = cgroup
        self._directory = cgroups.create(cgroup)
        assert self._directory is not None
        ours, theirs = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount(None, "/", None, propagation | syscalls.MS_REC)
            os.write(theirs, b".")
            while True:
                time.sleep(3600)
        os.close(theirs)
        assert os.read(ours, 1)
        os.close(ours)

    def call(self, do: Callable[[], Any]) -> Call:
        """Let a process in here do something."""
        return Call(do, self)

    def enter(self) -> None:
        """Go there; for a child that does not come back."""
        with open(f"{self._directory}/cgroup.procs", "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
        self.enter_mounts()

    def enter_mounts(self) -> None:
        fd = os.open(f"/proc/{self.pid}/ns/mnt", os.O_RDONLY)
        syscalls.setns(fd, syscalls.CLONE_NEWNS)
        os.close(fd)

    def replace(self, path: str, by: str) -> None:
        """Put another mount in the place of the one at ``path``, as the daemon does."""
        fd = syscalls.open_tree(syscalls.AT_FDCWD, by, syscalls.OPEN_TREE_CLONE)
        pid = os.fork()
        if not pid:
            self.enter_mounts()
            replace_with(fd, path)
            os._exit(0)
        os.close(fd)
        _, status = os.waitpid(pid, 0)
        assert status == 0

    def close(self) -> None:
        """End it; safe to repeat."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


def replace_with(fd: int, path: str) -> None:
    """Attach a detached mount beneath the top one at ``path``, and detach that one."""
    target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    syscalls.move_mount(fd, target, syscalls.MOVE_MOUNT_BENEATH, path)
    os.close(target)
    os.close(fd)
    syscalls.umount2(path, syscalls.MNT_DETACH)


def replace_here(path: str, by: str) -> None:
    """As ``Room.replace``, in our own namespace."""
    replace_with(syscalls.open_tree(syscalls.AT_FDCWD, by, syscalls.OPEN_TREE_CLONE), path)


class Call:
    """A process that does one thing and tells what it saw."""

    def __init__(self, do: Callable[[], Any], room: Room | None = None) -> None:
        """Start it; without a room it is a process of the host."""
        self._outcome: Outcome | None = None
        self._pipe, theirs = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                os.close(self._pipe)
                if room is not None:
                    room.enter()
                os.write(theirs, _told(do))
                status = 0
            finally:
                os._exit(status)
        os.close(theirs)
        self._pidfd = os.pidfd_open(self.pid)
        self._exit: int | None = None

    @property
    def is_over(self) -> bool:
        return bool(select.select([self._pidfd], [], [], 0)[0])

    def state(self) -> str:
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0]

    def outcome(self, seconds: float = 20.0) -> Outcome:
        """Wait for what it saw."""
        ready = select.select([self._pipe], [], [], patient(seconds))[0]
        assert ready, f"process {self.pid} still waits"
        told = os.read(self._pipe, 1 << 16)
        assert told, "it ended without a word"
        self.end()
        return Outcome(*json.loads(told))

    def kill(self, number: signal.Signals = signal.SIGKILL) -> float:
        """Send a signal; return after how many seconds it has ended."""
        began = time.monotonic()
        os.kill(self.pid, number)
        assert select.select([self._pidfd], [], [], patient(20.0))[0], self.state()
        seconds = time.monotonic() - began
        self.end()
        return seconds

    def end(self) -> int:
        """Reap it; return its exit status, negative for a signal."""
        if self._exit is None:
            _, status = os.waitpid(self.pid, 0)
            self._exit = os.waitstatus_to_exitcode(status)
            os.close(self._pidfd)
            os.close(self._pipe)
        return self._exit


def _told(do: Callable[[], Any]) -> bytes:
    began = time.monotonic()
    value, number = None, 0
    try:
        value = do()
    except OSError as exc:
        number = exc.errno or -1
    return json.dumps([value, number, time.monotonic() - began]).encode()


def operations(mount: str) -> dict[str, Callable[[], Any]]:
    """Return what eight callers do by path, each with a name of its own."""

    def read() -> str:
        with open(f"{mount}/hello", encoding="ascii") as file:
            return file.read()

    def create() -> None:
        with open(f"{mount}/created", "w", encoding="ascii") as file:
            file.write("x")

    return {
        "stat": lambda: os.stat(f"{mount}/hello").st_size,
        "read": read,
        "list": lambda: sorted(os.listdir(mount)),
        "deep": lambda: os.stat(f"{mount}/sub/hello").st_size,
        "mkdir": lambda: os.mkdir(f"{mount}/made"),
        "create": create,
        "rename": lambda: os.rename(f"{mount}/old", f"{mount}/renamed"),
        "unlink": lambda: os.unlink(f"{mount}/gone"),
    }


FILES = {"hello": "one", "sub/hello": "inner", "old": "1", "gone": "1"}
"""What the callers want to find."""


def error_names(outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    """Return who saw an error, for people."""
    return {
        name: errno.errorcode.get(one.errno, str(one.errno))
        for name, one in outcomes.items()
        if one.errno
    }
