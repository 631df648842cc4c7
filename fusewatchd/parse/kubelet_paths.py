"""The grammar of the kubelet's directory.

Paths: kubernetes, pkg/kubelet/kubelet_getters.go (``pods/<uid>/volumes``, ``volume-subpaths``),
pkg/volume/csi (``…/kubernetes.io~csi/<volume>/mount``) and pkg/volume/local/local.go (a ``local``
volume is bound by the kubelet itself, a hostPath is not).  Nothing is opened here.
"""

from __future__ import annotations

import re
from functools import lru_cache

from fusewatchd.model.kubelet import KubeletDirectory
from fusewatchd.model.mount_table import below
from fusewatchd.model.pods import BindKind, BindPath, VolumeData

_IN_A_POD = re.compile(r"/pods/[^/]+/(?:volumes|volume-subpaths|plugins)/.")
_OF_A_POD = re.compile(
    r"(/.+?)/pods/[^/]+/(?:volumes/[^/~]+~[^/]+/[^/]+|volume-subpaths/[^/]+/[^/]+/[^/]+)(?:/|$)",
    re.DOTALL,
)
_STAGED = "globalmount"
_BY_VOLUME = "pv"


def staging_paths(directory: KubeletDirectory, data: VolumeData, volume: str) -> tuple[str, str]:
    """Return where the kubelet has a CSI volume staged, once for all pods of the node.

    kubernetes, pkg/volume/csi/csi_attacher.go, ``makeDeviceMountPath``: since 1.24 the path is
    made of the volume's identity, driver and handle; before, of the PersistentVolume's name,
    which a later volume may have too.
    """
    base = directory.staging
    by_handle = f"{base}/{data.driver}/{data.handle_digest}/{_STAGED}"
    return by_handle, f"{base}/{_BY_VOLUME}/{volume}/{_STAGED}"


def directory_named_by_volume(directory: KubeletDirectory, mount_point: str) -> str | None:
    """Return what holds the ``vol_data.json`` of a staging path that is only a name."""
    prefix = f"{directory.staging}/{_BY_VOLUME}/"
    if not mount_point.startswith(prefix):
        return None
    match mount_point[len(prefix) :].split("/"):
        case [volume, last] if volume and last == _STAGED:
            return prefix + volume
        case _:
            return None


def publish_directory(directory: KubeletDirectory, pod_uid: str, volume: str) -> str:
    """Return the directory of a CSI volume, which holds ``mount`` and ``vol_data.json``."""
    return f"{directory.pods}/{pod_uid}/volumes/kubernetes.io~csi/{volume}"


def is_bound_from(subpath: str, path: str) -> bool:
    """Return True for the path of a subPath bind and that of a volume of the same pod."""
    pod, found, _ = subpath.partition("/volume-subpaths/")
    return bool(found) and path.startswith(f"{pod}/volumes/")


@lru_cache(maxsize=65536)
def is_in_a_pod(mount_point: str) -> bool:
    """Return True for what looks like a pod's mount, below whichever kubelet's directory."""
    return _IN_A_POD.search(mount_point) is not None


@lru_cache(maxsize=65536)
def kubelet_root_of(mount_point: str) -> str:
    """Return the kubelet's directory that a pod's mount is below, by its shape; else empty.

    What a pod mounts inside its own volume may have that shape too: the outermost counts.
    """
    found = _OF_A_POD.match(mount_point)
    return found[1] if found else ""


@lru_cache(maxsize=65536)
def parse_bind_path(pods: str, mount_point: str) -> BindPath | None:
    """Say what a mount point below the directory ``pods`` is for; None when it is no bind.

    A mount below a volume's own mount point is part of that volume and no bind of the
    kubelet's.  An emptyDir is no mount point: what is mounted in it is the pod's own.
    """
    found = below(mount_point, pods) if pods else None
    parts = found.split("/") if found else []
    if not all(parts) or not {".", ".."}.isdisjoint(parts):
        return None
    match parts:
        case [uid, "volumes", "kubernetes.io~csi" as plugin, volume, "mount"]:
            return BindPath(BindKind.PUBLISH, uid, volume, plugin)
        case [uid, "volume-subpaths", volume, container, index]:
            return BindPath(BindKind.SUBPATH, uid, volume, "", container, index)
        case [uid, "volumes", "kubernetes.io~local-volume" as plugin, volume]:
            return BindPath(BindKind.LOCAL, uid, volume, plugin)
        case [uid, "volumes", "kubernetes.io~empty-dir" as plugin, volume, *inside]:
            return BindPath(BindKind.EMPTY_DIR, uid, volume, plugin, index="/".join(inside))
        case [uid, "volumes", plugin, volume] if "~" in plugin and not plugin.startswith(
            "kubernetes.io~"
        ):
            return BindPath(BindKind.FLEXVOLUME, uid, volume, plugin)
        case _:
            return None
