"""The same crash twice: without a keeper pods see errors, with one they see a pause."""

from __future__ import annotations

import time
from collections.abc import Mapping

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.container_spec import CgroupKind
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.sources import Source

OUTAGE_SECONDS = 0.5
HELD_SECONDS = 10.0
DEADLINE_SECONDS = 15.0
HOLD = {"keeper.hold.drivers": '["*"]'}


def compare(
    node: DemoNode,
    source: Source,
    containers: Mapping[str, Container],
    path: str,
    settings: Mapping[str, str],
) -> bool:
    """Count the opens that fail in all pods, and print both; False where a pod stays broken."""
    print("\nThe same crash twice, as processes see it that open a file all the time:", flush=True)
    binds = 2 * len(containers) + 1
    with DaemonProcess(node, settings=dict(settings)) as daemon:
        daemon.wait_until_watching(binds)
        if not _crash("without the keeper", source, containers, path):
            return False
        daemon.wait_until_watching(binds)
    problem = _problem(containers)
    if problem:
        print(f"  the keeper is left out: {problem}", flush=True)
        return True
    with DaemonProcess(node, settings={**settings, **HOLD}) as daemon:
        daemon.wait_until_watching(binds)
        problem = _wait_until_held(daemon)
        if problem:
            print(f"  the keeper is left out: {problem}", flush=True)
            return True
        return _crash("with the keeper", source, containers, path)


def _problem(containers: Mapping[str, Container]) -> str:
    """Say why a caller looks like a process of the host; empty: it does not."""
    is_real = all(one.cgroup_kind is CgroupKind.KERNEL for one in containers.values())
    return "" if is_real else "no cgroups can be made here for the pods"


def _wait_until_held(daemon: DaemonProcess) -> str:
    """Wait until the connection is held; return why it is not, empty when it is."""
    end, why = time.monotonic() + HELD_SECONDS, "it does not say why"
    while time.monotonic() < end:
        keeper = daemon.status().get("keeper") or {}
        if keeper.get("held"):
            return ""
        reasons = [one["detail"] or one["reason"] for one in keeper.get("not_held", ())]
        why = ", ".join(reasons) or keeper.get("problem") or why
        time.sleep(0.05)
    return why


def _crash(when: str, source: Source, containers: Mapping[str, Container], path: str) -> bool:
    for container in containers.values():
        container.start_open_loop(path, 0.001)
    killed = source.kill()
    time.sleep(OUTAGE_SECONDS)
    source.restart()
    is_fine = True
    for name, container in containers.items():
        end = time.monotonic() + DEADLINE_SECONDS
        while not _works(container, path, killed + OUTAGE_SECONDS):
            if time.monotonic() > end:
                print(f"  {name} IS STILL BROKEN", flush=True)
                is_fine = False
                break
            time.sleep(0.02)
    seen = [container.stop_open_loop(path) for container in containers.values()]
    refused, longest = sum(one.refused for one in seen), max(one.longest for one in seen)
    print(
        f"  {when + ':':<20} {refused:>6} opens failed, the longest took {longest:.2f} s",
        flush=True,
    )
    return is_fine


def _works(container: Container, path: str, after: float) -> bool:
    """Return True when the last attempt was well, and began after the new server was there."""
    report = container.open_loop(path)
    before = report.attempts
    time.sleep(0.01)
    report = container.open_loop(path)
    last = report.transitions[-1]
    return report.attempts > before and last.errno == 0 and time.monotonic() > after
