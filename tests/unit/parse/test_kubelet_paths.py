from __future__ import annotations

import pytest

from fusewatchd.model.pods import BindKind, BindPath
from fusewatchd.parse.kubelet_paths import kubelet_root_of, parse_bind_path

UID = "50a97417-eded-45b5-9699-867eb25c5bb8"
STATIC = "0123456789abcdef0123456789abcdef"
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
        (
            "etcd.static/volume-subpaths/pv/app/0",
            BindPath(BindKind.SUBPATH, "etcd.static", "pv", "", "app", "0"),
        ),
        ("./volume-subpaths/pv/app/0", None),
        ("", None),
    ],
)
def test_paths_below_the_pods_directory(below: str, expected: BindPath | None) -> None:
    assert parse_bind_path(f"{ROOT}/pods", f"{ROOT}/pods/{below}") == expected


@pytest.mark.parametrize("path", ["/", ROOT, "/var/lib/kubelet2/pods/x", f"{ROOT}/plugins/x"])
def test_paths_elsewhere(path: str) -> None:
    assert parse_bind_path(f"{ROOT}/pods", path) is None


@pytest.mark.parametrize(
    ("path", "root"),
    [
        (f"{ROOT}/pods/{UID}/volumes/kubernetes.io~csi/v/mount", ROOT),
        (f"/a/b/pods/{UID}/volume-subpaths/v/app/0", "/a/b"),
        ("/a/pods/etcd/volumes/lab~fuse/v", "/a"),
        ("/a/pods/x/volumes/kubernetes.io~empty-dir/e/pods/y/volumes/b~c/v", "/a"),
        ("/pods/x/volumes/b~c/v", ""),
        ("/a/pods/x/volumes/plain/v", ""),
        ("/a/pods/x/etc-hosts", ""),
        ("/a/xpods/x/volumes/b~c/v", ""),
    ],
)
def test_whose_directory_a_mount_is_in(path: str, root: str) -> None:
    """What a pod mounts in its own volume names no other directory than that of its kubelet."""
    assert kubelet_root_of(path) == root
