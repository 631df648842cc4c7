"""The log in a real systemd-journald of our own, read back by journalctl as a person does."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.timeouts import patient
from fusewatchd.linux import syscalls
from fusewatchd.log import JOURNAL_SOCKET, JournalSink, Log
from tests.lab import in_lab, pod_with_container

pytestmark = pytest.mark.kernel

JOURNALD = "/usr/lib/systemd/systemd-journald"
DIRECTORY = "/run/log/journal"


@contextmanager
def journald() -> Iterator[None]:
    """Run a journald that sees nothing of this machine's; to be used in a private world."""
    for path in ("/run", "/var/log"):
        syscalls.mount("journal", path, "tmpfs", 0, "mode=755")
    os.makedirs("/run/systemd")
    process = subprocess.Popen([JOURNALD], stdin=subprocess.DEVNULL)
    try:
        end = time.monotonic() + patient(20)
        while not os.path.exists(JOURNAL_SOCKET):
            assert process.poll() is None, "journald ended"
            assert time.monotonic() < end, "journald is not ready"
            time.sleep(0.01)
        yield
    finally:
        process.kill()
        process.wait()
        for path in ("/var/log", "/run"):
            syscalls.umount2(path, syscalls.MNT_DETACH)


def entries(*matches: str, at_least: int = 1) -> list[dict[str, Any]]:
    """Return what journalctl finds; journald takes its time."""
    command = ["journalctl", "-D", DIRECTORY, "-o", "json", "--all", "--no-pager", *matches]
    end = time.monotonic() + patient(20)
    while True:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if len(found) >= at_least or time.monotonic() > end:
            return found
        time.sleep(0.05)


@in_lab(timeout=90)
def test_fields_are_what_journalctl_finds(node: DemoNode) -> None:
    with journald():
        log = Log(JournalSink())
        log.warning("it is stale", event="stale", volume=("pv-1", "pv-2"), pod="web", binds=2)
        log.info("line\nbreaks, \x1b[31m and =", event="other", volume="pv-3\nPRIORITY=0")
        log.info("large", event="large", **{f"field{n}": "é" * 250 for n in range(900)})
        for volume in ("pv-1", "pv-2"):
            (entry,) = entries(f"FUSEWATCHD_VOLUME={volume}")
            assert entry["FUSEWATCHD_VOLUME"] == ["pv-1", "pv-2"]
            assert (entry["FUSEWATCHD_POD"], entry["FUSEWATCHD_BINDS"]) == ("web", "2")
            assert (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) == ("4", "fusewatchd")
            assert entry["MESSAGE"].startswith("pv-1, pv-2 (web): it is stale")
        (escaped,) = entries("FUSEWATCHD_EVENT=other")
        assert escaped["PRIORITY"] == "6"
        assert escaped["FUSEWATCHD_VOLUME"] == "pv-3\\x0aPRIORITY=0"
        # Larger than a datagram: as a sealed file.
        (large,) = entries("FUSEWATCHD_EVENT=large")
        assert large["FUSEWATCHD_FIELD899"] == "é" * 250
        log.close()


@in_lab(timeout=120)
def test_a_recovery_is_told_in_five_lines_found_by_its_volume(node: DemoNode) -> None:
    with journald():
        source, other = node.add_source("one"), node.add_source("other")
        pod, container = pod_with_container(node, source, "web")
        pod_with_container(node, other, "idle")
        volume = "v"
        with DaemonProcess(node, settings={"log.format": "journal"}) as daemon:
            daemon.wait_until_watching(4)
            daemon.wait_for(lambda d: all(s["processes"] for s in d["servers"]))
            source.kill()
            daemon.wait_for(lambda d: d["incidents"])
            source.restart()
            container.wait_until_readable("/data/hello", 20)
            daemon.wait_for(lambda d: not d["incidents"])
            story = entries(f"FUSEWATCHD_VOLUME={volume}", at_least=5)
            by_pod = entries(f"FUSEWATCHD_POD_UID={pod.uid}", at_least=5)
        events = [entry["FUSEWATCHD_EVENT"] for entry in story]
        assert events == ["server_gone", "stale", "source_back", "replaced", "recovered"]
        assert [entry["FUSEWATCHD_EVENT"] for entry in by_pod] == events
        first = story[0]
        assert (
            first["FUSEWATCHD_SERVER_PID"] == str(source.server.pid) or first["FUSEWATCHD_SERVER"]
        )
        assert {entry["FUSEWATCHD_SOURCE"] for entry in story if "FUSEWATCHD_SOURCE" in entry} == {
            source.path
        }
