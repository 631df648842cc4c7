"""A copy of a bind is never its source, and is nobody's to take away.

Somebody binds a pod's mount to another place: to look into it, to back it up, to share it with a
virtual machine.  When that place shows another volume later, no pod may get that.
"""

from __future__ import annotations

import os
import time

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume
from fusewatchd.demo.node.sources import Source, detach_all
from fusewatchd.linux import syscalls
from tests.integration.test_dead_sources import DETACH, layers_at
from tests.integration.test_wrong_source import UNTIL_ON_DISK, is_broken, wait_for_refusal
from tests.lab import in_lab, pod_with_container

pytestmark = pytest.mark.kernel

DEADLINE = 10.0
SEVERAL_LOOKS = 2.5
KERNELS = pytest.mark.parametrize("is_old", [False, True], ids=["kernel", "old-kernel"])
GCSFUSE = "gcsfuse.csi.storage.gke.io"


def bind(source: str, target: str) -> str:
    os.makedirs(target, exist_ok=True)
    syscalls.mount(source, target, None, syscalls.MS_BIND)
    return target


def put_another_volume_at(node: DemoNode, path: str) -> Source:
    detach_all(path)
    name = f"at {path}, number {len(node.sources)}"
    return node.add_source(name, path=path, backing=f"{node.lab}/two")


def stop_for_good(source: Source) -> None:
    """End the server and take its own mount away."""
    source.stop()
    assert not layers_at(source.path)


@KERNELS
@in_lab(timeout=90)
def test_one_that_is_all_that_is_left(node: DemoNode, is_old: bool) -> None:
    """The daemon starts when server and source are gone."""
    one = node.add_source("one")
    pod, container = pod_with_container(node, one, "p")
    copy = bind(pod.volume_path("v"), f"{node.lab}/copy")
    stop_for_good(one)
    with DaemonProcess(node, as_old_kernel=is_old) as daemon:
        wait_for_refusal(daemon, pod, "no_source")
        put_another_volume_at(node, copy)
        wait_for_refusal(daemon, pod, "no_source")
        assert is_broken(container)


def direct(node: DemoNode, driver: str = "fuse.csi.demo") -> tuple[DemoPod, Source, Container]:
    """A pod into which its server mounts."""
    pod = node.add_pod("web", [PodVolume("v", directory="pv-1", driver=driver)])
    source = node.add_source("one", path=pod.volume_path("v"))
    pod.mounts = (PodMount("v", "/data"),)
    return pod, source, node.start_container(pod)


@KERNELS
@in_lab(timeout=90)
def test_one_of_a_mount_that_has_no_source(node: DemoNode, is_old: bool) -> None:
    """Everything works while it is made, the daemon looks, and is started once more."""
    pod, one, container = direct(node)
    with DaemonProcess(node, as_old_kernel=is_old) as daemon:
        daemon.wait_until_watching(2)
        copy = bind(pod.volume_path("v"), f"{node.lab}/copy")
        time.sleep(SEVERAL_LOOKS)
        assert not any(b["source"]["candidates"] for b in daemon.status()["binds"])
        daemon.stop()
        later = bind(pod.volume_path("v"), f"{node.lab}/another")
        daemon.start()
        daemon.wait_until_watching(2)
        one.kill()
        for path in (copy, later):
            put_another_volume_at(node, path)
        wait_for_refusal(daemon, pod, "no_source")
        assert is_broken(container)


@KERNELS
@in_lab(timeout=90)
def test_with_the_source_seen_it_is_recovered_whatever_copies_there_are(
    node: DemoNode, is_old: bool
) -> None:
    one = node.add_source("one")
    older = bind(one.path, f"{node.lab}/older")
    pod, container = pod_with_container(node, one, "p")
    before = bind(pod.volume_path("v"), f"{node.lab}/before")
    with DaemonProcess(node, settings=DETACH, as_old_kernel=is_old) as daemon:
        daemon.wait_until_watching(2)
        while_watched = bind(pod.volume_path("v"), f"{node.lab}/watched")
        for _ in range(2):
            time.sleep(UNTIL_ON_DISK)
            one.stop()
            daemon.kill()
            daemon.start()
            for path in (older, before, while_watched):
                put_another_volume_at(node, path)
            wait_for_refusal(daemon, pod, "source_missing")
            assert is_broken(container)
            one.start()
            container.wait_until_readable("/data/hello", DEADLINE)
            assert container.read("/data/hello") == "one"
        assert all(layers_at(path) for path in (older, before, while_watched))


@KERNELS
@in_lab(timeout=90)
def test_a_pod_of_another_kubelet_keeps_its_mount(node: DemoNode, is_old: bool) -> None:
    """The mount of a pod below another kubelet's directory is older than the one of ours."""
    one = node.add_source("one")
    theirs = f"{node.lab}/old/pods/etcd-static/volumes/kubernetes.io~csi/v/mount"
    bind(one.path, theirs)
    pod, container = pod_with_container(node, one, "p")
    stop_for_good(one)
    with DaemonProcess(node, settings=DETACH, as_old_kernel=is_old) as daemon:
        wait_for_refusal(daemon, pod, "no_source")
        time.sleep(SEVERAL_LOOKS)
        assert layers_at(theirs)
        assert "event=source_detached" not in daemon.log()
        put_another_volume_at(node, theirs)
        wait_for_refusal(daemon, pod, "no_source")
        assert is_broken(container)


def share_with_machine(node: DemoNode, pod: DemoPod) -> list[str]:
    """Make the binds that kata makes of a volume for its virtual machine."""
    shared = f"{node.lab}/kata-containers/shared/sandboxes/s1"
    return [
        bind(pod.volume_path("v"), f"{shared}/{how}/c1-0123456789abcdef-data")
        for how in ("mounts", "rw", "ro")
    ]


@KERNELS
@in_lab(timeout=90)
def test_what_a_virtual_machine_shares_stays(node: DemoNode, is_old: bool) -> None:
    one = node.add_source("one")
    pod, _ = pod_with_container(node, one, "p")
    copies = share_with_machine(node, pod)
    other, container = pod_with_container(node, one, "q")
    stop_for_good(one)
    with DaemonProcess(node, settings=DETACH, as_old_kernel=is_old) as daemon:
        wait_for_refusal(daemon, other, "no_source")
        time.sleep(SEVERAL_LOOKS)
        assert all(layers_at(path) for path in copies)
        assert "event=source_detached" not in daemon.log()
        put_another_volume_at(node, copies[0])
        wait_for_refusal(daemon, other, "no_source")
        assert is_broken(container)


@KERNELS
@in_lab(timeout=90)
def test_a_driver_that_knows_of_no_source_is_right_about_copies(
    node: DemoNode, is_old: bool
) -> None:
    pod, one, container = direct(node, GCSFUSE)
    with DaemonProcess(node, settings=DETACH, as_old_kernel=is_old) as daemon:
        daemon.wait_until_watching(2)
        copies = share_with_machine(node, pod)
        time.sleep(SEVERAL_LOOKS)
        (rule,) = {b["source"]["rule"] for b in daemon.status()["binds"] if b["kind"] == "publish"}
        assert rule == "gcsfuse"
        one.kill()
        time.sleep(SEVERAL_LOOKS)
        assert all(layers_at(path) for path in copies)
        assert "event=source_detached" not in daemon.log()
        put_another_volume_at(node, copies[0])
        wait_for_refusal(daemon, pod, "direct_mount")
        assert is_broken(container)


@pytest.mark.slow
@KERNELS
@in_lab(timeout=90)
def test_a_copied_namespace_proves_no_order(node: DemoNode, is_old: bool) -> None:
    """In a copy of the namespace the copy of the bind is the older mount by its number."""
    early = f"{node.lab}/early"
    os.makedirs(early)
    syscalls.mount("early", early, "tmpfs", 0, "size=64k")
    syscalls.mount(None, early, None, syscalls.MS_SHARED)
    one = node.add_source("one")
    pod, container = pod_with_container(node, one, "p")
    copy = bind(pod.volume_path("v"), f"{early}/copy")
    stop_for_good(one)
    copied = ("unshare", "--mount", "--propagation", "unchanged")
    with DaemonProcess(node, as_old_kernel=is_old, by=copied) as daemon:
        wait_for_refusal(daemon, pod, "no_source")
        put_another_volume_at(node, copy)
        wait_for_refusal(daemon, pod, "no_source")
        assert is_broken(container)
