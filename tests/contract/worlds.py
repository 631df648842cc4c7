"""Two worlds for one suite: the kernel that runs here, and the fake one.

Both do the same with mounts, by the same names; file systems are tmpfs in the place of FUSE.
The engine looks at devices and never at file systems, and these answer even when "dead".
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import pytest

from fusewatchd.demo.node.world import PrivateWorld
from fusewatchd.linux import statmount, syscalls
from fusewatchd.linux.mount_kernel import MountKernel, Way
from fusewatchd.linux.private_namespace import mount_flags
from fusewatchd.model.actions import NamespaceRef
from fusewatchd.model.mount_table import MountTable, parse_mount_table
from fusewatchd.model.mounts import Device, Mount
from tests.fakes.kernel import FakeKernel
from tests.fakes.machine import Machine
from tests.fakes.propagation import Kind
from tests.features import best_way
from tests.lab import real_kernel, run_in_world

_PR_SET_PDEATHSIG = 1


class World(Protocol):
    """What everybody but the engine does on a node; each method raises ``OSError``."""

    lab: str
    """A shared mount, below which all is made."""

    def kernel(self, way: Way) -> MountKernel: ...
    def descriptor_count(self) -> int: ...

    def make_directory(self, path: str) -> None: ...
    def make_file(self, path: str, content: str = "") -> None: ...
    def make_link(self, path: str, content: str) -> None: ...
    def make_fifo(self, path: str) -> None: ...
    def read(self, path: str) -> str: ...
    def device_at(self, path: str) -> Device: ...
    def exists(self, path: str) -> bool: ...
    def remove(self, path: str) -> None: ...

    def described(self) -> list[Mount]: ...
    def table(self) -> MountTable: ...
    def mount_new(self, path: str, content: str = "") -> Device: ...
    def mount_plain(self, path: str) -> None: ...
    def bind(self, source: str, target: str, *, recursive: bool = False) -> None: ...
    def remount(self, path: str, options: str) -> None: ...
    def set_propagation(self, path: str, kind: Kind, *, recursive: bool = False) -> None: ...
    def unmount(self, path: str) -> None: ...
    def detach(self, path: str) -> None: ...

    def new_namespace(self) -> NamespaceRef: ...
    def end_namespace(self, ref: NamespaceRef) -> None: ...
    def inside(self, ref: NamespaceRef | None) -> AbstractContextManager[None]: ...
    def pivot(self, path: str) -> None: ...


class FakeWorld(Machine):
    """The fake machine with a shared mount to work below."""

    lab = "/lab"

    def __init__(self) -> None:
        super().__init__()
        self.make_directory(self.lab)
        self.mount_new(self.lab)
        self.set_propagation(self.lab, Kind.SHARED)

    def kernel(self, way: Way) -> MountKernel:
        return FakeKernel(self, way)

    def descriptor_count(self) -> int:
        return len(self.descriptors)


class _Timeless:
    """A kernel whose clock stands still: what a busy machine is late with is no failure."""

    def __init__(self, kernel: MountKernel) -> None:
        self._kernel = kernel
        self.way = kernel.way

    def now(self) -> float:
        return 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)


class RealWorld:
    """The running kernel, in a private world that is thrown away afterwards."""

    def __init__(self, world: PrivateWorld) -> None:
        self.lab = world.lab
        self._making = f"{world.lab}/.making"
        os.mkdir(self._making)
        self.bind(self._making, self._making)
        self.set_propagation(self._making, Kind.PRIVATE)
        self._host = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self._proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._kernels: dict[Way, MountKernel] = {}

    def close(self) -> None:
        self.unmount(self._making)

    def kernel(self, way: Way) -> MountKernel:
        if way not in self._kernels:
            self._kernels[way] = _Timeless(real_kernel(way))
        return self._kernels[way]

    def descriptor_count(self) -> int:
        return len(os.listdir("/proc/self/fd"))

    # ---------------------------------------------------------------------------- files

    def make_directory(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)

    def make_file(self, path: str, content: str = "") -> None:
        with open(path, "x") as file:
            file.write(content)

    def make_link(self, path: str, content: str) -> None:
        os.symlink(content, path)

    def make_fifo(self, path: str) -> None:
        os.mkfifo(path)

    def read(self, path: str) -> str:
        with open(path) as file:
            return file.read()

    def device_at(self, path: str) -> Device:
        status = os.stat(path)
        return Device(os.major(status.st_dev), os.minor(status.st_dev))

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def remove(self, path: str) -> None:
        try:
            os.rmdir(path)
        except NotADirectoryError:
            os.unlink(path)

    # --------------------------------------------------------------------------- mounts

    def described(self) -> list[Mount]:
        if statmount.is_supported():
            mounts = [statmount.statmount(unique_id) for unique_id in statmount.listmount()]
        else:
            # By descriptor: in a container of ours there is no /proc.
            fd = os.open("self/mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
            with open(fd, "rb") as file:
                mounts = list(parse_mount_table(file.read()))
        return mounts

    def table(self) -> MountTable:
        return MountTable.of(self.described())

    def mount_new(self, path: str, content: str = "") -> Device:
        # Filled where nobody looks: once it is in its place another mount may cover the path.
        syscalls.mount("source", self._making, "tmpfs", 0, "size=64k")
        try:
            os.mkdir(f"{self._making}/inside")
            self.make_file(f"{self._making}/hello", content)
            self.bind(self._making, path)
            return self.device_at(self._making)
        finally:
            self.unmount(self._making)

    def mount_plain(self, path: str) -> None:
        syscalls.mount("plain", path, "tmpfs", 0, "size=64k")

    def bind(self, source: str, target: str, *, recursive: bool = False) -> None:
        flags = syscalls.MS_BIND | (syscalls.MS_REC if recursive else 0)
        syscalls.mount(source, target, None, flags)

    def remount(self, path: str, options: str) -> None:
        flags = syscalls.MS_BIND | syscalls.MS_REMOUNT | mount_flags(options)
        syscalls.mount(None, path, None, flags)

    def set_propagation(self, path: str, kind: Kind, *, recursive: bool = False) -> None:
        flags = {
            Kind.SHARED: syscalls.MS_SHARED,
            Kind.PRIVATE: syscalls.MS_PRIVATE,
            Kind.SLAVE: syscalls.MS_SLAVE,
        }[kind]
        syscalls.mount(None, path, None, flags | (syscalls.MS_REC if recursive else 0))

    def unmount(self, path: str) -> None:
        syscalls.umount2(path, syscalls.UMOUNT_NOFOLLOW)

    def detach(self, path: str) -> None:
        syscalls.umount2(path, syscalls.UMOUNT_NOFOLLOW | syscalls.MNT_DETACH)

    # ----------------------------------------------------------------------- namespaces

    def new_namespace(self) -> NamespaceRef:
        ready, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
                syscalls.unshare(syscalls.CLONE_NEWNS)
                os.write(write_end, b".")
                signal.pause()
            finally:
                os._exit(1)
        os.close(write_end)
        with os.fdopen(ready, "rb") as reader:
            assert reader.read(1) == b".", "no namespace"
        with open(os.open(f"{pid}/stat", os.O_RDONLY, dir_fd=self._proc), "rb") as file:
            start_time = int(file.read().rpartition(b")")[2].split()[19])
        return NamespaceRef(os.stat(f"{pid}/ns/mnt", dir_fd=self._proc).st_ino, pid, start_time)

    def end_namespace(self, ref: NamespaceRef) -> None:
        os.kill(ref.pid, signal.SIGKILL)
        os.waitpid(ref.pid, 0)

    @contextmanager
    def inside(self, ref: NamespaceRef | None) -> Iterator[None]:
        # Whoever disturbs the engine must leave it in the namespace that it was in.
        here = os.open("self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        there = self._host
        if ref is not None:
            there = os.open(f"{ref.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        try:
            syscalls.setns(there, syscalls.CLONE_NEWNS)
            yield
        finally:
            syscalls.setns(here, syscalls.CLONE_NEWNS)
            os.close(here)
            if ref is not None:
                os.close(there)

    def pivot(self, path: str) -> None:
        with syscalls.closing_fd(os.open("/", os.O_PATH | os.O_CLOEXEC)) as old_root:
            os.chdir(path)
            syscalls.pivot_root(".", ".")
            os.chdir(old_root)
            # Its peers on the host must not see the umount that follows.
            syscalls.mount(None, ".", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
            syscalls.umount2(".", syscalls.MNT_DETACH)
        os.chdir("/")


Body = Callable[[World], None]


def in_world(kind: str, body: Body, timeout: float = 100.0) -> None:
    """Run a test's body in a fresh world of this kind."""
    if kind == "fake":
        body(FakeWorld())
    else:

        def in_real(private: PrivateWorld) -> None:
            world = RealWorld(private)
            body(world)
            world.close()

        run_in_world(in_real, timeout=timeout)


WAYS = pytest.mark.parametrize("way", Way, ids=lambda way: way.value)
REAL_WAYS = pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=[] if way is best_way() else [pytest.mark.slow]) for way in Way],
    ids=lambda way: way.value,
)
"""On the real kernel the older ways are slow: the quick tests have them on the fake one."""
WORLDS = pytest.mark.parametrize("kind", ["fake", pytest.param("real", marks=pytest.mark.kernel)])
FAKE_WORLD = pytest.mark.parametrize("kind", ["fake"])
"""For what only the fake kernel can tell or do."""
