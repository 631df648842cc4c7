"""What it costs when other things on the node are mounted and unmounted.

    python -m tests.bench changes      (as root)

CPU of the daemon and all its workers for one mount or unmount that is nobody's business, on a node
with so many mounts already, at a pace of 20 a second; and for 1,000 starts of containers a minute:
each a process in a mount namespace of its own with ten mounts, which ends again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.world import PrivateWorld
from fusewatchd.linux import syscalls
from tests.bench.idle import SETTLE_SECONDS, use_of
from tests.bench.rows import Row, measured
from tests.bench.stage import Layout, staged

PER_SECOND = 20.0
STARTS_PER_SECOND = 1000 / 60
SIZES = (100, 5000, 20_000)


def rows(*, is_quick: bool) -> Iterator[Row]:
    """Measure with mount events of fanotify and without."""
    seconds = 10.0 if is_quick else 60.0
    for size in SIZES[:2] if is_quick else SIZES:
        for as_old_kernel in (False, True):
            yield from measured(
                lambda world, s=size, old=as_old_kernel: _changes(world, s, seconds, old)
            )
    yield from measured(lambda world: _starts(world, seconds))


def _changes(world: PrivateWorld, size: int, seconds: float, as_old_kernel: bool) -> Row:
    with DemoNode(world) as node, staged(node, Layout(10, 1, 0, other_mounts=size)) as stage:
        place = os.path.join(node.lab, "many", "changing")
        os.mkdir(place)

        def change(number: int) -> None:
            if number % 2:
                syscalls.umount2(place, syscalls.MNT_DETACH)
            else:
                syscalls.mount(os.path.dirname(place), place, None, syscalls.MS_BIND)

        with DaemonProcess(node, as_old_kernel=as_old_kernel) as daemon:
            daemon.wait_until_watching(stage.layout.binds, 60)
            cpu, count = _spent(daemon.pid, seconds, PER_SECOND, change)
    case = "polling mountinfo" if as_old_kernel else "fanotify"
    return {
        "bench": "changes", "case": case, "mounts": size, "changes": count,
        "cpu_ms_each": round(cpu / count * 1e3, 2), "cpu_percent": round(cpu / seconds * 100, 2),
    }  # fmt: skip


def _starts(world: PrivateWorld, seconds: float) -> Row:
    layout = Layout(10, 1, 0, other_mounts=1000)
    with DemoNode(world) as node, staged(node, layout), DaemonProcess(node) as daemon:
        daemon.wait_until_watching(layout.binds, 60)
        cpu, count = _spent(daemon.pid, seconds, STARTS_PER_SECOND, _start_container)
    return {
        "bench": "changes", "case": "container starts", "mounts": 1000, "changes": count,
        "cpu_ms_each": round(cpu / count * 1e3, 2), "cpu_percent": round(cpu / seconds * 100, 2),
    }  # fmt: skip


def _start_container(number: int) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
            for _ in range(10):
                syscalls.mount("x", "/mnt", "tmpfs", 0, "")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def _spent(
    pid: int, seconds: float, per_second: float, change: Callable[[int], None]
) -> tuple[float, int]:
    """Make changes at an even pace; return the CPU seconds beyond idling, and how many."""
    time.sleep(SETTLE_SECONDS)
    before, began = use_of(pid), time.monotonic()
    time.sleep(seconds)
    idle = use_of(pid).cpu_seconds - before.cpu_seconds
    before, began, count = use_of(pid), time.monotonic(), 0
    while (now := time.monotonic()) < began + seconds:
        change(count)
        count += 1
        time.sleep(max(0.0, began + count / per_second - now))
    return max(0.0, use_of(pid).cpu_seconds - before.cpu_seconds - idle), count
