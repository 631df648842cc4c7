"""Recoveries of one pod while a stranger multiplies what he can, and all of it at once.

    python -m tests.bench attack       (as root; with --quick in small)

``quiet_ms`` and ``attacked_ms`` are medians from the new source to the content in the container;
``most_ms`` is the longest of ten.  ``status_ms`` is the longest answer of ``status`` meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, replace
from statistics import median

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodMount, PodVolume
from fusewatchd.demo.node.world import PrivateWorld
from tests.attacks import FULL, NONE, SMALL, Attackers, Size, attackers, crashes, nothing
from tests.bench.rows import Row, measured
from tests.storm import usage

CRASHES = 10
ATTACK_SECONDS = 60.0


def rows(*, is_quick: bool) -> Iterator[Row]:
    """Measure each attack by itself, and then all at once."""
    size = SMALL if is_quick else FULL
    kinds = [f.name for f in fields(Size) if f.name != "levels"]
    cases = {kind: replace(NONE, **{kind: getattr(size, kind)}) for kind in kinds}
    for case, of in {**cases, "all": size}.items():
        yield from measured(lambda world, c=case, s=of: _measure(world, c, s, is_quick=is_quick))


def _measure(world: PrivateWorld, case: str, size: Size, *, is_quick: bool) -> Row:
    with DemoNode(world) as node:
        source = node.add_source("victim")
        pod = node.add_pod("victim", [PodVolume("v", source)], [PodMount("v", "/data")])
        container = node.start_container(pod)
        with DaemonProcess(node) as daemon:
            daemon.wait_until_watching(2)
            quiet = crashes(source, container, CRASHES, nothing)
            with attackers(node, size) as attack:
                before, began = usage(daemon.pid), time.monotonic()
                answers: list[float] = []

                def step(of: Attackers = attack) -> None:
                    asked = time.monotonic()
                    with suppress(RuntimeError):  # no answer in time, which the number says
                        daemon.status()
                    answers.append(time.monotonic() - asked)
                    of.crash()

                pause = 0.0 if is_quick else ATTACK_SECONDS / CRASHES
                taken = crashes(source, container, CRASHES, step, pause)
                after, seconds = usage(daemon.pid), time.monotonic() - began
                document = daemon.status()
            return {
                "bench": "attack",
                "case": case,
                "recoveries": len(taken),
                "quiet_ms": _ms(median(quiet)),
                "attacked_ms": _ms(median(taken)),
                "most_ms": _ms(max(taken)),
                "status_ms": _ms(max(answers)),
                "cpu_percent": round(100 * (after.cpu_seconds - before.cpu_seconds) / seconds),
                "rss_mib": round(after.total_rss / 2**20),
                "owners": len(document["refused_owners"]),
                "gaps": len(document["gaps"]),
                "load": round(os.getloadavg()[0], 1),
            }


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)
