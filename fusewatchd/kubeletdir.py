"""The grammar of the kubelet's directory.

Paths: kubernetes, pkg/kubelet/kubelet_getters.go (``pods/<uid>/volumes``, ``volume-subpaths``)
and pkg/volume/csi (``…/kubernetes.io~csi/<volume>/mount``).  Nothing is opened here.
"""

from __future__ import annotations

import re
from functools import lru_cache

from fusewatchd.model import BindKind, BindPath

_UID = re.compile(r"[0-9a-fA-F][0-9a-fA-F-]{7,62}")


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
