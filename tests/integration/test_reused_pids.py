"""A pid, and what hangs on it, may be another process's by the time it is used."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from fusewatchd.demo.node.node import DemoNode
from fusewatchd.linux import syscalls
from fusewatchd.linux.mount_kernel import Attributes
from fusewatchd.linux.procfs import open_process
from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model.actions import NamespaceRef, Propagation
from fusewatchd.model.mounts import UserNamespaceRef
from tests.features import Feature, best_way, needs
from tests.lab import in_lab, real_kernel

pytestmark = pytest.mark.kernel

LAST_PID = "/proc/sys/kernel/ns_last_pid"
"""Of the pid namespace of who writes it, proc_sys_kernel(5)."""


@contextmanager
def living(prepare: Callable[[], object]) -> Iterator[int]:
    """Give the pid of a process that lives on after ``prepare``."""
    ready, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            prepare()
            os.write(write_end, b".")
            signal.pause()
        finally:
            os._exit(1)
    os.close(write_end)
    try:
        with os.fdopen(ready, "rb") as reader:
            assert reader.read(1) == b".", "the process could not be prepared"
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def with_the_pid_of(old: NamespaceRef, prepare: Callable[[], object]) -> Iterator[None]:
    """Have another process, which began later, under the pid of one that has ended."""
    for _ in range(1000):
        with open(LAST_PID, "w") as file:
            file.write(str(old.pid - 1))
        with living(prepare) as pid, open_process(pid) as process:
            # Times are told in hundredths of a second; that one ended in the same is no case.
            if process.stat()[2] != old.start_time:
                assert pid == old.pid
                yield
                return
    raise AssertionError("no process began later")


def described(pid: int) -> NamespaceRef:
    with open_process(pid) as process:
        start_time = process.stat()[2]
        users = UserNamespaceRef(process.namespace("user"), pid, start_time)
        return NamespaceRef(process.namespace("mnt"), pid, start_time, users=users)


@in_lab()
def test_another_process_with_the_same_pid_and_namespace_is_not_entered(node: DemoNode) -> None:
    kernel = real_kernel(best_way())
    with living(lambda: syscalls.unshare(syscalls.CLONE_NEWNS)) as pid:
        old = described(pid)
        kernel.enter(old)
        kernel.leave()
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    with closing_fd(namespace):
        with pytest.raises(ProcessLookupError):
            kernel.enter(old)
        move = lambda: syscalls.setns(namespace, syscalls.CLONE_NEWNS)  # noqa: E731
        with with_the_pid_of(old, move):
            with pytest.raises(ProcessLookupError):
                kernel.enter(old)
            assert described(old.pid).inode == old.inode, "the namespace itself is the same"


@needs(Feature.FUSE_IDMAP)
@in_lab()
def test_no_mount_gets_the_id_mapping_of_who_has_the_pid_now(node: DemoNode) -> None:
    kernel = real_kernel(best_way())
    tmpfs = os.path.join(node.lab, "tmpfs")
    os.mkdir(tmpfs)
    syscalls.mount("t", tmpfs, "tmpfs", 0)
    with living(lambda: syscalls.unshare(syscalls.CLONE_NEWUSER)) as pid:
        write_maps(pid, "0 100000 65536")
        old = described(pid)
        assert old.users is not None
        assert kernel.idmap_of_users(old.users) == ("0 100000 65536", "0 100000 65536")
        wanted = Attributes("rw", Propagation.PRIVATE, old.users)
        with closing_fd(kernel.copy(tmpfs, "", recursive=False)) as copy:
            os.close(kernel.configure(copy, wanted))
        kept = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    elsewhere = lambda: syscalls.unshare(syscalls.CLONE_NEWUSER)  # noqa: E731
    back = lambda: syscalls.setns(kept, syscalls.CLONE_NEWUSER)  # noqa: E731
    with closing_fd(kept):
        for prepare in (elsewhere, back):
            with with_the_pid_of(old, prepare):
                with suppress(OSError):
                    write_maps(old.pid, "0 300000 65536")
                with (
                    closing_fd(kernel.copy(tmpfs, "", recursive=False)) as copy,
                    pytest.raises(ProcessLookupError),
                ):
                    kernel.configure(copy, wanted)
                with pytest.raises(ProcessLookupError):
                    kernel.idmap_of_users(old.users)
    syscalls.umount2(tmpfs, syscalls.MNT_DETACH)


def write_maps(pid: int, ids: str) -> None:
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(ids)
