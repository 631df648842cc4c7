from __future__ import annotations

import pytest

from fusewatchd.kubeletdir import parse_bind_path, pod_uid_of_cgroup
from fusewatchd.model import BindKind, BindPath

UID = "50a97417-eded-45b5-9699-867eb25c5bb8"
STATIC = "0123456789abcdef0123456789abcdef"
CID = "bc8bc5fca0728cd258d7a3152e1f744581616a80bff779ecf14b6e7ceede884a"
ROOT = "/var/lib/kubelet"


@pytest.mark.parametrize(
    ("below", "expected"),
    [
        (
            f"{UID}/volumes/kubernetes.io~csi/pv/mount",
            BindPath(BindKind.PUBLISH, UID, "pv", "kubernetes.io~csi"),
        ),
        (
            f"{STATIC}/volumes/kubernetes.io~csi/pv/mount",
            BindPath(BindKind.PUBLISH, STATIC, "pv", "kubernetes.io~csi"),
        ),
        (f"{UID}/volume-subpaths/pv/app/0", BindPath(BindKind.SUBPATH, UID, "pv", "", "app", "0")),
        (f"{UID}/volumes/lab~bind/v", BindPath(BindKind.FLEXVOLUME, UID, "v", "lab~bind")),
        (f"{UID}/volumes/kubernetes.io~csi/pv", None),
        (f"{UID}/volumes/kubernetes.io~csi/pv/mount/cache", None),
        (
            f"{UID}/volumes/kubernetes.io~local-volume/pv",
            BindPath(BindKind.LOCAL, UID, "pv", "kubernetes.io~local-volume"),
        ),
        (f"{UID}/volumes/kubernetes.io~local-volume/pv/sub", None),
        (
            f"{UID}/volumes/kubernetes.io~empty-dir/cache",
            BindPath(BindKind.EMPTY_DIR, UID, "cache", "kubernetes.io~empty-dir"),
        ),
        (
            f"{UID}/volumes/kubernetes.io~empty-dir/cache/a/b",
            BindPath(BindKind.EMPTY_DIR, UID, "cache", "kubernetes.io~empty-dir", index="a/b"),
        ),
        (f"{UID}/volumes/kubernetes.io~secret/token", None),
        (f"{UID}/volumes/kubernetes.io~projected/token", None),
        (f"{UID}/volumes/kubernetes.io~csi/../mount", None),
        (f"{UID}/volume-subpaths/pv/app", None),
        (f"../{UID}/volume-subpaths/pv/app/0", None),
        (f"{UID}//volume-subpaths/pv/app/0", None),
        ("x/volume-subpaths/pv/app/0", None),
        ("", None),
    ],
)
def test_paths_below_the_pods_directory(below: str, expected: BindPath | None) -> None:
    assert parse_bind_path(ROOT, f"{ROOT}/pods/{below}") == expected


@pytest.mark.parametrize("path", ["/", ROOT, "/var/lib/kubelet2/pods/x", f"{ROOT}/plugins/x"])
def test_paths_elsewhere(path: str) -> None:
    assert parse_bind_path(ROOT, path) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"9:name=systemd:/kubepods/besteffort/pod{UID}/{CID}\n0::/\n", (UID, CID)),
        (
            f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID.replace('-', '_')}.slice/cri-containerd-{CID}.scope",
            (UID, CID),
        ),
        (f"0::/kubelet.slice/docker/{CID}/kubelet/kubepods/pod{STATIC}/{CID}", (STATIC, CID)),
        (f"0::/kubepods/pod{UID}", (UID, "")),
        ("0::/system.slice/sshd.service", None),
        (f"0::/user.slice/pod{UID}/{CID}", None),
        ("0::/kubepods/besteffort", None),
        ("", None),
    ],
)
def test_cgroups(text: str, expected: tuple[str, str] | None) -> None:
    assert pod_uid_of_cgroup(text) == expected
