"""Storms against the real daemon: what it uses stays bounded, and all is well soon after."""

from __future__ import annotations

import os
import time

import pytest

from fusewatchd.daemon.throttle import LOOP_RATE
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodVolume
from fusewatchd.kube.events import pace
from fusewatchd.linux import syscalls
from fusewatchd.linux.mount_kernel import Way
from fusewatchd.linux.procfs import read_mount_max
from fusewatchd.report.events.event_limit import MAX_PODS
from fusewatchd.report.events.wording import EventKind
from tests.features import needs_way
from tests.lab import in_lab, pod_with_container
from tests.storm import Size, cluster, stage, usage, wait_until_healthy

pytestmark = pytest.mark.kernel

STORM_SECONDS = float(os.environ.get("FUSEWATCHD_STORM_SECONDS", "20"))
"""The whole storm is 120; a sixth of it meets every limit."""
MOST_GROWTH = 64 * 2**20
"""Bytes: what the daemon may need for a storm of 550 binds."""


def table() -> list[str]:
    with open("/proc/self/mountinfo") as file:
        return file.read().splitlines()


@in_lab(timeout=90)
def test_a_spent_budget_is_said_once_and_resumes_by_itself(node: DemoNode) -> None:
    source = node.add_source("one")
    for number in range(8):
        node.add_pod(f"p{number}", [PodVolume("v", source)], [])
    settings = {"recovery.budget_burst": "3", "recovery.budget_per_second": "4"}
    with DaemonProcess(node, settings=settings) as daemon:
        daemon.wait_until_watching(8)
        source.kill()
        source.restart()
        document = daemon.wait_for(lambda d: any(b["refusal"] == "budget" for b in d["binds"]))
        waiting = [b for b in document["binds"] if b["refusal"] == "budget"]
        assert 1 <= len(waiting) <= 5
        assert all(b["retry_at"] for b in waiting)
        daemon.wait_until_watching(8)
        assert daemon.log().count("rate limit of replacements reached") == 1


@pytest.mark.slow
@in_lab(timeout=120)
def test_the_loop_wakes_for_tokens_alone(node: DemoNode) -> None:
    """16 seconds; 52 if only the heartbeat of the loop brought them on."""
    source = node.add_source("one")
    for number in range(9):
        node.add_pod(f"p{number}", [PodVolume("v", source)], [])
    settings = {"recovery.budget_burst": "1", "recovery.budget_per_second": "0.5"}
    settings |= {"probe.interval_seconds": "3600", "look_seconds": "3600"}
    with DaemonProcess(node, settings=settings) as daemon:
        daemon.wait_until_watching(9)
        source.kill()
        source.restart()
        daemon.wait_until_watching(9, 35)


@pytest.mark.slow
@in_lab(timeout=90)
def test_a_loop_that_is_never_left_in_peace_rests(node: DemoNode) -> None:
    source = node.add_source("one")
    for number in range(1000):
        node.add_pod(f"p{number}", [PodVolume("v", source)], [])
    start = time.monotonic()
    with DaemonProcess(node, settings={"probe.interval_seconds": "0.000001"}) as daemon:
        daemon.wait_until_watching(1000)
        time.sleep(20.0)
        share = LOOP_RATE.burst + LOOP_RATE.per_second * (time.monotonic() - start)
        # Threads of its own and the rest of the loop need some as well.
        assert LOOP_RATE.burst / 2 <= usage(daemon.pid).daemon_cpu_seconds <= 1.25 * share


@pytest.mark.slow
@in_lab(timeout=90)
def test_a_source_that_dies_at_once_is_left_alone_until_it_stays(node: DemoNode) -> None:
    size = Size(sources=1, pods=2, containers=0)
    settings = {"recovery.flap_life_seconds": "5", "recovery.flap_limit": "2"}
    with stage(node, size) as scene, DaemonProcess(node, settings=settings) as daemon:
        daemon.wait_until_watching(size.binds)
        scene.flapper.begin(3.0, 0.2, 0.02)
        waiting = {"source_flapping"}
        document = daemon.wait_for(lambda d: {b["refusal"] for b in d["binds"]} == waiting, 30)
        (pause,) = document["flapping_sources"]
        assert pause["source"] == node.sources["s0"].path
        assert pause["in_vain"] > 2
        assert 0 < pause["wait_seconds"] <= 1.2 * 3
        scene.flapper.wait()
        wait_until_healthy(daemon, size)
        assert daemon.log().count("source is flapping") == 1


@pytest.mark.parametrize(
    "way",
    [
        pytest.param("beneath", marks=needs_way(Way.BENEATH)),
        pytest.param("on-top", marks=[pytest.mark.slow, needs_way(Way.ON_TOP)]),
    ],
)
@in_lab(timeout=90)
def test_the_mount_table_is_never_filled_up(node: DemoNode, way: str) -> None:
    """A layer on top is one entry more; what is put beneath takes the place of the old one."""
    source = node.add_source("one")
    for number in range(6):
        node.add_pod(f"p{number}", [PodVolume("v", source)], [])
    ballast = os.path.join(node.lab, "ballast")
    os.mkdir(ballast)
    for _ in range(8):
        syscalls.mount("ballast", ballast, "tmpfs", 0, "size=4k")
    limit = len(table()) + 2
    with DaemonProcess(
        node, way=way, settings={"recovery.max_table_entries": str(limit)}
    ) as daemon:
        daemon.wait_until_watching(6)
        source.kill()
        source.restart()
        if way == "beneath":
            daemon.wait_until_watching(6)
            assert len(table()) == limit - 2
            return
        document = daemon.wait_for(lambda d: d["totals"]["verdicts"]["healthy"] == 2)
        time.sleep(1.0)
        document = daemon.status()
        refused = [b["refusal"] for b in document["binds"] if b["verdict"] == "stale"]
        assert refused == ["table_full"] * 4
        assert len(table()) == limit
        for _ in range(8):
            syscalls.umount2(ballast, syscalls.MNT_DETACH)
        daemon.wait_until_watching(6)
        # All others went unnoticed: it is told of the table, not of each bind.
        assert daemon.log().count("the mount table is full") == 1


def test_the_limit_of_the_kernel_is_read() -> None:
    with open("/proc/sys/fs/mount-max") as file:
        assert read_mount_max() == int(file.read())


def check_storm(node: DemoNode, size: Size, seconds: float, settings: dict[str, str]) -> None:
    quiet = node.add_source("quiet")
    _, container = pod_with_container(node, quiet, "quiet")
    with stage(node, size) as scene, cluster(node) as told:
        with DaemonProcess(node, settings={**told.settings(), **settings}) as daemon:
            daemon.wait_for(lambda d: d["pods_known"], 30)
            daemon.wait_until_watching(size.binds + 2, 60)
            entries, before, start = len(table()), usage(daemon.pid), time.monotonic()
            scene.flapper.begin(seconds, 1.0, 0.3)
            # One that crashes once has its turn in the middle of it all.
            time.sleep(seconds / 2)
            quiet.kill()
            quiet.restart()
            container.wait_until_readable("/data/hello", 30)
            rounds = scene.flapper.wait()
            assert rounds >= seconds / 3
            after, lasted = usage(daemon.pid), time.monotonic() - start
            wait_until_healthy(daemon, size)
            for other in scene.containers:
                other.wait_until_readable("/data/hello", 30)
            assert len(table()) == entries
            # Cycles have their share of a processor; threads and the rest of the loop need some.
            share = LOOP_RATE.burst + LOOP_RATE.per_second * lasted
            assert after.daemon_cpu_seconds - before.daemon_cpu_seconds <= 1.5 * share
            assert after.daemon_rss - before.daemon_rss <= MOST_GROWTH
            assert after.processes <= 24
        total = time.monotonic() - start
        assert len(told.apiserver.events()) <= len(EventKind) * (MAX_PODS + 1)
        assert (
            len(told.apiserver.requests)
            <= pace.share(1).burst + pace.share(1).per_second * total + 500
        )


@pytest.mark.slow
@in_lab(timeout=90)
def test_a_small_storm(node: DemoNode) -> None:
    check_storm(node, Size(sources=5, pods=4, containers=1), 2.0, {})


@pytest.mark.slow
@in_lab(timeout=STORM_SECONDS + 280)
def test_five_hundred_binds_of_fifty_sources_flap(node: DemoNode) -> None:
    check_storm(node, Size(sources=50, pods=10, containers=1), STORM_SECONDS, {})
