"""Where the kubelet keeps its pods: behind links, at two places, at one that nobody named."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume
from fusewatchd.linux import syscalls
from tests.lab import in_lab, pod_with_container, run_fusewatchd

pytestmark = pytest.mark.kernel
DEADLINE = 15.0
SEAWEEDFS = "seaweedfs-csi-driver"


def move_away(path: str, to: str) -> None:
    """Keep an empty directory of the node at another place, behind a link."""
    os.rmdir(path)
    os.makedirs(to)
    os.symlink(to, path)


def asked(daemon: DaemonProcess, *words: str) -> subprocess.CompletedProcess[str]:
    sets = [word for key, value in daemon.values.items() for word in ("--set", f"{key}={value}")]
    return run_fusewatchd(*words, *sets)


@pytest.mark.parametrize("name", ["pods", "kubelet-pods"])
@pytest.mark.parametrize("is_early", [True, False], ids=["early", "late"])
@in_lab(timeout=60)
def test_pods_behind_a_link(node: DemoNode, is_early: bool, name: str) -> None:
    real = f"{node.lab}/fast/{name}"
    move_away(node.pods_directory, real)
    source = node.add_source("one", files={"hello": "one", "part/there": "one"})
    mounts = [PodMount("v", "/data"), PodMount("v", "/part", sub_path="part")]
    pod = node.add_pod("p", [PodVolume("v", source)], mounts)
    container = node.start_container(pod)
    if not is_early:
        source.kill()
    with DaemonProcess(node) as daemon:
        if is_early:
            daemon.wait_until_watching(4)
            source.kill()
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == 4)
        source.restart()
        container.wait_until_readable("/data/hello", DEADLINE)
        container.wait_until_readable("/part/there", DEADLINE)
        daemon.wait_until_watching(4)
        spelled = pod.volume_path("v")
        for path in (spelled, spelled.replace(node.pods_directory, real)):
            done = asked(daemon, "explain", f"{path}/some/file")
            assert done.returncode == 0, done.stderr
            assert f"{real}/{pod.uid}/volumes" in done.stdout
        assert len(asked(daemon, "explain", pod.uid).stdout.split("subpath")) > 1
        assert f"its pods at {real}" in " ".join(asked(daemon, "doctor").stdout.split())


@pytest.mark.parametrize("linked", ["plugins", "plugins/kubernetes.io/csi"])
@in_lab(timeout=60)
def test_staging_paths_behind_a_link(node: DemoNode, linked: str) -> None:
    """The daemon was not there before: only the rule of the driver knows the source."""
    os.makedirs(f"{node.kubelet_root}/{linked}", exist_ok=True)
    move_away(f"{node.kubelet_root}/{linked}", f"{node.lab}/fast/elsewhere")
    source = node.add_source("one", path=node.staging_path(SEAWEEDFS, "h"))
    volume = PodVolume("v", source, driver=SEAWEEDFS, handle="h")
    pod = node.add_pod("p", [volume], [PodMount("v", "/data")])
    container = node.start_container(pod)
    source.kill()
    source.unmount()
    with DaemonProcess(node) as daemon:
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == 2)
        source.restart()
        container.wait_until_readable("/data/hello", DEADLINE)
        done = asked(daemon, "explain", source.path)
        assert done.returncode == 0, done.stderr
        assert "staged by seaweedfs-csi-driver" in done.stdout


@in_lab(timeout=60)
def test_a_template_may_be_spelled_through_the_links(node: DemoNode) -> None:
    move_away(f"{node.kubelet_root}/plugins", f"{node.lab}/fast/plugins")
    os.symlink(node.kubelet_root, f"{node.lab}/linked")
    source = node.add_source("one", path=f"{node.kubelet_root}/plugins/acme/h")
    volume = PodVolume("v", source, driver="csi.acme.example", handle="h")
    pod = node.add_pod("p", [volume], [PodMount("v", "/data")])
    container = node.start_container(pod)
    source.kill()
    source.unmount()
    place = f"{node.lab}/linked/plugins/acme/{{volume_handle}}"
    template = f"{{name: acme, csi_driver: csi.acme.example, source: '{place}'}}"
    settings = {"drivers.templates": f"[{template}]", "kubelet.root": f"{node.lab}/linked"}
    with DaemonProcess(node, settings=settings) as daemon:
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == 2)
        source.restart()
        container.wait_until_readable("/data/hello", DEADLINE)


# ---------------------------------------------------------------------------- two roots


def pod_below(node: DemoNode, root: str, name: str) -> tuple[DemoPod, Container]:
    """Start a pod whose kubelet has its directory elsewhere."""
    usual, node.pods_directory = node.pods_directory, f"{root}/pods"
    os.makedirs(node.pods_directory, exist_ok=True)
    try:
        return pod_with_container(node, node.add_source(name), name)
    finally:
        node.pods_directory = usual


@in_lab(timeout=60)
def test_pods_below_another_root_are_named(node: DemoNode) -> None:
    other = f"{node.lab}/opt/rke/kubelet"
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "one")
    pod, _ = pod_below(node, other, "two")
    with DaemonProcess(node) as daemon:
        document = daemon.wait_until_watching(2)
        told = f"{other} (1 FUSE mount)"
        gaps = [gap["reason"] for gap in document["gaps"] if gap["source"] == "other_pods"]
        assert len(gaps) == 1
        assert told in gaps[0]
        assert asked(daemon, "status").returncode == 2
        done = asked(daemon, "doctor")
        assert done.returncode == 1
        assert other in " ".join(done.stdout.split())
        source.kill()
        source.restart()
        container.wait_until_readable("/data/hello", DEADLINE)
        assert "gap=other_pods" in daemon.log()
        node.remove_pod(pod)
        daemon.wait_for(lambda d: not d["gaps"])


@in_lab(timeout=60)
def test_a_root_that_is_bound_to_a_second_place_is_one(node: DemoNode) -> None:
    """What is mounted below the one is to be seen below the other as well."""
    second = f"{node.lab}/data/kubelet"
    os.makedirs(second)
    syscalls.mount(node.kubelet_root, second, None, syscalls.MS_BIND)
    _, container = pod_with_container(node, node.add_source("one"), "one")
    assert container.read("/data/hello") == "one"
    with DaemonProcess(node) as daemon:
        assert daemon.wait_until_watching(2)["gaps"] == []


@in_lab(timeout=60)
def test_no_user_can_claim_to_have_pods(node: DemoNode) -> None:
    """Any user may mount a FUSE file system at a directory of his own."""
    pod_with_container(node, node.add_source("one"), "one")
    theirs = f"{node.lab}/home/pods/x/volumes/kubernetes.io~csi/v/mount"
    os.makedirs(theirs)
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=1000,group_id=1000"
    syscalls.mount("theirs", theirs, "fuse", 0, options)
    try:
        with DaemonProcess(node) as daemon:
            document = daemon.wait_until_watching(2)
            assert "other_pods" not in {gap["source"] for gap in document["gaps"]}
    finally:
        os.close(fd)


# ------------------------------------------------------------------------- kubelet.root: auto


@contextmanager
def running_kubelet(*arguments: str, user: int = 0) -> Iterator[None]:
    """Run something that is called as a kubelet is."""
    words = ("kubelet", "-c", "import time; time.sleep(600)", *arguments)
    process = subprocess.Popen(words, executable="/usr/bin/python3", user=user)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def lay_out_usual_place() -> None:
    """Leave what a package may have left at the usual place: no pods."""
    syscalls.mount("lib", "/var/lib", "tmpfs", 0, "mode=755")
    os.makedirs("/var/lib/kubelet/pods")


def root_found(node: DemoNode) -> str:
    with DaemonProcess(node, settings={"kubelet.root": "auto"}) as daemon:
        root = daemon.wait_for(lambda d: d["namespaces"])["kubelet_root"]
        assert isinstance(root, str)
        return root


@in_lab(timeout=90)
def test_an_empty_directory_at_the_usual_place_is_not_the_kubelets(node: DemoNode) -> None:
    lay_out_usual_place()
    other = f"{node.lab}/opt/rke/kubelet"
    assert root_found(node) == "/var/lib/kubelet"
    pod_below(node, other, "two")
    assert root_found(node) == other
    pod_below(node, "/var/lib/kubelet", "three")
    assert root_found(node) == "/var/lib/kubelet"
    with running_kubelet("--v=2", f"--root-dir={other}"):
        assert root_found(node) == other
    with running_kubelet("--root-dir", other, "--v=2"):
        assert root_found(node) == other
    with running_kubelet(f"--root-dir={other}", user=1000):
        assert root_found(node) == "/var/lib/kubelet", "any user may run what he calls a kubelet"
    with running_kubelet(f"--root-dir={other}"), running_kubelet():
        assert root_found(node) == "/var/lib/kubelet", "two kubelets tell nothing"
