"""Every kind of volume and container on one node, recovered by the real daemon after one crash."""

from __future__ import annotations

import os
from typing import Any

import pytest

from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.container_spec import Access, MountPropagation
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import ContainerRole, DemoPod, PodMount, PodVolume, VolumeKind
from fusewatchd.demo.node.sources import Source
from tests.lab import WAYS, in_lab

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

DEADLINE = 20.0
SEAWEEDFS, JUICEFS = "seaweedfs-csi-driver", "csi.juicefs.com"
CUBEFS, ACME = "csi.cubefs.com", "acmefs.csi.example.com"
FILES = {"hello": "one", "sub/dir/hello": "sub"}


def crash(*sources: Source) -> None:
    for source in sources:
        source.kill()
    for source in sources:
        source.restart()


def driver_settings(node: DemoNode) -> dict[str, str]:
    template = (
        f"{{name: acmefs, csi_driver: {ACME}, source: '{node.lab}/acmefs/{{volume_handle}}'}}"
    )
    return {
        "drivers.juicefs.mount_root": f"{node.lab}/juicefs",
        "drivers.templates": f"[{template}]",
    }


def staged_by_name(node: DemoNode, volume: PodVolume) -> str:
    """Lay out the staging path of kubelets before 1.24."""
    path = f"{node.kubelet_root}/plugins/kubernetes.io/csi/pv/{volume.directory}"
    os.makedirs(path)
    with open(f"{path}/vol_data.json", "w") as file:
        file.write(f'{{"driverName": "{volume.driver}", "volumeHandle": "{volume.handle}"}}')
    return f"{path}/globalmount"


def by_point(document: Any) -> dict[str, Any]:
    return {bind["mount_point"]: bind for bind in document["binds"] if not bind["namespace"]}


def readable(container: Container, path: str, content: str) -> None:
    container.wait_until_readable(path, DEADLINE)
    assert container.read(path) == content


def pod_of_every_kind(
    node: DemoNode, source: Source, other: Source
) -> tuple[DemoPod, list[PodMount]]:
    """Two sources: what the pod has a bind of on the host is known by that bind alone."""
    kinds = {
        "claim": PodVolume("claim", source, directory="pv-1"),
        "inline": PodVolume("inline", source, VolumeKind.CSI_INLINE),
        "generic": PodVolume("generic", source, VolumeKind.EPHEMERAL, directory="pv-2"),
        "flex": PodVolume("flex", source, VolumeKind.FLEX),
        "local": PodVolume("local", source, VolumeKind.LOCAL, directory="pv-3"),
        "host": PodVolume("host", kind=VolumeKind.HOST_PATH, host_path=other.path),
        "inside": PodVolume("inside", kind=VolumeKind.HOST_PATH, host_path=f"{other.path}/sub/dir"),
    }
    mounts = [PodMount(name, f"/{name}") for name in kinds]
    mounts += [
        PodMount(name, f"/{name}-sub", sub_path="sub/dir") for name in kinds if name != "inside"
    ]
    mounts.append(
        PodMount(
            "host", "/host-ro", access=Access.READ_ONLY,
            propagation=MountPropagation.HOST_TO_CONTAINER,
        )
    )  # fmt: skip
    return node.add_pod("kinds", kinds.values(), mounts), mounts


@WAYS
@in_lab(timeout=150)
def test_every_kind_of_volume_recovers(node: DemoNode, way: str) -> None:
    source, other = (node.add_source(name, files=FILES) for name in ("one", "other"))
    pod, mounts = pod_of_every_kind(node, source, other)
    container = node.start_container(pod)
    on_host = sum(m.volume not in ("host", "inside") or bool(m.sub_path) for m in mounts)
    with (
        DemoKubelet(node.pod_list) as kubelet,
        DaemonProcess(node, way=way, settings={"kubelet.url": kubelet.url}) as daemon,
    ):
        daemon.wait_for(lambda d: d["pods_known"])
        daemon.wait_until_watching(on_host + len(mounts), DEADLINE)
        for _ in range(2):
            crash(source, other)
            for mount in mounts:
                is_part = mount.sub_path or mount.volume == "inside"
                readable(container, f"{mount.mount_path}/hello", "sub" if is_part else "one")
        with pytest.raises(OSError, match="Read-only"):
            container.write("/host-ro/new", "x")
        document = daemon.wait_until_watching(on_host + len(mounts), DEADLINE)
        assert {b["source"]["rule"] for b in document["binds"]} == {"lineage", "host-path"}
        kinds = {bind["kind"] for bind in by_point(document).values()}
        assert kinds == {"publish", "subpath", "flexvolume", "local"}
        again = node.start_container(pod)
        for mount in mounts:
            assert again.read(f"{mount.mount_path}/hello") in ("one", "sub")


@in_lab(timeout=120)
def test_every_kind_of_container_recovers(node: DemoNode) -> None:
    source = node.add_source("one")
    roles = {
        "init": ContainerRole.INIT,
        "sidecar": ContainerRole.SIDECAR,
        "app": ContainerRole.APP,
        "debugger": ContainerRole.EPHEMERAL,
    }
    mounts = [PodMount("v", "/data", container=name) for name in roles]
    pod = node.add_pod("p", [PodVolume("v", source)], mounts, roles=roles)
    containers = {name: node.start_container(pod, name) for name in roles}
    with (
        DemoKubelet(node.pod_list) as kubelet,
        DaemonProcess(node, settings={"kubelet.url": kubelet.url}) as daemon,
    ):
        daemon.wait_until_watching(1 + len(roles), DEADLINE)
        crash(source)
        for container in containers.values():
            readable(container, "/data/hello", "one")
        for name in ("sidecar", "app"):
            restarted = node.start_container(pod, name)
            assert restarted.read("/data/hello") == "one"
        daemon.wait_until_watching(1 + len(roles), DEADLINE)


@in_lab(timeout=120)
def test_a_daemon_started_after_the_crash_knows_the_drivers(node: DemoNode) -> None:
    old_volume = PodVolume("v", directory="pv-old", driver=CUBEFS, handle="h-old")
    places = {
        SEAWEEDFS: (node.staging_path(SEAWEEDFS, "h-new"), "h-new"),
        CUBEFS: (staged_by_name(node, old_volume), "h-old"),
        JUICEFS: (f"{node.lab}/juicefs/h-juice-abcdef", "h-juice"),
        ACME: (f"{node.lab}/acmefs/h-acme", "h-acme"),
    }
    containers = []
    for driver, (path, handle) in places.items():
        source = node.add_source(driver, path=path)
        directory = "pv-old" if driver == CUBEFS else f"pv-{handle}"
        volume = PodVolume("v", source, directory=directory, driver=driver, handle=handle)
        pod = node.add_pod(f"p-{handle}", [volume], [PodMount("v", "/data")])
        containers.append(node.start_container(pod))
    unknown = node.add_source("unknown")
    stranger = node.add_pod("stranger", [PodVolume("v", unknown, driver="x.csi")], [])
    crash(*node.sources.values())
    with (
        DemoKubelet(node.pod_list) as kubelet,
        DaemonProcess(
            node, settings={"kubelet.url": kubelet.url, **driver_settings(node)}
        ) as daemon,
    ):
        for container, driver in zip(containers, places, strict=True):
            readable(container, "/data/hello", driver)
        document = daemon.wait_until_watching(2 * len(places), DEADLINE)
        binds = by_point(document)
        assert binds[stranger.volume_path("v")]["refusal"] == "no_source"
        rules = {bind["driver"]: bind["source"]["rule"] for bind in binds.values()}
        assert rules == {
            SEAWEEDFS: "csi-staging",
            CUBEFS: "csi-staging",
            JUICEFS: "juicefs",
            ACME: "acmefs",
            "x.csi": None,
        }


@in_lab(timeout=90)
def test_what_has_no_source_is_named_and_an_emptydir_is_cleaned_up(node: DemoNode) -> None:
    gcsfuse = PodVolume("v", driver="gcsfuse.csi.storage.gke.io", directory="pv-gcs")
    direct = node.add_pod("direct", [gcsfuse], [])
    node.add_source("gcs", path=direct.volume_path("v"))
    own = node.add_pod("own", [PodVolume("cache", kind=VolumeKind.EMPTY_DIR)], [])
    inside = f"{own.volume_path('cache')}/mnt"
    node.add_source("sidecar", path=inside)
    settings = {
        "cleanup.detach_orphans": "true",
        "cleanup.grace_seconds": "0.2",
        "kubelet.refresh_seconds": "0.2",
        "look_seconds": "0.5",
    }
    with (
        DemoKubelet(node.pod_list) as kubelet,
        DaemonProcess(node, settings={"kubelet.url": kubelet.url, **settings}) as daemon,
    ):
        daemon.wait_until_watching(2, DEADLINE)
        for source in node.sources.values():
            source.kill()
        document = daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == 2, DEADLINE)
        binds = by_point(document)
        found = {
            point: (bind["kind"], bind["source"]["rule"], bind["refusal"])
            for point, bind in binds.items()
        }
        assert found == {
            direct.volume_path("v"): ("publish", "gcsfuse", "direct_mount"),
            inside: ("emptydir", "emptydir", "direct_mount"),
        }
        own.is_deleting = True
        daemon.wait_for(lambda d: d["orphans_detached"]["layers"] == 1, DEADLINE)
        assert inside not in by_point(daemon.status())
        assert direct.volume_path("v") in by_point(daemon.status())
