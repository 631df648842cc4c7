"""Users and containers that name their cgroups, and their paths, after somebody else."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node import cgroups
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume, VolumeKind
from fusewatchd.demo.node.sources import Source
from fusewatchd.linux import syscalls
from tests.intruder import intruder, move_into, read_file
from tests.lab import in_lab, pod_with_container

pytestmark = pytest.mark.kernel

DEADLINE = 15.0
USER = 100000
DEAD = f"errno {errno.ENOTCONN}"


def settings(kubelet: DemoKubelet) -> dict[str, str]:
    return {
        "kubelet.url": kubelet.url,
        "kubelet.refresh_seconds": "0.2",
        "look_seconds": "0.2",
    }


def make(path: str, user: int = 0) -> str:
    """Make a cgroup; return its directory, whose topmost new part is a user's with all below."""
    directory = cgroups.create(path)
    if directory is None:
        pytest.skip("no cgroups here")
    parts = path.split("/")
    for number in range(3, len(parts) + 1):
        os.chown((cgroups.hierarchy() or "") + "/".join(parts[:number]), user, user)
    return directory


def remove(directory: str) -> None:
    """Remove a cgroup, and those above it that are empty."""
    while cgroups.remove(directory):
        directory = os.path.dirname(directory)


def crash(*sources: Source) -> None:
    for source in sources:
        source.kill()
        source.restart()


def look_again(node: DemoNode, source: Source, daemon: DaemonProcess, name: str) -> Container:
    """Return a container that the daemon has found by a look that began after this call."""
    _, container = pod_with_container(node, source, name)
    inode = container.mount_namespace
    daemon.wait_for(lambda d: any(b["namespace"] == inode for b in d["binds"]))
    return container


ID = "ab" * 32
Place = Callable[[str, DemoPod, DemoPod], str]


def victims_id(pod: DemoPod) -> str:
    return pod.containers["app"].spec.container_id


def own_cgroup(pod: DemoPod) -> str:
    return pod.containers["app"].spec.cgroup


def delegated(world: str, victim: DemoPod, other: DemoPod) -> str:
    return f"/{world}/user.slice/user@1000.service/kubepods/pod{victim.uid}/{ID}"


def with_the_victims_id(world: str, victim: DemoPod, other: DemoPod) -> str:
    return f"/{world}/user.slice/user@1000.service/kubepods/pod{victim.uid}/{victims_id(victim)}"


def by_systemd(world: str, victim: DemoPod, other: DemoPod) -> str:
    pod = f"kubepods-pod{victim.uid.replace('-', '_')}.slice"
    scope = f"cri-containerd-{victims_id(victim)}.scope"
    return f"/{world}/user.slice/user@1000.service/a/kubepods.slice/{pod}/{scope}"


def as_a_part(world: str, victim: DemoPod, other: DemoPod) -> str:
    return f"/{world}/root.slice/x-kubepods-y/pod{victim.uid}/{victims_id(victim)[:40]}"


def in_a_pod(world: str, victim: DemoPod, other: DemoPod) -> str:
    return f"{own_cgroup(other)}/kubepods/pod{victim.uid}/{victims_id(victim)}"


def by_a_line_of_its_own(world: str, victim: DemoPod, other: DemoPod) -> str:
    """No name ends a line, whatever Python takes for an end of one."""
    return f"/{world}/user.slice/user@1000.service/x\r0::{own_cgroup(victim)}"


@pytest.mark.parametrize(
    ("place", "owner"),
    [
        (delegated, USER),
        (with_the_victims_id, USER),
        (by_systemd, USER),
        (as_a_part, 0),
        (in_a_pod, 0),
        (by_a_line_of_its_own, USER),
    ],
)
@in_lab(timeout=90)
def test_a_user_who_names_his_cgroup_after_a_pod(node: DemoNode, place: Place, owner: int) -> None:
    source = node.add_source("one", files={"hello": "secret"})
    his = node.add_source("his", files={"hello": "his"})
    victim, container = pod_with_container(node, source, "web")
    other, _ = pod_with_container(node, his, "other")
    path = place(node.world.cgroup, victim, other)
    directory = make(path, owner) if place is not in_a_pod else cgroups.create(path) or ""
    stage = os.path.join(node.lab, "intruder")
    os.mkdir(stage)

    def show_his_own() -> str:
        return move_into(
            stage,
            "/data",
            lambda at: syscalls.mount(his.path, at, None, syscalls.MS_BIND),
        )

    orders = {"show": show_his_own, "read": lambda: read_file("/data/hello")}
    try:
        with (
            DemoKubelet(node.pod_list) as kubelet,
            intruder(directory, orders) as process,
            DaemonProcess(node, settings=settings(kubelet)) as daemon,
        ):
            assert process.order("show") == "moved"
            daemon.wait_until_watching(4)
            his.kill()
            device = process.device("/data")
            assert device
            late = look_again(node, source, daemon, "late")
            crash(source)
            for good in (container, late):
                good.wait_until_readable("/data/hello", DEADLINE)
            crash(source)
            container.wait_until_readable("/data/hello", DEADLINE)
            look_again(node, source, daemon, "later")
            assert process.device("/data") == device, daemon.log()
            assert process.order("read") == DEAD
    finally:
        remove(directory)


def two_containers(node: DemoNode, x: Source, w: Source) -> DemoPod:
    volumes = [PodVolume("x", x), PodVolume("w", w, VolumeKind.CSI_INLINE)]
    mounts = [PodMount("x", "/x"), PodMount("w", "/secret", container="side")]
    return node.add_pod("web", volumes, mounts)


@in_lab(timeout=90)
def test_a_container_never_gets_what_only_another_one_of_its_pod_has(node: DemoNode) -> None:
    x, w = (node.add_source(name, files={"hello": name}) for name in ("x", "w"))
    pod = two_containers(node, x, w)
    app, side = node.start_container(pod), node.start_container(pod, "side")
    kept: list[int] = []

    def keep() -> str:
        kept.append(syscalls.open_tree(syscalls.AT_FDCWD, "/x", syscalls.OPEN_TREE_CLONE))
        return "kept"

    def show() -> str:
        def put(at: str) -> None:
            with syscalls.closing_fd(os.open(at, os.O_PATH)) as fd:
                syscalls.move_mount(kept[0], fd)

        return move_into("/tmp", "/secret", put)

    orders = {"keep": keep, "show": show, "read": lambda: read_file("/secret/hello")}
    directory = app._cgroup_directory or pytest.skip("no cgroups here")
    with (
        DemoKubelet(node.pod_list) as kubelet,
        intruder(directory, orders, mount_namespace=app.pid) as process,
        DaemonProcess(node, settings=settings(kubelet)) as daemon,
    ):
        assert process.order("keep") == "kept"
        daemon.wait_until_watching(4)
        crash(x)
        app.wait_until_readable("/x/hello", DEADLINE)
        daemon.wait_until_watching(4)
        daemon.stop()
        daemon.start()
        daemon.wait_until_watching(4)
        assert process.order("show") == "moved"
        device = process.device("/secret")
        assert device
        look_again(node, x, daemon, "late")
        crash(x, w)
        app.wait_until_readable("/x/hello", DEADLINE)
        side.wait_until_readable("/secret/hello", DEADLINE)
        look_again(node, x, daemon, "later")
        assert process.device("/secret") == device, daemon.log()
        assert process.order("read") == DEAD


@pytest.mark.parametrize("name", ["app", "side"])
@in_lab(timeout=90)
def test_after_a_restart_a_container_gets_its_own_by_its_name(node: DemoNode, name: str) -> None:
    """Nothing is remembered, and both containers have another volume at the same path."""
    x, w = (node.add_source(name, files={"hello": name}) for name in ("x", "w"))
    volumes = [PodVolume("x", x), PodVolume("w", w, VolumeKind.CSI_INLINE)]
    mounts = [PodMount("x", "/data"), PodMount("w", "/data", container="side")]
    pod = node.add_pod("web", volumes, mounts)
    container = node.start_container(pod, name)
    with DemoKubelet(node.pod_list) as kubelet:
        crash(x, w)
        for volume, source in (("x", x), ("w", w)):
            syscalls.umount2(pod.volume_path(volume), syscalls.MNT_DETACH)
            syscalls.mount(source.path, pod.volume_path(volume), None, syscalls.MS_BIND)
        with DaemonProcess(node, settings=settings(kubelet)):
            container.wait_until_readable("/data/hello", DEADLINE)
            assert container.read("/data/hello") == {"app": "x", "side": "w"}[name]


def in_docker(world: str, uid: str, container_id: str) -> str:
    return f"/{world}/docker/{container_id}"


def in_a_service(world: str, uid: str, container_id: str) -> str:
    name = f"kubepods-burstable-pod{uid.replace('-', '_')}.slice:cri-containerd:{container_id}"
    return f"/{world}/system.slice/containerd.service/{name}"


def in_kind(world: str, uid: str, container_id: str) -> str:
    pod = f"kubelet-kubepods-pod{uid.replace('-', '_')}.slice"
    node = f"/{world}/docker/{'1' * 64}/kubelet.slice/kubelet-kubepods.slice"
    return f"{node}/{pod}/cri-containerd-{container_id}.scope"


@pytest.mark.parametrize("name", [in_docker, in_a_service, in_kind])
@in_lab(timeout=60)
def test_a_container_in_the_kubelets_list_may_be_anywhere(
    node: DemoNode, name: Callable[[str, str, str], str]
) -> None:
    source = node.add_source("one", files={"hello": "one"})
    cgroups.pod_cgroup = name
    _, container = pod_with_container(node, source, "web")
    with (
        DemoKubelet(node.pod_list) as kubelet,
        DaemonProcess(node, settings=settings(kubelet)) as daemon,
    ):
        daemon.wait_until_watching(2)
        crash(source)
        container.wait_until_readable("/data/hello", DEADLINE)


@in_lab(timeout=60)
def test_a_container_that_the_kubelet_does_not_list_is_left_alone(node: DemoNode) -> None:
    source = node.add_source("one", files={"hello": "one"})
    _, good = pod_with_container(node, source, "good")
    _, bad = pod_with_container(node, source, "bad")

    def pods() -> dict[str, object]:
        document = node.pod_list()
        for pod in document["items"]:
            if pod["metadata"]["name"] == "bad":
                pod["status"]["containerStatuses"][0]["containerID"] = f"containerd://{ID}"
        return document

    with (
        DemoKubelet(pods) as kubelet,
        DaemonProcess(node, settings=settings(kubelet)) as daemon,
    ):
        daemon.wait_until_watching(3)
        inode = bad.mount_namespace
        daemon.wait_for(lambda d: all(b["namespace"] != inode for b in d["binds"]))
        crash(source)
        good.wait_until_readable("/data/hello", DEADLINE)
        with pytest.raises(OSError, match="Transport endpoint"):
            bad.read("/data/hello")


@in_lab(timeout=60)
def test_cgroups_that_are_not_to_be_seen_are_a_gap(node: DemoNode) -> None:
    source = node.add_source("one", files={"hello": "one"})
    _, container = pod_with_container(node, source, "web")
    root = cgroups.hierarchy() or pytest.skip("no cgroups here")
    syscalls.mount("cover", root, "tmpfs", 0)
    try:
        with DaemonProcess(node, settings={"look_seconds": "0.2"}) as daemon:
            document = daemon.wait_for(lambda d: bool(d["gaps"]))
            assert "cgroups are not" in document["gaps"][0]["reason"]
            crash(source)
            daemon.wait_until_watching(1)
            with pytest.raises(OSError, match="Transport endpoint"):
                container.read("/data/hello")
            syscalls.umount2(root, syscalls.MNT_DETACH)
            container.wait_until_readable("/data/hello", DEADLINE)
            daemon.wait_for(lambda d: not d["gaps"])
    finally:
        if cgroups.hierarchy() is None:
            syscalls.umount2(root, syscalls.MNT_DETACH)
