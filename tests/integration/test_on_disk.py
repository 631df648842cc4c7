"""A container that stands on the node's directory instead of its volume, and what only looks so."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fusewatchd.demo.cluster.apiserver import DemoApiServer
from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.container_spec import Access, MountPropagation
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume, VolumeKind
from fusewatchd.demo.node.sources import Source
from tests.lab import WAYS, in_lab, run_fusewatchd
from tests.waiting import wait_until

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

DRIVER = "fuse.csi.demo"


def run(*words: str) -> None:
    subprocess.run(words, check=True)


def hidden(document: Any, path: str) -> Any:
    """Return what is known of files below the mount of a volume."""
    binds = [bind for bind in document["binds"] if bind["mount_point"] == path and bind["device"]]
    found = binds[0]["hidden_files"] if binds else None
    return found or {"files": 0}


def on_disk(document: Any) -> list[Any]:
    return [bind for bind in document["binds"] if bind["verdict"] == "on_disk"]


@contextmanager
def watched(node: DemoNode, way: str = "", **settings: str) -> Iterator[DaemonProcess]:
    with DemoKubelet(node.pod_list) as kubelet:
        every = {"kubelet.url": kubelet.url, "look_seconds": "0.5", **settings}
        with DaemonProcess(node, way=way, settings=every) as daemon:
            daemon.wait_for(lambda d: d["pods_known"])
            yield daemon


def restarted_on_bare(node: DemoNode, pod: DemoPod, *targets: str) -> Container:
    """Restart a container as the kubelet does, between a driver's unmount and its next publish."""
    for target in targets:
        run("umount", "-l", target)
    return node.start_container(pod)


@in_lab(timeout=120)
def test_a_container_on_the_nodes_disk_is_told_everywhere(node: DemoNode) -> None:
    source = node.add_source("one")
    pod = node.add_pod("p", [PodVolume("v", source, driver=DRIVER)], [PodMount("v", "/data")])
    node.start_container(pod)
    path = pod.volume_path("v")
    with (
        DemoApiServer() as api,
        watched(node, **{"apiserver.url": api.url, "node_name": node.name}) as daemon,
    ):
        claim = {"kind": "PersistentVolumeClaim", "namespace": "demo", "name": "c", "uid": "c-1"}
        api.objects = {"/api/v1/persistentvolumes/v": {"spec": {"claimRef": claim}}}
        daemon.wait_until_watching(2)
        source.kill()
        container = restarted_on_bare(node, pod, path)
        container.write("/data/lost", "x")
        # While the volume is not there yet, by what is remembered of it ...
        (bind,) = on_disk(daemon.wait_for(on_disk))
        assert (bind["container"], bind["mount_point"]) == (container.spec.container_id, "/data")
        source.restart()
        run("mount", "--bind", source.path, path)
        # ... and when the driver has published it, by what the host shows.
        document = daemon.wait_for(lambda d: d["totals"]["verdicts"]["healthy"] == 1 and on_disk(d))
        (bind,) = on_disk(document)
        assert bind["directory"]["path"] == path
        assert (bind["refusal"], bind["driver"]) == ("on_disk", DRIVER)
        sets = [
            word for key, value in daemon.values.items() for word in ("--set", f"{key}={value}")
        ]
        assert run_fusewatchd("status", *sets).returncode == 1
        explained = run_fusewatchd("explain", pod.uid, *sets)
        assert explained.returncode == 1
        assert f"{path} on the node" in explained.stdout
        assert "estart the pod" in explained.stdout

        def told() -> set[str]:
            events = [e for e in api.events() if e["reason"] == "FuseVolumeOnNodeDisk"]
            return {event["regarding"]["kind"] for event in events}

        wait_until(lambda: told() == {"Pod", "PersistentVolumeClaim"}, daemon.log)
        assert container.read("/data/lost") == "x"
        # Only a new container ends it: it gets the volume.
        assert node.start_container(pod).read("/data/hello") == "one"
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["healthy"] == 2 and not on_disk(d))


@in_lab(timeout=120)
def test_a_daemon_that_starts_later_sees_it_too(node: DemoNode) -> None:
    """A subPath of the volume, with the kubelet's bind of it made while the volume was away."""
    source = node.add_source("one", files={"sub/hello": "sub"})
    mount = PodMount("v", "/data", sub_path="sub")
    pod = node.add_pod("p", [PodVolume("v", source, driver=DRIVER)], [mount])
    path, subpath = pod.volume_path("v"), pod.host_path_of(mount)
    run("umount", "-l", subpath)
    run("umount", "-l", path)
    os.makedirs(f"{path}/sub")
    node.bind_subpath(pod, mount)
    node.start_container(pod).write("/data/lost", "x")
    run("mount", "--bind", source.path, path)
    with watched(node) as daemon:
        (bind,) = on_disk(daemon.wait_for(on_disk))
        assert bind["directory"]["path"] == f"{path}/sub"


@in_lab(timeout=120)
def test_a_container_born_from_the_bare_target_of_a_subpath(node: DemoNode) -> None:
    source = node.add_source("one", files={"sub/hello": "sub"})
    mount = PodMount("v", "/data", sub_path="sub")
    pod = node.add_pod("p", [PodVolume("v", source, driver=DRIVER)], [mount])
    target = pod.host_path_of(mount)
    node.start_container(pod)
    with watched(node) as daemon:
        daemon.wait_until_watching(3)
        restarted_on_bare(node, pod, target)
        (bind,) = on_disk(daemon.wait_for(on_disk))
        assert bind["directory"]["path"] == target


def published_directory(node: DemoNode, name: str) -> tuple[PodVolume, str]:
    """A volume that is a directory of the node, as some CSI drivers have it."""
    directory = f"{node.lab}/data/{name}"
    os.makedirs(directory)
    return PodVolume(name, driver="hostpath.csi.k8s.io"), directory


@in_lab(timeout=120)
def test_what_only_looks_so_is_not_told(node: DemoNode) -> None:
    """EmptyDirs, hostPaths, local volumes, drivers that publish or fill a directory of the node."""
    source, other = node.add_source("one"), node.add_source("other")
    bound, directory = published_directory(node, "bound")
    filled, _ = published_directory(node, "filled")
    local, plain = f"{node.lab}/disk", f"{node.lab}/host"
    for each in (local, plain):
        os.makedirs(each)
    volumes = [
        PodVolume("v", source, driver=DRIVER),
        PodVolume("e", kind=VolumeKind.EMPTY_DIR),
        PodVolume("h", kind=VolumeKind.HOST_PATH, host_path=plain),
        PodVolume("local", kind=VolumeKind.LOCAL),
        bound,
        filled,
    ]
    follow = MountPropagation.HOST_TO_CONTAINER
    mounts = [PodMount(v.name, f"/{v.name}") for v in volumes]
    mounts.append(PodMount("v", "/follow", propagation=follow))
    pod = node.add_pod("p", volumes, mounts)
    run("mount", "--bind", local, pod.volume_path("local"))
    run("mount", "--bind", directory, pod.volume_path("bound"))
    first = node.start_container(pod)
    with watched(node) as daemon:
        daemon.wait_until_watching(3)
        for name in ("e", "h", "local", "bound", "filled"):
            first.write(f"/{name}/file", "x")
        # FUSE file systems come later where containers have had a directory from the start.
        run("mount", "--bind", other.path, pod.volume_path("e"))
        run("mount", "--bind", other.path, plain)
        source.kill()
        source.restart()
        daemon.wait_for(lambda d: len(d["outages"]) == 1)
        looked = daemon.status()["cycle"]
        daemon.wait_for(lambda d: d["cycle"] > looked + 5)
        assert on_disk(daemon.status()) == []
        # Started while it was away, and it has arrived since.
        path = pod.volume_path("v")
        run("umount", "-l", path)
        container = node.start_container(pod)
        run("mount", "--bind", source.path, path)
        container.wait_until_readable("/follow/hello", 20.0)
        assert [bind["mount_point"] for bind in on_disk(daemon.wait_for(on_disk))] == ["/v"]


REPLACE = {"recovery.on_disk": "replace"}


def files_below(path: str, source: Source) -> dict[str, bytes]:
    """Return what is in a directory below all mounts there; the volume is put back afterwards."""
    while subprocess.run(["umount", "-l", path], capture_output=True, check=False).returncode == 0:
        pass
    found = {}
    for name in os.listdir(path):
        with open(f"{path}/{name}", "rb") as file:
            found[name] = file.read()
    run("mount", "--bind", source.path, path)
    return found


@WAYS
@in_lab(timeout=120)
def test_the_volume_is_mounted_over_the_directory(node: DemoNode, way: str) -> None:
    """As soon as the driver has published it; what was written stays, byte for byte."""
    source = node.add_source("one", files={"hello": "one", "sub/hello": "sub"})
    volume = PodVolume("v", source, driver=DRIVER)
    mounts = [
        PodMount("v", "/data"),
        PodMount("v", "/ro", access=Access.READ_ONLY),
        PodMount("v", "/follow", propagation=MountPropagation.HOST_TO_CONTAINER),
    ]
    pod = node.add_pod("p", [volume], mounts)
    node.start_container(pod)
    path = pod.volume_path("v")
    with watched(node, way, **REPLACE) as daemon:
        daemon.wait_until_watching(4)
        source.kill()
        container = restarted_on_bare(node, pod, path)
        container.write("/data/lost", "x\n" * 1000)
        daemon.wait_for(lambda d: len(on_disk(d)) == 3)
        source.restart()
        run("mount", "--bind", source.path, path)
        for point in ("/data", "/ro", "/follow"):
            container.wait_until_readable(f"{point}/hello", 20.0)
            assert container.read(f"{point}/hello") == "one"
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["healthy"] == 4 and not on_disk(d))
        lines = [line.split() for line in container.mountinfo().splitlines()]
        options = {p: o for _, _, _, _, p, o, *_ in lines}  # The topmost is the last.
        assert options["/data"].startswith("rw,nosuid,nodev")
        assert options["/ro"].startswith("ro,nosuid,nodev")
        with pytest.raises(OSError, match="Read-only"):
            container.write("/ro/file", "x")
        container.write("/data/kept", "y")
        # From now on it is a mount as any other.
        source.kill()
        source.restart()
        container.wait_until_readable("/data/kept", 20.0)
        document = daemon.wait_for(
            lambda d: d["totals"]["verdicts"]["healthy"] == 4 and not d["incidents"]
        )
        (bind,) = (b for b in document["binds"] if b["mount_point"] == path)
        found = {"path": path, "files": 1, "bytes": 2000, "is_whole": True}
        assert bind["hidden_files"] == found
        assert "over the node's directory" in daemon.log()
        assert daemon.log().count("event=on_disk") == 1
    assert files_below(path, source) == {"lost": b"x\n" * 1000}


@in_lab(timeout=120)
def test_what_must_not_be_covered_is_left_and_told(node: DemoNode) -> None:
    """A container of a pod that ends, and a subPath that the volume does not have."""
    source = node.add_source("one")
    ending = node.add_pod("ending", [PodVolume("v", source)], [PodMount("v", "/data")])
    part = PodMount("v", "/data", sub_path="not/there")
    partial = node.add_pod("partial", [PodVolume("v", source)], [])
    containers = []
    for pod in (ending, partial):
        path = pod.volume_path("v")
        run("umount", "-l", path)
        if pod is partial:
            os.makedirs(f"{path}/not/there")
            pod.mounts = (part,)
            node.bind_subpath(pod, part)
        containers.append(node.start_container(pod))
        containers[-1].write("/data/lost", "x")
    ending.is_deleting = True
    for pod in (ending, partial):
        run("mount", "--bind", source.path, pod.volume_path("v"))
    with watched(node, **REPLACE) as daemon:
        document = daemon.wait_for(
            lambda d: {b["refusal"] for b in on_disk(d)} == {"pod_ending", "subpath_missing"}
        )
        assert len(on_disk(document)) == 2
    for container in containers:
        assert container.read("/data/lost") == "x"


@in_lab(timeout=120)
def test_files_below_a_volume_that_its_driver_mounts_again_are_named(node: DemoNode) -> None:
    source = node.add_source("one")
    pod = node.add_pod("p", [PodVolume("v", source, driver=DRIVER)], [PodMount("v", "/data")])
    path = pod.volume_path("v")
    node.start_container(pod)
    with (
        DemoApiServer() as api,
        watched(node, **{"apiserver.url": api.url, "node_name": node.name}) as daemon,
    ):
        daemon.wait_until_watching(2)
        run("umount", "-l", path)
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["bare"] == 1)
        os.makedirs(f"{path}/deep/er")
        for name, content in {"a": "x" * 10, "deep/b": "y" * 5, "deep/er/c": ""}.items():
            with open(f"{path}/{name}", "w") as file:
                file.write(content)
        os.symlink("/etc/passwd", f"{path}/link")
        run("mount", "--bind", source.path, path)
        document = daemon.wait_for(lambda d: hidden(d, path)["files"] == 4)
        found = hidden(document, path)
        assert (found["path"], found["files"], found["is_whole"]) == (path, 4, True)
        assert found["bytes"] == 15 + len("/etc/passwd")
        sets = [
            word for key, value in daemon.values.items() for word in ("--set", f"{key}={value}")
        ]
        explained = run_fusewatchd("explain", path, *sets)
        assert f"4 files, {found['bytes']} bytes, in {path} on the node" in explained.stdout
        wait_until(lambda: "FuseVolumeHidesFiles" in api.reasons(), daemon.log)
        (event,) = (e for e in api.events() if e["reason"] == "FuseVolumeHidesFiles")
        assert event["note"].endswith(f"There are 4 files, {found['bytes']} B.")
        wait_until(lambda: "4 files of the node's disk hidden below the volume" in daemon.log())
    assert "hello" in os.listdir(path)


@in_lab(timeout=120)
def test_more_files_than_are_counted(node: DemoNode) -> None:
    """A look has bounds, and no other volume waits for it."""
    source = node.add_source("one")
    pod = node.add_pod("p", [PodVolume("v", source, driver=DRIVER)], [PodMount("v", "/data")])
    path = pod.volume_path("v")
    node.start_container(pod)
    with watched(node) as daemon:
        daemon.wait_until_watching(2)
        run("umount", "-l", path)
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["bare"] == 1)
        for number in range(12_000):
            os.mknod(f"{path}/{number}")
        run("mount", "--bind", source.path, path)
        document = daemon.wait_for(lambda d: not hidden(d, path).get("is_whole", True))
        found = hidden(document, path)
        assert (found["files"] <= 10_000, found["is_whole"]) == (True, False)
