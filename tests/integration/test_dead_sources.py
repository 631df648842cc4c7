"""Sources that are dead themselves: reported, detached where that is switched on, never a live one."""

from __future__ import annotations

import os
import shutil
import time

import pytest

from fusewatchd.act.replace_mount import carry_out
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodVolume
from fusewatchd.demo.node.sources import Source, detach_all
from fusewatchd.linux import syscalls
from fusewatchd.model.actions import DetachDeadSource, Expect, OutcomeStatus
from fusewatchd.model.mount_table import parse_mount_table
from fusewatchd.model.mounts import Mount, TargetKey
from fusewatchd.model.verdicts import Reason
from tests.features import best_way
from tests.integration.test_cluster import cluster
from tests.lab import in_lab, pod_with_container, real_kernel, run_command
from tests.waiting import wait_until

pytestmark = pytest.mark.kernel

DEADLINE = 20.0
REPORT = {
    "dead_sources.grace_seconds": "0.5",
    "probe.interval_seconds": "0.3",
    "look_seconds": "1",
}
DETACH = {**REPORT, "dead_sources.detach": "true"}
BINDFS = ("bindfs", "-f", "{backing}", "{mount}")
KERNELS = pytest.mark.parametrize(
    "is_old",
    [
        pytest.param(False, id="kernel"),
        pytest.param(True, id="old-kernel", marks=pytest.mark.slow),
    ],
)


def layers_at(path: str) -> tuple[Mount, ...]:
    with open("/proc/self/mountinfo", "rb") as file:
        return parse_mount_table(file.read()).stack_at(path)


def wait_for_layers(path: str, count: int) -> None:
    wait_until(lambda: len(layers_at(path)) == count)


@KERNELS
@in_lab(timeout=90)
def test_a_server_that_refuses_its_dead_mount_comes_back(node: DemoNode, is_old: bool) -> None:
    if not shutil.which("bindfs"):
        pytest.skip("bindfs is not installed")
    source = node.add_source("one", command=BINDFS)
    _, container = pod_with_container(node, source, "web")
    with cluster(node) as around:
        settings = {**around.settings(), **DETACH}
        with DaemonProcess(node, settings=settings, as_old_kernel=is_old) as daemon:
            daemon.wait_until_watching(2)
            if is_old:
                time.sleep(1.0)  # the server is known by then
            source.kill()
            refusing = [word.format(backing=source.backing, mount=source.path) for word in BINDFS]
            assert run_command(*refusing).returncode != 0
            wait_for_layers(source.path, 0)
            wait_until(lambda: "FuseSourceDetached" in around.apiserver.reasons())
            daemon.kill()  # where the source was outlives the source and the daemon
            daemon.start()
            source.start()
            container.wait_until_readable("/data/hello", DEADLINE)
            daemon.wait_until_watching(2)
            assert daemon.log().count("event=source_detached") == 1


@in_lab(timeout=60)
def test_reported_and_left_alone_unless_switched_on(node: DemoNode) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "web")
    with (
        cluster(node) as around,
        DaemonProcess(node, settings={**around.settings(), **REPORT}) as daemon,
    ):
        daemon.wait_until_watching(2)
        source.kill()
        document = daemon.wait_for(lambda d: d["dead_sources"])
        (dead,) = document["dead_sources"]
        assert (dead["source"], dead["held_back"]) == (source.path, "source_dead")
        assert {b["refusal"] for b in document["binds"]} == {"source_dead"}
        assert around.metric("fusewatchd_dead_sources") == 1
        time.sleep(1.5)
        assert len(layers_at(source.path)) == 1
        source.restart()
        container.wait_until_readable("/data/hello", DEADLINE)
        daemon.wait_for(lambda d: not d["dead_sources"])
        assert daemon.log().count("event=source_dead") == 1
        assert daemon.log().count("event=source_clear") == 1


@pytest.mark.slow
@in_lab(timeout=90)
def test_a_stack_of_dead_ones_and_never_a_live_one(node: DemoNode) -> None:
    lower = node.add_source("one")
    upper = node.add_source("two", path=lower.path, files={"hello": "one"})
    _, container = pod_with_container(node, upper, "web")
    with DaemonProcess(node, settings=DETACH) as daemon:
        daemon.wait_until_watching(2)
        upper.kill()
        wait_for_layers(lower.path, 1)
        container.wait_until_readable("/data/hello", DEADLINE)
        time.sleep(1.5)
        assert len(layers_at(lower.path)) == 1
        upper.start()
        # It reaches the publish bind, which receives from the source, and not the container.
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["superseded"] == 1)
        upper.kill()
        lower.kill()
        wait_for_layers(lower.path, 0)
        lower.start()
        container.wait_until_readable("/data/hello", DEADLINE)


@KERNELS
@in_lab(timeout=90)
def test_a_live_server_that_passes_the_answer_on_is_left_alone(
    node: DemoNode, is_old: bool
) -> None:
    lower = node.add_source("one")
    upper = node.add_source("two", backing=lower.path, files={})
    node.add_pod("a", [PodVolume("v", lower)], [])
    node.add_pod("b", [PodVolume("v", upper)], [])
    with DaemonProcess(node, settings=DETACH, as_old_kernel=is_old) as daemon:
        daemon.wait_until_watching(2)
        if is_old:
            time.sleep(1.0)
        lower.kill()
        with pytest.raises(OSError, match="not connected"):
            os.statvfs(upper.path)
        daemon.wait_for(lambda d: {b["verdict"] for b in d["binds"]} == {"stale", "unknown"})
        # Without being told who serves what, whoever names the path may be the one who does.
        held = {"server_alive"} if is_old else {"server_alive", "unconfirmed", None}
        daemon.wait_for(
            lambda d: (
                {s["source"] for s in d["dead_sources"]} <= {lower.path}
                and {s["held_back"] for s in d["dead_sources"]} <= held
                and (d["dead_sources"] or not is_old)
            )
        )
        time.sleep(1.5)
        assert len(layers_at(upper.path)) == 1
        upper.kill()
        wait_for_layers(upper.path, 0)
        wait_for_layers(lower.path, 0)


@in_lab(timeout=60)
def test_what_must_not_be_detached(node: DemoNode) -> None:
    """Whatever the plan says, at the moment of the call the kernel is asked once more."""
    source = node.add_source("one")
    kernel = real_kernel(best_way())
    (mount,) = layers_at(source.path)
    detach = DetachDeadSource(TargetKey(0, source.path), Expect.of(mount))

    def ended(action: DetachDeadSource) -> tuple[OutcomeStatus, Reason]:
        outcome = carry_out(kernel, action)
        return outcome.status, outcome.reason

    assert ended(detach) == (OutcomeStatus.REFUSED, Reason.ANSWERING)
    source.kill()
    other = Expect(source.path, mount.device, mount.mount_id + 1, mount.unique_id + 1)
    skipped = (OutcomeStatus.SKIPPED, Reason.VANISHED)
    assert ended(DetachDeadSource(detach.key, other)) == skipped
    plain = os.path.join(node.lab, "plain")
    os.mkdir(plain)
    syscalls.mount("plain", plain, "tmpfs", 0, "")
    (tmpfs,) = layers_at(plain)
    assert ended(DetachDeadSource(detach.key, Expect.of(tmpfs))) == skipped
    _cover(source)
    assert ended(detach) == skipped
    assert len(layers_at(source.path)) == 2
    syscalls.umount2(source.path, syscalls.MNT_DETACH)
    assert ended(detach) == (OutcomeStatus.DETACHED, Reason.NONE)
    assert ended(detach) == skipped
    detach_all(plain)


def _cover(source: Source) -> None:
    syscalls.mount("cover", source.path, "tmpfs", 0, "")
