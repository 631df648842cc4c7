"""A process that shows a dead file system of its own where a pod has a volume."""

from __future__ import annotations

import os
import select
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fusewatchd.demo.timeouts import patient
from fusewatchd.linux import syscalls
from fusewatchd.model.mount_table import parse_mount_table

IDS = "0 100000 65536"
SECONDS = 15.0
Order = Callable[[], str]


class Intruder:
    """A forked process in namespaces of its own; each order is answered with a text."""

    def __init__(self, cgroup: str, mount_namespace: int, orders: dict[str, Order]) -> None:
        """Start it in a cgroup's directory, and in another process's mount namespace if not 0."""
        self._orders = orders
        self._theirs, self._ours = os.pipe()
        self._answers, self._told = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                self._live(cgroup, mount_namespace)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        assert self._answer() == "ready"
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{self.pid}/{name}", "w") as file:
                file.write(IDS)

    def _live(self, cgroup: str, mount_namespace: int) -> None:
        with open(f"{cgroup}/cgroup.procs", "w") as file:
            file.write("0")
        if mount_namespace:
            fd = os.open(f"/proc/{mount_namespace}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            syscalls.setns(fd, syscalls.CLONE_NEWNS)
            os.close(fd)
        syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
        os.write(self._told, b"ready\n")
        while True:
            order = os.read(self._theirs, 64).decode()
            if not order:
                os._exit(0)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            try:
                answer = self._orders[order]()
            except OSError as exc:
                answer = f"errno {exc.errno}"
            os.write(self._told, answer.encode() + b"\n")

    def order(self, name: str) -> str:
        """Let it do one thing, and return what it says."""
        os.write(self._ours, name.encode())
        return self._answer()

    def _answer(self) -> str:
        assert select.select([self._answers], [], [], patient(SECONDS))[0], "no answer"
        return os.read(self._answers, 4096).decode().strip()

    def device(self, path: str) -> str:
        """Return what is mounted at a path in its namespace."""
        with open(f"/proc/{self.pid}/mountinfo", "rb") as file:
            top = parse_mount_table(file.read()).top_at(path)
        return str(top.device) if top else ""

    def end(self) -> None:
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        for fd in (self._theirs, self._ours, self._answers, self._told):
            os.close(fd)


@contextmanager
def intruder(
    cgroup: str, orders: dict[str, Order], *, mount_namespace: int = 0
) -> Iterator[Intruder]:
    """Give such a process for the length of a ``with`` block."""
    process = Intruder(cgroup, mount_namespace, orders)
    try:
        yield process
    finally:
        process.end()


def move_into(root: str, directory: str, fill: Callable[[str], None]) -> str:
    """Make a tmpfs with one directory the root of this namespace."""
    syscalls.mount("intruder", root, "tmpfs", 0)
    os.mkdir(f"{root}{directory}")
    os.mkdir(f"{root}/old")
    fill(f"{root}{directory}")
    os.chdir(root)
    syscalls.pivot_root(".", "old")
    os.chdir("/")
    syscalls.umount2("/old", syscalls.MNT_DETACH)
    return "moved"


def read_file(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()
