"""Containers whose cgroup is not where a kubelet with ``cgroups-per-qos`` has them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node import cgroups
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode, ForeignKind
from fusewatchd.demo.node.pods import PodMount, PodVolume
from fusewatchd.demo.node.sources import Source
from tests.lab import in_lab, run_fusewatchd

pytestmark = pytest.mark.kernel
DEADLINE = 15.0

Place = Callable[[str, str, str], str]
PLACES: dict[str, Place] = {
    "normal": cgroups.pod_cgroup,
    "crio": lambda world, uid, cid: f"/{world}/crio-{cid}",
    "system": lambda world, uid, cid: f"/{world}/system.slice/cri-containerd-{cid}.scope",
    "docker": lambda world, uid, cid: f"/{world}/docker/{cid}",
    "besteffort": lambda world, uid, cid: (
        f"/{world}/system.slice/docker.service/BestEffort.slice"
        f"/BestEffort-pod{uid.replace('-', '_')}.slice/{cid}"
    ),
}


def by_systemd(world: str, uid: str, cid: str) -> str:
    level = f"/{world}/kubepods.slice/kubepods-besteffort.slice"
    pod = f"kubepods-besteffort-pod{uid.replace('-', '_')}.slice"
    return f"{level}/{pod}/cri-containerd-{cid}.scope"


def started(node: DemoNode, source: Source, name: str, place: Place, uid: str = "") -> Container:
    cgroups.pod_cgroup = place
    pod = node.add_pod(name, [PodVolume("v", source)], [PodMount("v", "/data")], uid=uid)
    return node.start_container(pod)


def asked(daemon: DaemonProcess, *words: str) -> subprocess.CompletedProcess[str]:
    sets = [word for key, value in daemon.values.items() for word in ("--set", f"{key}={value}")]
    return run_fusewatchd(*words, *sets)


@in_lab(timeout=60)
def test_by_the_kubelets_list(node: DemoNode) -> None:
    source = node.add_source("one")
    containers = [started(node, source, name, place) for name, place in PLACES.items()]
    with (
        DemoKubelet(node.pod_list) as kubelet,
        DaemonProcess(node, settings={"kubelet.url": kubelet.url}) as daemon,
    ):
        document = daemon.wait_until_watching(2 * len(containers))
        assert document["gaps"] == []
        source.kill()
        source.restart()
        for container in containers:
            container.wait_until_readable("/data/hello", DEADLINE)


@in_lab(timeout=60)
def test_without_a_list_they_are_not_understood_and_told(node: DemoNode) -> None:
    source = node.add_source("one")
    containers = {name: started(node, source, name, place) for name, place in PLACES.items()}
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(6)

        def told() -> str:
            document = daemon.wait_for(lambda d: bool(d["gaps"]))
            (gap,) = (gap for gap in document["gaps"] if gap["source"] == "containers")
            return str(gap["reason"])

        assert told().startswith("4 containers outside of kubepods may show volumes of pods")
        source.kill()
        source.restart()
        containers["normal"].wait_until_readable("/data/hello", DEADLINE)
        daemon.wait_until_watching(6)
        assert "kubelet.url" in told(), "they show what the binds have shown"
        daemon.wait_for(lambda d: len(d["accounts"]["unexplained"]) == 4)
        assert asked(daemon, "status").returncode == 1, "those pods cannot read"
        done = asked(daemon, "doctor")
        assert done.returncode == 1
        assert "set kubelet.url" in done.stdout
        assert "gap=containers" in daemon.log()
        for name in PLACES.keys() - {"normal"}:
            containers[name].stop()
        daemon.wait_for(lambda d: not d["gaps"], 40.0)


@in_lab(timeout=60)
def test_agents_are_not_taken_for_pods_containers(node: DemoNode) -> None:
    """They have copies of the kubelet's tree, and show everybody's volumes."""
    source = node.add_source("one")
    started(node, source, "normal", PLACES["normal"])
    cgroups.pod_cgroup = PLACES["docker"]
    node.add_foreign(ForeignKind.NODE_AGENT)
    node.add_foreign(ForeignKind.CSI_PLUGIN)
    with DaemonProcess(node) as daemon:
        document = daemon.wait_for(lambda d: d["namespaces"]["not_entered_count"] == 2)
        assert document["gaps"] == []


@pytest.mark.parametrize("has_list", [False, True], ids=["no-list", "list"])
@pytest.mark.parametrize("place", [cgroups.pod_cgroup, by_systemd])
@in_lab(timeout=60)
def test_pods_that_are_called_anything(node: DemoNode, place: Place, has_list: bool) -> None:
    """Static pods whose manifests have a uid of their author's."""
    source = node.add_source("one")
    names = ("etcd-static", "KUBE-PROXY-NODE1", "proxy.node-1", "deadbeef-node", "a_b")
    containers = [started(node, source, f"p{n}", place, uid) for n, uid in enumerate(names)]
    with DemoKubelet(node.pod_list) as kubelet:
        settings = {"kubelet.url": kubelet.url} if has_list else {}
        with DaemonProcess(node, settings=settings) as daemon:
            daemon.wait_until_watching(2 * len(names))
            source.kill()
            source.restart()
            for container in containers:
                container.wait_until_readable("/data/hello", DEADLINE)
            daemon.wait_until_watching(2 * len(names))
            assert asked(daemon, "explain", "etcd-static").returncode == 0
