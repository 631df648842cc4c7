"""Whose a process is, by the forms of cgroup paths that runtimes and kubelets make."""

from __future__ import annotations

import pytest

from fusewatchd.cgroups import (
    CgroupOwner,
    memory_cgroup_of,
    owner_of_cgroup,
    pod_cgroup_above,
    pod_uid_of_cgroup,
)
from fusewatchd.model import MemoryCgroup

UID = "50a97417-eded-45b5-9699-867eb25c5bb8"
SLICE = UID.replace("-", "_")
STATIC = "0123456789abcdef0123456789abcdef"
CID = "bc8bc5fca0728cd258d7a3152e1f744581616a80bff779ecf14b6e7ceede884a"
IN_POD = CgroupOwner(UID, CID)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # cgroupfs driver: v1, where the unit's hierarchy names containerd's; v2
        (f"9:name=systemd:/kubepods/besteffort/pod{UID}/{CID}\n0::/\n", IN_POD),
        (f"12:memory:/kubepods/pod{UID}/{CID}\n1:name=systemd:/system.slice/containerd.service\n", IN_POD),
        (f"0::/kubepods/burstable/pod{UID}/{CID}", IN_POD),
        # systemd driver
        (f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICE}.slice/cri-containerd-{CID}.scope", IN_POD),
        (f"0::/kubepods.slice/kubepods-pod{SLICE}.slice/crio-{CID}.scope", IN_POD),
        (f"0::/kubepods.slice/kubepods-pod{SLICE}.slice/crio-{CID}.scope/container", IN_POD),
        (f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SLICE}.slice/docker-{CID}.scope", IN_POD),
        # runtime and kubelet disagree about the driver
        (f"0::/system.slice/containerd.service/kubepods-burstable-pod{SLICE}.slice:cri-containerd:{CID}", IN_POD),
        # a systemd of the pod's own in the container
        (f"0::/kubepods/pod{UID}/{CID}/system.slice/nginx.service", IN_POD),
        # nested kubelets: a node that is a container, and one that is a pod
        (f"0::/kubelet.slice/docker/{CID}/kubelet/kubepods/pod{STATIC}/{CID}", CgroupOwner(STATIC, CID)),
        (f"0::/docker/{'0' * 64}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{SLICE}.slice/cri-containerd-{CID}.scope", IN_POD),
        (f"0::/kubepods/pod{STATIC}/{'1' * 64}/kubepods/burstable/pod{UID}/{CID}", IN_POD),
        # the pod's cgroup itself
        (f"0::/kubepods/pod{UID}", CgroupOwner(UID)),
        # no pod: units
        ("0::/system.slice/sshd.service", CgroupOwner(unit="sshd.service")),
        ("0::/system.slice/system-geesefs.slice/geesefs@data.service", CgroupOwner(unit="geesefs@data.service")),
        ("0::/system.slice/run-r8f31.scope", CgroupOwner(unit="run-r8f31.scope")),
        ("0::/system.slice/blobfuse.service/workers", CgroupOwner(unit="blobfuse.service")),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/s3fs.service", CgroupOwner(unit="s3fs.service")),
        (f"0::/system.slice/docker-{CID}.scope/system.slice/juicefs.service", CgroupOwner(unit="juicefs.service")),
        ("0::/system.slice/_cgroup.procs.service", CgroupOwner(unit="cgroup.procs.service")),
        ("3:cpu:/other.service\n1:name=systemd:/system.slice/right.service\n0::/", CgroupOwner(unit="right.service")),
        # nobody's
        (f"0::/user.slice/pod{UID}/{CID}", CgroupOwner()),
        ("0::/kubepods/besteffort", CgroupOwner()),
        (f"0::/system.slice/{'x' * 300}.service", CgroupOwner()),
        ("0::/", CgroupOwner()),
        ("0::/system.slice/.service\nnonsense\n::\n", CgroupOwner()),
        ("", CgroupOwner()),
    ],
)  # fmt: skip
def test_whose_a_process_is(text: str, expected: CgroupOwner) -> None:
    assert owner_of_cgroup(text) == expected
    pod = (expected.pod_uid, expected.container_id) if expected.pod_uid else None
    assert pod_uid_of_cgroup(text) == pod


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
