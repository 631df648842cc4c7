"""A server that mounts straight into the pod: what the kubelet bound from there follows the new one.

The server's mount is the pod's own; subPath binds on the host and the mounts of containers come
from it, and stay dead when only that is mounted anew.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.container_spec import Access, MountPropagation
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume
from fusewatchd.demo.node.sources import Source
from tests.integration.test_cluster import cluster
from tests.integration.test_recovery import DEADLINE, host_lines, options_at
from tests.lab import WAYS, in_lab

pytestmark = pytest.mark.kernel

FILES = {"hello": "one", "logs/app/line": "a line", "settings.ini": "x=1"}
LOGS = PodMount("v", "/logs", sub_path="logs/app")
MOUNTS = (
    PodMount("v", "/data"),
    LOGS,
    PodMount("v", "/settings.ini", sub_path="settings.ini", access=Access.READ_ONLY),
    PodMount("v", "/slave", sub_path="logs", propagation=MountPropagation.HOST_TO_CONTAINER),
)
BINDS = 1 + 3 + 4
"""The pod's own mount, its subPath binds, and the mounts of the container."""


@dataclass(slots=True)
class Direct:
    """A pod with such a volume."""

    node: DemoNode
    pod: DemoPod
    source: Source
    container: Container

    def wait_until_readable(self) -> None:
        for path in ("/data/hello", "/logs/line", "/settings.ini", "/slave/app/line"):
            self.container.wait_until_readable(path, DEADLINE)
        assert self.container.read("/logs/line") == "a line"
        assert self.container.read("/settings.ini") == "x=1"

    def layers(self) -> int:
        """Return how many FUSE mounts host and container have."""
        lines = [*host_lines(), *self.container.mountinfo().splitlines()]
        return sum(" - fuse.demofs" in line for line in lines)


def direct(node: DemoNode, name: str = "web", driver: str = "fuse.csi.demo") -> Direct:
    pod = node.add_pod(name, [PodVolume("v", directory="pv-1", driver=driver)])
    source = node.add_source(name, path=pod.volume_path("v"), files=FILES)
    pod.mounts = MOUNTS
    for mount in MOUNTS:
        if mount.sub_path:
            node.bind_subpath(pod, mount)
    return Direct(node, pod, source, node.start_container(pod))


@WAYS
@in_lab(timeout=120)
def test_subpaths_and_containers_follow_crash_after_crash(node: DemoNode, way: str) -> None:
    volume = direct(node)
    before = volume.layers()
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(BINDS)
        for _ in range(3):
            volume.source.kill()
            volume.source.restart()
            volume.wait_until_readable()
            daemon.wait_until_watching(BINDS)
        assert volume.layers() <= (before if way == "beneath" else 2 * before)
        assert "ro" in options_at(volume.container.mountinfo().splitlines(), "/settings.ini").split(
            ","
        )
        found = {b["mount_point"]: b for b in daemon.status()["binds"] if b["kind"] == "subpath"}
        bind = found[volume.pod.subpath_path(LOGS)]
        assert bind["source"]["path"] == volume.pod.volume_path("v")
        assert bind["source"]["rule"] == "lineage"


@in_lab(timeout=90)
def test_each_pod_has_its_own(node: DemoNode) -> None:
    """Two pods whose volumes have one name: one server comes back and the other does not."""
    one, two = direct(node, "one"), direct(node, "two")
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(2 * BINDS)
        for volume in (one, two):
            volume.source.kill()
            volume.source.unmount()
        two.source.restart()
        two.wait_until_readable()
        daemon.wait_until_watching(BINDS)
        with pytest.raises(OSError) as caught:
            one.container.read("/logs/line")
        assert caught.value.errno == errno.ENOTCONN
        waiting = {b["refusal"] for b in daemon.status()["binds"] if b["kind"] == "subpath"}
        assert waiting == {None, "source_missing"}
        one.source.restart()
        one.wait_until_readable()


@in_lab(timeout=90)
def test_it_is_known_over_a_restart_of_the_daemon(node: DemoNode) -> None:
    volume = direct(node)
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(BINDS)
    volume.source.kill()
    volume.source.restart()
    with DaemonProcess(node) as daemon:
        volume.wait_until_readable()
        daemon.wait_until_watching(BINDS)


@in_lab(timeout=90)
def test_without_having_seen_it_nothing_is_guessed(node: DemoNode) -> None:
    volume = direct(node)
    volume.source.kill()
    volume.source.restart()
    with DaemonProcess(node) as daemon:
        document = daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"])
        refusals = {b["refusal"] for b in document["binds"] if b["kind"] == "subpath"}
        assert refusals == {"no_source"}
        with pytest.raises(OSError):
            volume.container.read("/logs/line")


@in_lab(timeout=90)
def test_a_driver_that_is_known_to_mount_there_and_the_pods_spec_are_enough(
    node: DemoNode,
) -> None:
    volume = direct(node, driver="gcsfuse.csi.storage.gke.io")
    volume.source.kill()
    volume.source.restart()
    with cluster(node) as around, DaemonProcess(node, settings=around.settings()) as daemon:
        path = volume.pod.subpath_path(LOGS)
        document = daemon.wait_for(
            lambda d: [b["verdict"] for b in d["binds"] if b["mount_point"] == path] == ["healthy"]
        )
        (bind,) = (b for b in document["binds"] if b["mount_point"] == path)
        assert bind["source"]["rule"] == "gcsfuse"
        with open(os.path.join(path, "line")) as file:
            assert file.read() == "a line"


@in_lab(timeout=90)
def test_a_link_in_the_place_of_the_subpath_leads_nowhere(node: DemoNode) -> None:
    volume = direct(node)
    place = os.path.join(volume.source.backing, "logs/app")
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(BINDS)
        volume.source.kill()
        shutil.rmtree(place)
        os.symlink("/etc", place)
        volume.source.restart()
        volume.container.wait_until_readable("/settings.ini", DEADLINE)
        path = volume.pod.subpath_path(LOGS)
        document = daemon.wait_for(
            lambda d: any(
                b["mount_point"] == path and (b["last_attempt"] or {}).get("reason")
                for b in d["binds"]
            )
        )
        (bind,) = (b for b in document["binds"] if b["mount_point"] == path)
        assert bind["last_attempt"]["reason"] == "subpath_unsafe"
        with pytest.raises(OSError) as caught:
            volume.container.read("/logs/hostname")
        assert caught.value.errno == errno.ENOTCONN
