"""Time from SIGKILL to the line in the log that says that the server is gone.

    python -m tests.bench notice      (as root; four minutes)

By the server's pidfd; so too where the kernel does not tell which process serves what; and by
neither: a server in a process that the daemon cannot see, as in a virtual machine or above its
own pid namespace, is found dead by the sweep alone, which asks each connection every
``probe.interval_seconds`` (here the default, ``sweep_ms``).  ``kernel_ms`` is what passes before the
kernel tells anybody: a process has to be taken apart first.
"""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

from fusewatchd.config.settings import ProbeSettings
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodVolume
from fusewatchd.demo.node.sources import Source
from fusewatchd.demo.node.world import PrivateWorld
from fusewatchd.linux import syscalls
from tests.bench.opener import REST_SECONDS
from tests.bench.recovery import SETTLE_SECONDS, summary
from tests.bench.rows import Row, measured

DEADLINE_SECONDS = 20.0
SWEEP_SECONDS = ProbeSettings().interval_seconds


@dataclass(frozen=True, slots=True)
class Case:
    """How much the daemon can know of servers."""

    name: str
    kills: int
    as_old_kernel: bool = False
    is_hidden: bool = False


CASES = (
    Case("by pidfd", 30),
    Case("as on an older kernel", 30, as_old_kernel=True),
    Case("by the sweep", 12, is_hidden=True),
)


def rows(*, is_quick: bool) -> Iterator[Row]:
    """Measure each case; fewer deaths when it has to be quick."""
    for case in CASES:
        yield from measured(lambda world, c=case: _measure(world, c, is_quick=is_quick))


def _measure(world: PrivateWorld, case: Case, *, is_quick: bool) -> Row:
    """Kill a server again and again; return how soon the log says so."""
    taken: list[float] = []
    told: list[float] = []
    chance = random.Random(1)
    with DemoNode(world) as node:
        source = node.add_source("one")
        node.add_pod("p", [PodVolume("v", source)], [])
        if case.is_hidden:
            _hide(source)
        with DaemonProcess(node, as_old_kernel=case.as_old_kernel) as daemon:
            for _ in range(case.kills // 3 if is_quick else case.kills):
                daemon.wait_until_watching(1, 30)
                time.sleep(SETTLE_SECONDS)  # the new server is known by then
                if case.is_hidden:
                    _check_hidden(daemon)
                    time.sleep(chance.uniform(0, SWEEP_SECONDS))  # anywhere in its period
                with open(daemon.log_path, encoding="utf-8") as log:
                    log.seek(0, os.SEEK_END)
                    with syscalls.closing_fd(os.pidfd_open(source.server.pid)) as pidfd:
                        killed = time.monotonic()
                        # Not by the source, which waits until it is reaped.
                        os.kill(source.server.pid, signal.SIGKILL)
                        select.select([pidfd], [], [], DEADLINE_SECONDS)
                        told.append(time.monotonic() - killed)
                    end = killed + DEADLINE_SECONDS
                    while "FUSE server is gone" not in log.read() and time.monotonic() < end:
                        time.sleep(REST_SECONDS)
                    taken.append(time.monotonic() - killed)
                source.stop()
                source.launch()
                if case.is_hidden:
                    _hide(source)
                source.wait_ready()
    row: Row = {"bench": "notice", "case": case.name, **summary(taken)}
    row |= {"kernel_ms": summary(told)["median_ms"]}
    return row | ({"sweep_ms": SWEEP_SECONDS * 1000} if case.is_hidden else {})


def _hide(source: Source) -> None:
    """Cover what /proc tells of the server; the kernel uncovers it when the process ends."""
    syscalls.mount("hidden", f"/proc/{source.server.pid}", "tmpfs", 0, "size=4k,mode=0555")


def _check_hidden(daemon: DaemonProcess) -> None:
    (served,) = daemon.status()["servers"]
    if served["processes"]:
        raise RuntimeError(f"the server was seen: {served['processes']}")
