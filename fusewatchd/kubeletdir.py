"""The grammar of the kubelet's directory, and of pod cgroups.

Paths: kubernetes, pkg/kubelet/kubelet_getters.go (``pods/<uid>/volumes``, ``volume-subpaths``)
and pkg/volume/csi (``…/kubernetes.io~csi/<volume>/mount``).  Nothing is opened here.
"""

from __future__ import annotations

import re
from functools import lru_cache

from fusewatchd.model import BindKind, BindPath

_UID = re.compile(r"[0-9a-fA-F][0-9a-fA-F-]{7,62}")
_CGROUP_POD = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})")
_CONTAINER_ID = re.compile(r"([0-9a-f]{8,64})(?:\.scope)?$")


def pods_directory(kubelet_root: str) -> str:
    """Return the directory that holds one directory for each pod."""
    return kubelet_root.rstrip("/") + "/pods"


def publish_directory(kubelet_root: str, pod_uid: str, volume: str) -> str:
    """Return the directory of a CSI volume, which holds ``mount`` and ``vol_data.json``."""
    return f"{pods_directory(kubelet_root)}/{pod_uid}/volumes/kubernetes.io~csi/{volume}"


@lru_cache(maxsize=65536)
def parse_bind_path(kubelet_root: str, mount_point: str) -> BindPath | None:
    """Say what a mount point below the pods directory is for; None when it is no bind.

    A mount below a volume's own mount point is part of that volume and no bind of the
    kubelet's.
    """
    prefix = pods_directory(kubelet_root) + "/"
    if not mount_point.startswith(prefix):
        return None
    parts = mount_point[len(prefix) :].split("/")
    if not all(parts) or ".." in parts or not _UID.fullmatch(parts[0]):
        return None
    match parts:
        case [uid, "volumes", "kubernetes.io~csi" as plugin, volume, "mount"]:
            return BindPath(BindKind.PUBLISH, uid, volume, plugin)
        case [uid, "volume-subpaths", volume, container, index]:
            return BindPath(BindKind.SUBPATH, uid, volume, "", container, index)
        case [uid, "volumes", plugin, volume] if "~" in plugin and not plugin.startswith(
            "kubernetes.io~"
        ):
            return BindPath(BindKind.FLEXVOLUME, uid, volume, plugin)
        case _:
            return None


def pod_uid_of_cgroup(text: str) -> tuple[str, str] | None:
    """Return pod uid and container id from ``/proc/<pid>/cgroup``, None outside pods.

    Knows both drivers: ``/kubepods/burstable/pod<uid>/<id>`` of cgroupfs, and
    ``kubepods-burstable-pod<uid with underscores>.slice/cri-containerd-<id>.scope`` of
    systemd; v1 and v2; whatever prefix a nested node puts before them.
    """
    for line in text.splitlines():
        path = line.split(":", 2)[-1]
        if "kubepods" not in path:
            continue
        found = list(_CGROUP_POD.finditer(path))
        if not found:
            continue
        rest = path[found[-1].end() :].removeprefix(".slice").strip("/")
        container = _CONTAINER_ID.search(rest.split("/")[0]) if rest else None
        return found[-1].group(1).replace("_", "-"), container.group(1) if container else ""
    return None
