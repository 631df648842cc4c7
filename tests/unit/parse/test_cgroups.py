"""Whose a process is, by the forms of cgroup paths that runtimes and kubelets make."""

from __future__ import annotations

import pytest

from fusewatchd.model.servers import MemoryCgroup
from fusewatchd.parse.cgroups import (
    CgroupClaim,
    claim_of,
    may_be_pod,
    memory_cgroup_of,
    pod_cgroup_above,
    unit_of_cgroup,
)

UID = "50a97417-eded-45b5-9699-867eb25c5bb8"
SLICE = UID.replace("-", "_")
STATIC = "0123456789abcdef0123456789abcdef"
CID = "bc8bc5fca0728cd258d7a3152e1f744581616a80bff779ecf14b6e7ceede884a"
KUBE = "/kubepods.slice/kubepods-burstable.slice"
KIND = f"/docker/{'0' * 64}/kubelet.slice/kubelet-kubepods.slice"
POD_SLICE = f"kubepods-burstable-pod{SLICE}.slice"


@pytest.mark.parametrize(
    ("above", "below", "anchor"),
    [
        # cgroupfs driver
        (f"/kubepods/besteffort/pod{UID}", f"/{CID}", ""),
        (f"/kubepods/burstable/pod{UID}", f"/{CID}", ""),
        (f"/kubepods/pod{UID}", f"/{CID}", ""),
        # systemd driver
        (f"{KUBE}/{POD_SLICE}", f"/cri-containerd-{CID}.scope", ""),
        (f"/kubepods.slice/kubepods-pod{SLICE}.slice", f"/crio-{CID}.scope", ""),
        (f"/kubepods.slice/kubepods-pod{SLICE}.slice", f"/crio-{CID}.scope", ""),
        (f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SLICE}.slice", f"/docker-{CID}.scope", ""),
        # a node that is a container
        (f"/kubelet/kubepods/pod{UID}", f"/{CID}", "/kubelet"),
        (f"{KIND}/kubelet-kubepods-pod{SLICE}.slice", f"/cri-containerd-{CID}.scope", KIND.rpartition("/")[0]),
        (f"{KIND}/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{SLICE}.slice", f"/cri-containerd-{CID}.scope", KIND.rpartition("/")[0]),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "inside", ["", "/container", "/system.slice/nginx.service", f"/kubepods/pod{STATIC}/{'1' * 64}"]
)
def test_a_container_below_kubepods(above: str, below: str, anchor: str, inside: str) -> None:
    """What is inside it, a container has named itself."""
    expected = CgroupClaim(UID, CID, above, above + below, anchor)
    assert claim_of(above + below + inside) == expected


def test_a_static_pod_is_named_by_a_hash() -> None:
    claim = claim_of(f"/kubepods/pod{STATIC}/{CID}")
    assert claim is not None
    assert claim.pod_uid == STATIC


@pytest.mark.parametrize(
    ("path", "uid"),
    [
        (f"/kubepods/podetcd-static/{CID}", "etcd-static"),
        (f"/kubepods/burstable/podproxy.node-1/{CID}", "proxy.node-1"),
        (f"/kubepods.slice/kubepods-podKUBE_PROXY.slice/crio-{CID}.scope", "KUBE_PROXY"),
        (f"{KUBE}/kubepods-burstable-poddeadbeef_node.slice/docker-{CID}.scope", "deadbeef_node"),
        (f"/kubepods/podx{UID}/{CID}", f"x{UID}"),
    ],
)
def test_a_pod_may_be_called_anything(path: str, uid: str) -> None:
    """A manifest names its pod as its author likes; systemd's paths have no dash of its name."""
    claim = claim_of(path)
    assert claim is not None
    assert (claim.pod_uid, claim.container_id) == (uid, CID)


@pytest.mark.parametrize(
    "pod", [f"/kubepods/pod{UID}", f"/kubepods.slice/kubepods-pod{SLICE}.slice"]
)
def test_the_cgroup_of_a_pod_is_of_no_container(pod: str) -> None:
    assert claim_of(pod) == CgroupClaim(UID, "", pod, pod, "")


@pytest.mark.parametrize(
    ("above", "name"),
    [
        ("", f"crio-{CID}"),
        ("/docker", CID),
        ("/system.slice", f"cri-containerd-{CID}.scope"),
        (f"/system.slice/docker.service/BestEffort.slice/BestEffort-pod{SLICE}.slice", CID),
        # runtime and kubelet disagree about the driver
        ("/system.slice/containerd.service", f"kubepods-burstable-pod{SLICE}.slice:cri-containerd:{CID}"),
        # part of a name is no level of the kubelet's
        (f"/mykubepods/pod{UID}", CID),
        (f"/kubepods-x/pod{UID}", CID),
        (f"/x-kubepods.slice/x-kubepods-pod{SLICE}.slice", CID),
        (f"/user.slice/pod{UID}", CID),
    ],
)  # fmt: skip
def test_elsewhere_only_the_id_is_told(above: str, name: str) -> None:
    claim = CgroupClaim("", CID, above, f"{above}/{name}", None)
    assert claim_of(f"{above}/{name}") == claim
    assert claim_of(f"{above}/{name}/{'1' * 64}") == claim


@pytest.mark.parametrize(
    "path",
    [
        "/kubepods/besteffort",
        f"/kubepods/x/pod{UID}/{CID}",
        f"/kubepods/x/kubepods/pod{UID}/{CID}",
        f"/kubepods/pod/{CID}",
        f"/kubepods/pod{SLICE}.slice/{CID}",
        f"/kubepods.slice/pod{SLICE}.slice/{CID}",
        f"/kubepods.slice/kubepods-burstable-pod{SLICE}.slice/crio-{CID}.scope",
        f"/user.slice/pod{UID}/{CID[:40]}",
        f"/x/{CID}0",
        "/",
        "",
    ],
)
def test_no_container(path: str) -> None:
    assert claim_of(path) is None


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/sshd.service", "sshd.service"),
        ("0::/system.slice/system-geesefs.slice/geesefs@data.service", "geesefs@data.service"),
        ("0::/system.slice/run-r8f31.scope", "run-r8f31.scope"),
        ("0::/system.slice/blobfuse.service/workers", "blobfuse.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/s3fs.service", "s3fs.service"),
        (f"0::/system.slice/docker-{CID}.scope/system.slice/juicefs.service", "juicefs.service"),
        ("0::/system.slice/_cgroup.procs.service", "cgroup.procs.service"),
        ("3:cpu:/other.service\n1:name=systemd:/system.slice/right.service\n0::/", "right.service"),
        (f"0::/system.slice/{'x' * 300}.service", ""),
        ("0::/", ""),
        ("0::/system.slice/.service\nnonsense\n::\n", ""),
        ("", ""),
    ],
)
def test_the_unit_of_a_process(text: str, unit: str) -> None:
    assert unit_of_cgroup(text) == unit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0::/system.slice/a.service", MemoryCgroup(2, "/system.slice/a.service")),
        ("0::/b\n5:cpu,memory:/a\n1:name=systemd:/c", MemoryCgroup(1, "/a")),
        ("0::/b\n5:memory.x:/a", MemoryCgroup(2, "/b")),
        ("0::/with:colon", MemoryCgroup(2, "/with:colon")),
        ("0::/../out", MemoryCgroup(2, "/../out")),
        ("4:memory\n", None),
        ("7:cpu:/a", None),
        ("", None),
    ],
)
def test_where_memory_is_counted(text: str, expected: MemoryCgroup | None) -> None:
    assert memory_cgroup_of(text) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"/kubepods/pod{UID}/{CID}", f"/kubepods/pod{UID}"),
        (f"/kubepods.slice/kubepods-pod{SLICE}.slice/cri-containerd-{CID}.scope", f"/kubepods.slice/kubepods-pod{SLICE}.slice"),
        ("/system.slice/a.service", ""),
        (f"/kubepods/pod{UID}", ""),
        ("/", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_the_cgroup_of_the_pod_is_above_its_containers(path: str, expected: str) -> None:
    assert pod_cgroup_above(path) == expected


@pytest.mark.parametrize(
    ("named", "uid", "may"),
    [
        ("etcd-static", "etcd-static", True),
        ("etcd_static", "etcd-static", True),
        ("etcd_static", "etcd_static", True),
        ("etcd-static", "etcd_static", False),
        ("etcd", "etcd-static", False),
        (UID, UID, True),
        (STATIC, UID, False),
        ("", "", True),
    ],
)
def test_which_pod_a_cgroup_may_name(named: str, uid: str, may: bool) -> None:
    assert may_be_pod(named, uid) is may


@pytest.mark.parametrize("name", ["\udcff", "ä", "a" * 254, "a b"])
def test_names_that_no_kubelet_gives(name: str) -> None:
    assert claim_of(f"/kubepods/pod{name}/{CID}") is None
