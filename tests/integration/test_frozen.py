"""A node that is paused, with all that runs on it, and goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from tests.lab import in_lab, pod_with_container

pytestmark = pytest.mark.kernel

DEADLINE = 20.0
HUNG_SECONDS = 3.0
FROZEN_SECONDS = 6.0
"""Longer than all that is waited for here."""
SETTINGS = {
    "probe.interval_seconds": "0.3",
    "probe.deadline_seconds": "1",
    "hung.after_seconds": str(HUNG_SECONDS),
    "hung.abort": "true",
    "hung.abort_confirmations": "1",
    "dead_sources.detach": "true",
    "dead_sources.grace_seconds": "3",
}


def of_daemon(pid: int) -> set[int]:
    """Return the daemon and all of its children."""
    parents: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


@contextmanager
def frozen(daemon: DaemonProcess) -> Iterator[None]:
    """Stop the daemon and its workers for longer than any deadline, servers are the test's."""
    pids = of_daemon(daemon.pid)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(FROZEN_SECONDS)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@in_lab(timeout=90)
def test_nobody_is_called_hung_who_was_frozen_too(node: DemoNode) -> None:
    sources = [node.add_source(name) for name in ("one", "two")]
    containers = [pod_with_container(node, source, source.name)[1] for source in sources]
    paused, killed = sources
    with DaemonProcess(node, settings=SETTINGS) as daemon:
        daemon.wait_until_watching(4)
        paused.pause()
        time.sleep(0.5)  # a question is under way by now
        with frozen(daemon):
            killed.kill()
        # It runs for a moment before the server does.
        time.sleep(0.5)
        paused.resume()
        killed.restart()
        for container in containers:
            container.wait_until_readable("/data/hello", DEADLINE)
        daemon.wait_until_watching(4)
        log = daemon.log()
        for event in ("event=hung", "timed_out", "event=abort", "source_detached"):
            assert event not in log, log
        assert "event=was_frozen" in log


@in_lab(timeout=90)
def test_who_hangs_after_it_is_hung_after_the_usual_time(node: DemoNode) -> None:
    source = node.add_source("one")
    pod_with_container(node, source, "one")
    settings = {**SETTINGS, "hung.abort": "false"}
    with DaemonProcess(node, settings=settings) as daemon:
        daemon.wait_until_watching(2)
        with frozen(daemon):
            source.pause()
        daemon.wait_for(lambda d: {b["verdict"] for b in d["binds"]} == {"hung"})
        source.resume()
        daemon.wait_until_watching(2)
