"""Pods that are over and what they left behind: detached when it is proven, and nothing else."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fusewatchd.act.replace_mount import carry_out
from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodVolume, pod_list
from fusewatchd.demo.node.sources import Source
from fusewatchd.demo.node.unmounting import Unmounting
from fusewatchd.linux import syscalls
from fusewatchd.linux.mount_kernel import Way
from fusewatchd.model.actions import DetachOrphan, Expect, OutcomeStatus
from fusewatchd.model.mount_table import parse_mount_table
from fusewatchd.model.mounts import Device, Mount, TargetKey
from fusewatchd.model.verdicts import Reason
from tests.lab import WAYS, in_lab, pod_with_container, real_kernel

pytestmark = pytest.mark.kernel

DEADLINE = 15.0
GRACE = 0.5
LONG_ENOUGH = 2.0
"""Seconds in which several lists and looks are taken, each after the grace."""


def settings(kubelet: DemoKubelet, **more: str) -> dict[str, str]:
    return {
        "kubelet.url": kubelet.url,
        "kubelet.refresh_seconds": "0.2",
        "look_seconds": "0.2",
        "cleanup.detach_orphans": "true",
        "cleanup.grace_seconds": str(GRACE),
        **{name.replace("__", "."): value for name, value in more.items()},
    }


def stack(path: str) -> list[Mount]:
    with open("/proc/self/mountinfo", "rb") as file:
        return list(parse_mount_table(file.read()).stack_at(path))


def lines_below(directory: str) -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return [line for line in file if f" {directory}/" in line]


def wait_until(condition: Callable[[], bool], daemon: DaemonProcess) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, daemon.log()
        time.sleep(0.02)


def add_neighbour(node: DemoNode) -> DemoPod:
    """Add a pod that lives on: a kubelet that lists none at all proves nothing."""
    return node.add_pod("neighbour", [PodVolume("v", node.add_source("living"))])


def forget(node: DemoNode, pod: DemoPod) -> None:
    """End a pod so that only its mounts are left: deleted by force, then the kubelet restarted."""
    for container in pod.containers.values():
        container.stop()
    del node.pods[pod.uid]


def pile_up(source: Source, target: str, layers: int) -> None:
    """Leave one dead layer more for each crash, as a driver does that binds over the old one."""
    syscalls.mount(None, target, None, syscalls.MS_PRIVATE)
    for _ in range(layers - 1):
        source.kill()
        source.restart()
        syscalls.mount(source.path, target, None, syscalls.MS_BIND)
        syscalls.mount(None, target, None, syscalls.MS_PRIVATE)
    source.kill()
    source.unmount()
    assert len(stack(target)) == layers


def mount_inside(volume: str) -> str:
    """Mount something in a volume, out of its group so that its peers do not get it too."""
    inside = os.path.join(volume, "inside")
    syscalls.mount(None, volume, None, syscalls.MS_PRIVATE)
    syscalls.mount("tmpfs", inside, "tmpfs", 0, "size=64k")
    return inside


@WAYS
@in_lab(timeout=90)
def test_dead_layers_of_a_pod_that_is_gone_are_detached_and_nothing_else(
    node: DemoNode, way: str
) -> None:
    neighbour = add_neighbour(node)
    source = node.add_source("dying", files={"hello": "x", "inside/.keep": ""})
    gone = node.add_pod("gone", [PodVolume("v", source), PodVolume("w", node.sources["living"])])
    has_child = node.add_pod("has-child", [PodVolume("v", source)])
    tmpfs = mount_inside(has_child.volume_path("v"))
    plugin = os.path.join(node.kubelet_root, "plugins", gone.uid)
    os.mkdir(plugin)
    syscalls.mount(source.path, plugin, None, syscalls.MS_BIND)
    target, alive = gone.volume_path("v"), gone.volume_path("w")
    pile_up(source, target, 3)
    with (
        DemoKubelet(node.pod_list) as kubelet,
        DaemonProcess(node, way=way, settings=settings(kubelet)) as daemon,
    ):
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == 2)
        for pod in (gone, has_child):
            forget(node, pod)
        daemon.wait_for(lambda d: d["orphans_detached"]["layers"] == 3)
        assert stack(target) == []
        left = {
            alive: ("orphaned", "pod_unknown"),
            has_child.volume_path("v"): ("orphaned", "child_mount"),
            neighbour.volume_path("v"): ("healthy", None),
        }
        daemon.wait_for(
            lambda d: {b["mount_point"]: (b["verdict"], b["refusal"]) for b in d["binds"]} == left
        )
        assert len(stack(tmpfs)) == len(stack(plugin)) == 1
        for path in (alive, neighbour.volume_path("v")):
            with open(os.path.join(path, "hello")) as file:
                assert file.read() == "living"
        assert daemon.log().count("detached a dead mount of a deleted pod") == 3
        # No directory was removed: that is the kubelet's, and it can.
        os.rmdir(target)
    syscalls.umount2(has_child.volume_path("v"), syscalls.MNT_DETACH)


@pytest.mark.slow
@in_lab(timeout=90)
def test_a_terminating_pod_can_end_once_its_containers_have(node: DemoNode) -> None:
    add_neighbour(node)
    source = node.add_source("dying")
    pod, container = pod_with_container(node, source, "ending")
    target = pod.volume_path("v")
    pile_up(source, target, 2)
    with (
        DemoKubelet(node.pod_list) as kubelet,
        DaemonProcess(node, settings=settings(kubelet)) as daemon,
    ):
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == 2)
        before = lines_below(pod.directory)
        # Deleted by force: its entry goes first.
        del node.pods[pod.uid]
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["orphaned"] > 0)
        time.sleep(LONG_ENOUGH)
        assert lines_below(pod.directory) == before
        node.pods[pod.uid] = pod
        pod.is_deleting = True
        daemon.wait_for(lambda d: any(b["refusal"] == "pod_ending" for b in d["binds"]))
        time.sleep(LONG_ENOUGH)
        assert lines_below(pod.directory) == before
        # The driver unmounts once, as many do, and its directory stays busy.
        container.stop()
        with pytest.raises(OSError) as error:
            node.remove_pod(pod, Unmounting.ONCE)
        assert error.value.errno == errno.EBUSY
        wait_until(lambda: not lines_below(pod.directory), daemon)
        node.remove_pod(pod, Unmounting.ONCE)
        assert not os.path.exists(pod.directory)


def refusing(kubelet: DemoKubelet, node: DemoNode) -> None:
    kubelet.status = 503


def just_started(kubelet: DemoKubelet, node: DemoNode) -> None:
    """As long as the API server does not answer, a kubelet knows the static pods alone."""
    static = [pod for pod in node.pods.values() if pod.name == "static"]
    kubelet.pods = lambda: pod_list(static, node.name)


def empty(kubelet: DemoKubelet, node: DemoNode) -> None:
    kubelet.pods = lambda: pod_list([], node.name)


def of_another_node(kubelet: DemoKubelet, node: DemoNode) -> None:
    elsewhere = os.path.join(node.lab, "elsewhere")
    pod = DemoPod("demo", "web", "cccccccc-0000-4000-8000-000000000003", elsewhere, (), ())
    kubelet.pods = lambda: pod_list([pod], "another")


def with_a_pod_that_cannot_be_read(kubelet: DemoKubelet, node: DemoNode) -> None:
    def listed() -> dict[str, Any]:
        document = pod_list(list(node.pods.values()), node.name)
        document["items"].append({"metadata": {"name": "odd"}})
        return document

    kubelet.pods = listed


@pytest.mark.slow
@in_lab(timeout=110)
def test_a_list_that_may_lack_pods_proves_nothing(node: DemoNode) -> None:
    """Nor is a pod called an orphan by it, which would end the recovery of a living one."""
    add_neighbour(node)
    static = "d" * 32
    notes = {"kubernetes.io/config.source": "file", "kubernetes.io/config.hash": static}
    node.add_pod("static", uid=static, annotations=notes)
    source = node.add_source("dying")
    gone = node.add_pod("gone", [PodVolume("v", source)])
    with (
        DemoKubelet(node.pod_list) as kubelet,
        DaemonProcess(node, settings=settings(kubelet)) as daemon,
    ):
        daemon.wait_until_watching(2)
        source.kill()
        source.unmount()
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == 1)
        before = lines_below(gone.directory)
        whole = kubelet.pods
        cases = (refusing, just_started, empty, of_another_node, with_a_pod_that_cannot_be_read)
        for case in cases:
            case(kubelet, node)
            asked = len(kubelet.requests)
            if node.pods.get(gone.uid):
                forget(node, gone)
            wait_until(lambda asked=asked: len(kubelet.requests) > asked + 1, daemon)
            time.sleep(LONG_ENOUGH)
            assert lines_below(gone.directory) == before, case.__name__
            assert daemon.status()["totals"]["verdicts"]["orphaned"] == 0, case.__name__
            kubelet.status, kubelet.pods = 200, whole
            if case is not cases[-1]:
                # The pod is there after all, as it is for a kubelet that has got its list.
                node.pods[gone.uid] = gone
                asked = len(kubelet.requests)
                wait_until(lambda asked=asked: len(kubelet.requests) > asked + 1, daemon)
        wait_until(lambda: not lines_below(gone.directory), daemon)


@in_lab(timeout=60)
def test_report_mode_says_it_and_touches_nothing(node: DemoNode) -> None:
    add_neighbour(node)
    source = node.add_source("dying")
    gone = node.add_pod("gone", [PodVolume("v", source)])
    with DemoKubelet(node.pod_list) as kubelet:
        more = settings(kubelet, recovery__mode="report")
        with DaemonProcess(node, settings=more) as daemon:
            daemon.wait_until_watching(2)
            source.kill()
            source.unmount()
            before = lines_below(gone.directory)
            forget(node, gone)
            daemon.wait_for(lambda d: any(b["refusal"] == "report_only" for b in d["binds"]))
            daemon.wait_for(lambda d: "detach dead layer" in daemon.log())
            assert lines_below(gone.directory) == before


@pytest.mark.slow
@in_lab(timeout=60)
def test_it_is_off_by_default_and_a_reload_switches_it_on(node: DemoNode) -> None:
    add_neighbour(node)
    source = node.add_source("dying")
    gone = node.add_pod("gone", [PodVolume("v", source)])
    file = os.path.join(node.lab, "fusewatchd.yaml")
    with open(file, "w", encoding="utf-8") as text:
        text.write("{}")
    with DemoKubelet(node.pod_list) as kubelet:
        values = settings(kubelet)
        del values["cleanup.detach_orphans"]
        with DaemonProcess(node, settings=values, config=file) as daemon:
            daemon.wait_until_watching(2)
            source.kill()
            source.unmount()
            before = lines_below(gone.directory)
            forget(node, gone)
            daemon.wait_for(lambda d: d["totals"]["verdicts"]["orphaned"] == 1)
            time.sleep(LONG_ENOUGH)
            assert lines_below(gone.directory) == before
            with open(file, "w", encoding="utf-8") as text:
                text.write("cleanup: {detach_orphans: true}")
            os.kill(daemon.pid, signal.SIGHUP)
            wait_until(lambda: not lines_below(gone.directory), daemon)


# ------------------------------------------------------------------- at the last moment


def changed_id(action: DetachOrphan) -> DetachOrphan:
    other = replace(action.expect, mount_id=action.expect.mount_id + 1000, unique_id=1)
    return replace(action, expect=other)


def changed_device(action: DetachOrphan) -> DetachOrphan:
    return replace(action, expect=replace(action.expect, device=Device(0, 1)))


@WAYS
@in_lab(timeout=60)
def test_what_has_changed_since_it_was_looked_at_is_left_alone(node: DemoNode, way: str) -> None:
    source = node.add_source("dying", files={"hello": "x", "inside/.keep": ""})
    pod = node.add_pod("gone", [PodVolume("v", source), PodVolume("w", source)])
    kernel = real_kernel(Way(way))
    target, with_child = pod.volume_path("v"), pod.volume_path("w")
    mount_inside(with_child)
    source.kill()

    def action(path: str) -> DetachOrphan:
        return DetachOrphan(TargetKey(0, path), Expect.of(stack(path)[-1]))

    def result(of: DetachOrphan) -> tuple[OutcomeStatus, Reason]:
        outcome = carry_out(kernel, of)
        return outcome.status, outcome.reason

    good = action(target)
    before = lines_below(pod.directory)
    for change in (changed_id, changed_device):
        assert result(change(good)) == (OutcomeStatus.SKIPPED, Reason.VANISHED)
    assert result(action(with_child)) == (OutcomeStatus.REFUSED, Reason.CHILD_MOUNT)
    assert lines_below(pod.directory) == before
    # Somebody mounts over it, a file system of another kind even.
    syscalls.mount("tmpfs", target, "tmpfs", 0, "size=64k")
    assert result(good) == (OutcomeStatus.SKIPPED, Reason.VANISHED)
    assert result(action(target)) == (OutcomeStatus.SKIPPED, Reason.VANISHED)
    assert len(stack(target)) == 2
    syscalls.umount2(target, syscalls.MNT_DETACH)
    assert result(good) == (OutcomeStatus.DETACHED, Reason.NONE)
    assert stack(target) == []
    # Once more, as if the outcome had been lost; and after the kubelet has removed everything.
    assert result(good) == (OutcomeStatus.SKIPPED, Reason.VANISHED)
    shutil.rmtree(os.path.dirname(target))
    assert result(good) == (OutcomeStatus.SKIPPED, Reason.VANISHED)
    syscalls.umount2(with_child, syscalls.MNT_DETACH)
