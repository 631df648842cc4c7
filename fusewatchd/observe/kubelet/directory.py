"""Finding the kubelet's directory, and the pods that are below another one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable

from fusewatchd.model.kubelet import NOT_FOUND, PLUGINS, PODS, STAGING, KubeletDirectory
from fusewatchd.model.mount_table import MountTable, below
from fusewatchd.model.mounts import Mount
from fusewatchd.parse.kubelet_paths import kubelet_root_of
from fusewatchd.text import counted, first_few

AUTO = "auto"
DEFAULT_PLACE = "/var/lib/kubelet"
KNOWN_PLACES = (
    DEFAULT_PLACE,
    "/var/lib/k0s/kubelet",
    "/var/snap/microk8s/common/var/lib/kubelet",
    "/var/lib/rancher/k3s/agent/kubelet",
)
MAX_TOLD = 3
_ROOTS_OWN = "user_id=0"
"""Of a FUSE mount that root made: any user may mount one at a directory of his own."""


def find_kubelet_directory(
    configured: str, told: Collection[str], mounts: Iterable[Mount]
) -> KubeletDirectory:
    """Return the kubelet's directory, with every link in it resolved.

    Args:
        configured: ``kubelet.root``; a path is taken as it is.
        told: the ``--root-dir`` of each kubelet that runs.
        mounts: of the host.  They decide where no kubelet tells: a package may have left an
            empty directory at the usual place.
    """
    if configured != AUTO:
        return _directory_at(configured)
    if len(set(told)) == 1:
        return _directory_at(*told)
    points = [mount.mount_point for mount in mounts if _is_roots(mount)]
    places = [place for place in map(_directory_at, KNOWN_PLACES) if place.is_found]
    for place in places:
        if any(below(point, place.pods) for point in points):
            return place
    found = _most_used(Counter(map(kubelet_root_of, points)))
    return found or next((p for p in places if _has_entries(p.pods)), next(iter(places), NOT_FOUND))


def _directory_at(spelling: str) -> KubeletDirectory:
    root = os.path.realpath(spelling)
    pods, plugins, staging = (os.path.realpath(f"{root}/{n}") for n in (PODS, PLUGINS, STAGING))
    if not os.path.isdir(pods):
        return NOT_FOUND
    return KubeletDirectory(root, pods, plugins, staging, os.path.normpath(spelling))


def _most_used(in_use: Counter[str]) -> KubeletDirectory | None:
    for root, _ in in_use.most_common():
        directory = _directory_at(root) if root else NOT_FOUND
        if directory.is_found:
            return directory
    return None


def _has_entries(directory: str) -> bool:
    with os.scandir(directory) as entries:
        return next(entries, None) is not None


def _is_roots(mount: Mount) -> bool:
    return not mount.is_fuse or _ROOTS_OWN in mount.super_options.split(",")


def pods_elsewhere(table: MountTable, directory: KubeletDirectory) -> str:
    """Return where pods' FUSE mounts are that are not below this directory; empty for nowhere.

    A directory that is itself bound to a second place shows every mount at both: what is below
    this directory too is no other pod's.
    """
    found: Counter[str] = Counter()
    if not directory.is_found:
        return ""
    for mount in table.fuse_mounts():
        point = mount.mount_point
        if below(point, directory.pods) is None and _is_roots(mount):
            root = kubelet_root_of(point)
            if root and not table.at(directory.pods + point[len(f"{root}/{PODS}") :]):
                found[root] += 1
    words = [f"{root} ({counted(count, 'FUSE mount')})" for root, count in sorted(found.items())]
    return first_few(words, MAX_TOLD)
