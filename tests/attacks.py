"""What strangers can multiply on a node, all at once: a stage for tests and benchmarks.

One pod, root in a user namespace of its own, has processes full of descriptors, a namespace full of
mounts, binds with long names, and targets on a path that hangs.  One user mounts FUSE file systems.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from fusewatchd.demo.node import cgroups
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume
from fusewatchd.demo.node.sources import ServerOptions, Source
from fusewatchd.linux import syscalls
from tests.intruder import Intruder, Order, intruder

_PR_SET_PDEATHSIG = 1
_CHUNK = 500
"""Made by one order, which has some seconds."""
_LONG_NAME = "\n" * 8
"""Four times as long in mountinfo."""
DEADLINE = 60.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is of everything."""

    descriptors: int
    mounts: int
    """In one namespace of the pod."""
    fuse_mounts: int
    """Of the user."""
    long_binds: int
    hanging: int
    """Targets behind a directory that hangs."""
    levels: int = 400
    """Of the path of each long bind."""


NONE = Size(descriptors=0, mounts=0, fuse_mounts=0, long_binds=0, hanging=0)
SMALL = Size(descriptors=20_000, mounts=3_000, fuse_mounts=1_000, long_binds=50, hanging=8)
FULL = Size(descriptors=1_000_000, mounts=99_000, fuse_mounts=15_000, long_binds=1_000, hanging=40)
"""``fs.mount-max`` is 100,000 for each namespace, proc_sys_fs(5)."""


@dataclass(frozen=True, slots=True)
class Attackers:
    """Who attacks, while the ``with`` block of ``attackers`` lasts."""

    pod: DemoPod
    source: Source
    """Of the pod's volume that is bound everywhere; its crash is part of the attack."""

    def crash(self) -> None:
        """Have the server of the pod's own volume end and come back."""
        self.source.kill()
        self.source.restart()


@contextmanager
def attackers(node: DemoNode, size: Size) -> Iterator[Attackers]:
    """Begin every attack; a second later all of it is there."""
    shared = node.add_source("shared")
    behind = node.add_source(
        "behind",
        files={f"!{number}/none": "" for number in range(size.hanging)} | {"old/none": ""},
        options=ServerOptions(holds_only="LOOKUP", attr_timeout=0.0),
    )
    volumes = [PodVolume("x", shared), PodVolume("y", behind)]
    mounts = [PodMount("x", "/x"), PodMount("y", "/y"), PodMount("x", "/work")]
    pod = node.add_pod("attacker", volumes, mounts)
    container = node.start_container(pod)
    directory = container._cgroup_directory
    assert directory is not None, "there are no cgroups here"
    with ExitStack() as stack:
        of_user = _user_cgroup(node, stack)
        if size.descriptors:
            _start(stack, directory, container, _with_descriptors(size))
        if size.mounts:
            _start(stack, directory, container, _with_mounts(size))
        if size.long_binds:
            _start(stack, directory, container, _with_long_names(size))
        if size.hanging:
            _start(stack, directory, container, _behind_what_hangs(size))
        if size.fuse_mounts:
            _start(stack, of_user, None, _with_fuse_mounts(node, size))
        behind.hold()
        stack.callback(behind.release)
        # The kernel believes what it knows of a path for a second, and nothing hangs there.
        time.sleep(1.2)
        yield Attackers(pod, shared)


_Attack = tuple[dict[str, Order], int]
"""Orders ``begin`` and ``more``, and how often ``more`` has to be given."""


def _start(stack: ExitStack, cgroup: str, container: Container | None, attack: _Attack) -> Intruder:
    orders, times = attack
    inside = container.pid if container is not None else 0
    member = stack.enter_context(intruder(cgroup, orders, mount_namespace=inside))
    for order in ["begin", *["more"] * times]:
        answer = member.order(order)
        assert answer == "done", f"{order}: {answer}"
    return member


def _user_cgroup(node: DemoNode, stack: ExitStack) -> str:
    directory = cgroups.create(f"/{node.name}/user.slice/user-1000.slice")
    assert directory is not None, "there are no cgroups here"

    def remove() -> None:
        at = directory
        while cgroups.remove(at):
            at = os.path.dirname(at)

    stack.callback(remove)
    return directory


def _in_chunks(count: int, make: Callable[[int], None]) -> tuple[Order, int]:
    """Return an order that makes the next ones, and how often it has to be given."""
    made = iter(range(count))

    def more() -> str:
        for _, number in zip(range(_CHUNK), made, strict=False):
            make(number)
        return "done"

    return more, -(-count // _CHUNK)


def _tmpfs(path: str) -> Order:
    def begin() -> str:
        syscalls.mount("attack", path, "tmpfs", 0)
        os.chdir(path)
        return "done"

    return begin


def _take_all_descriptors() -> int:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def _with_descriptors(size: Size) -> _Attack:
    """Processes as full as they may be; descriptors of one file cost a node the least."""
    most = min(_take_all_descriptors() - 100, size.descriptors)

    def begin() -> str:
        _take_all_descriptors()
        for _ in range(most):
            os.dup(1)
        return "done"

    def more() -> str:
        parent = os.getpid()
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
            while os.getppid() == parent:
                signal.pause()
            os._exit(0)
        return "done"

    return {"begin": begin, "more": more}, size.descriptors // most - 1


def _bind_volume(number: int) -> None:
    """Bind the pod's volume once more, below the working directory."""
    os.mkdir(str(number))
    syscalls.mount("/x", str(number), None, syscalls.MS_BIND)


def _with_mounts(size: Size) -> _Attack:
    more, times = _in_chunks(size.mounts, _bind_volume)
    return {"begin": _tmpfs("/work"), "more": more}, times


def _with_long_names(size: Size) -> _Attack:
    def begin() -> str:
        _tmpfs("/work")()
        for _ in range(size.levels):
            os.mkdir(_LONG_NAME)
            os.chdir(_LONG_NAME)
        return "done"

    more, times = _in_chunks(size.long_binds, _bind_volume)
    return {"begin": begin, "more": more}, times


def _with_fuse_mounts(node: DemoNode, size: Size) -> _Attack:
    # As udev makes it; where it is root's alone nobody could begin.
    device, place = f"{node.lab}/fuse", f"{node.lab}/attack"
    os.mknod(device, stat.S_IFCHR, os.makedev(10, 229))
    os.chmod(device, 0o666)
    os.mkdir(place)

    def begin() -> str:
        _take_all_descriptors()
        return _tmpfs(place)()

    def mount(number: int) -> None:
        os.mkdir(str(number))
        fd = os.open(device, os.O_RDWR)
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        syscalls.mount("attack", str(number), "fuse", syscalls.MS_NOSUID, options)

    more, times = _in_chunks(size.fuse_mounts, mount)
    return {"begin": begin, "more": more}, times


def _behind_what_hangs(size: Size) -> _Attack:
    """The pod's volume at paths that only a server of its own can find."""

    def begin() -> str:
        for number in range(size.hanging):
            syscalls.mount("/x", f"/y/!{number}", None, syscalls.MS_BIND)
        # What was inherited is locked where it is; a copy is not.
        syscalls.mount("/y", "/work", None, syscalls.MS_BIND | syscalls.MS_REC)
        os.chdir("/work")
        syscalls.pivot_root(".", "old")
        os.chdir("/")
        syscalls.umount2("/old", syscalls.MNT_DETACH)
        return "done"

    return {"begin": begin}, 0


def crashes(
    source: Source, container: Container, times: int, attack: Callable[[], None], pause: float = 0.0
) -> list[float]:
    """Return the seconds from each new source of a victim to its content in the container."""
    taken = []
    for _ in range(times):
        attack()
        source.kill()
        ready = source.restart()
        container.wait_until_readable("/data/hello", DEADLINE)
        taken.append(time.monotonic() - ready)
        time.sleep(pause)
    return taken


def nothing() -> None:
    """Attack nobody."""
