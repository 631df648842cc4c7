"""Processes in containers that call a volume by path all the time, and count what they see."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from fusewatchd.demo.node.container import Container
from fusewatchd.demo.timeouts import patient
from fusewatchd.linux import syscalls

IN_FLIGHT = (errno.ECONNABORTED,)
"""What the dead server had read ends so, with and without a keeper."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one caller saw."""

    calls: int
    errors: Mapping[str, int]
    """By operation and errno, ``stat ENOTCONN``."""
    longest: float
    """Seconds of the longest call."""


class Caller:
    """A process in a container's mount namespace and cgroup."""

    def __init__(self, container: Container, path: str, pause: float = 0.001) -> None:
        """Start to call."""
        self._report, theirs = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            try:
                _enter(container)
                _call(path, pause, theirs)
            finally:
                os._exit(1)
        os.close(theirs)

    def end(self) -> Seen:
        """Have it stop, and return what it saw."""
        os.kill(self._pid, signal.SIGUSR1)
        is_there = select.select([self._report], [], [], patient(20.0))[0]
        if not is_there:
            self.kill()
            raise AssertionError(f"process {self._pid} still waits")
        told = json.loads(os.read(self._report, 1 << 16))
        self.kill()
        return Seen(**told)

    def kill(self) -> None:
        """End it; safe to repeat."""
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def _enter(container: Container) -> None:
    directory = container.cgroup_directory
    if directory is not None:
        with open(f"{directory}/cgroup.procs", "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
    fd = os.open(f"/proc/{container.pid}/ns/mnt", os.O_RDONLY)
    syscalls.setns(fd, syscalls.CLONE_NEWNS)
    os.close(fd)


def operations(path: str) -> dict[str, Callable[[], object]]:
    """Return operations by path that hold nothing open afterwards."""
    return {
        "stat": lambda: os.stat(f"{path}/hello"),
        "open": lambda: _open(f"{path}/hello"),
        "statvfs": lambda: os.statvfs(path),
        "getxattr": lambda: _getxattr(f"{path}/hello"),
        "missing": lambda: os.path.lexists(f"{path}/nothing"),
    }


def _open(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with suppress(OSError):  # close(2) asks by the descriptor, and may say that the server is gone
        os.close(fd)


def _getxattr(path: str) -> None:
    try:
        os.getxattr(path, "user.none")
    except OSError as exc:
        if exc.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise


def _call(path: str, pause: float, report: int) -> None:
    is_over = False

    def stop(*_: object) -> None:
        nonlocal is_over
        is_over = True

    signal.signal(signal.SIGUSR1, stop)
    calls, longest, errors = 0, 0.0, Counter[str]()
    while not is_over:
        for name, operation in operations(path).items():
            began = time.monotonic()
            try:
                operation()
            except InterruptedError:
                pass
            except OSError as exc:
                errors[f"{name} {errno.errorcode.get(exc.errno or 0, exc.errno)}"] += 1
            calls += 1
            longest = max(longest, time.monotonic() - began)
        time.sleep(pause)
    told = {"calls": calls, "errors": dict(errors), "longest": longest}
    os.write(report, json.dumps(told).encode())
    os._exit(0)


@contextmanager
def calling(
    containers: Mapping[str, Container], path: str, each: int = 2
) -> Iterator[list[Caller]]:
    """Have processes in containers call for the length of a block."""
    callers = [Caller(container, path) for container in containers.values() for _ in range(each)]
    try:
        yield callers
    finally:
        for caller in callers:
            caller.kill()


def path_errors(seen: list[Seen]) -> dict[str, int]:
    """Return the errors of all that were not in flight when the server ended.

    The keeper frees callers with ENOTCONN where a thread of their pod stands still, which may wait
    for a lock that they hold.  On a busy machine threads stand still without that, so one such error
    for each caller is none.  Without the keeper each of them has hundreds.
    """
    total: Counter[str] = Counter()
    for one in seen:
        total.update(one.errors)
    names = {errno.errorcode[number] for number in IN_FLIGHT}
    found = {what: count for what, count in total.items() if what.split()[1] not in names}
    freed = {what: count for what, count in found.items() if what.split()[1] == "ENOTCONN"}
    if sum(freed.values()) <= len(seen):
        return {what: count for what, count in found.items() if what not in freed}
    return found


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Abort every FUSE connection after a while: whoever waits must not wait for ever."""
    pid = os.fork()
    if not pid:
        try:
            time.sleep(seconds)
            for number in os.listdir("/sys/fs/fuse/connections"):
                with suppress(OSError), open(f"/sys/fs/fuse/connections/{number}/abort", "w") as f:
                    f.write("1")
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
