"""Pods and their volumes, as the kubelet and its directory tell of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class BindKind(Enum):
    """What a bind under the kubelet's pods directory is for (label ``kind``)."""

    PUBLISH = "publish"
    SUBPATH = "subpath"
    FLEXVOLUME = "flexvolume"
    LOCAL = "local"
    """A ``local`` PersistentVolume whose path is, or is inside, a FUSE file system."""
    EMPTY_DIR = "emptydir"
    """A FUSE file system that a container of the pod mounted inside an emptyDir."""
    CONTAINER = "container"
    """Not on the host: a mount inside a container's own mount namespace."""


@dataclass(frozen=True, slots=True)
class BindPath:
    """What the path of a host bind says by itself (see ``kubelet_paths``)."""

    kind: BindKind
    pod_uid: str
    volume: str
    """Its directory's name: the PersistentVolume's, or an inline volume's in the pod's spec."""
    plugin: str = ""
    """``kubernetes.io~csi`` and the like; empty for subPath binds, whose path lacks it."""
    container: str = ""
    index: str = ""


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """One ``volumeMounts`` entry of a container."""

    container: str
    volume: str
    """Name in ``spec.volumes``."""
    mount_path: str
    read_only: bool
    propagation: str
    """``None``, ``HostToContainer`` or ``Bidirectional``."""
    sub_path: str = ""


@dataclass(frozen=True, slots=True)
class Volume:
    """One ``spec.volumes`` entry, as far as it says where the data comes from."""

    name: str
    kind: str
    """``csi``, ``persistentVolumeClaim``, ``hostPath``, ``flexVolume``, ``emptyDir`` …"""
    driver: str = ""
    claim: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class Pod:
    """The parts of a pod of this node that recovery and reports need."""

    uid: str
    """The API server's uid; what Events must carry."""
    directory_uid: str
    """Name of the pod's directory on disk: the static pod's config hash, else the uid."""
    namespace: str
    name: str
    phase: str
    is_deleting: bool
    volumes: tuple[Volume, ...] = ()
    volume_mounts: tuple[VolumeMount, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    is_static: bool = False
    """From a file on the node, not from the API server."""
    containers: Mapping[str, str] = field(default_factory=dict)
    """Names of its containers by their id in the runtime, as far as they were started."""


@dataclass(frozen=True, slots=True)
class VolumeData:
    """``vol_data.json`` beside a CSI publish target (kubernetes/pkg/volume/csi)."""

    driver: str
    volume_handle: str
    is_ephemeral: bool = False
    """An inline volume: it has no PersistentVolume and is never staged."""

    @property
    def handle_digest(self) -> str:
        """SHA-256 of the handle in hexadecimal, which the kubelet and drivers name directories."""
        handle = self.volume_handle.encode("utf-8", "surrogateescape")
        return hashlib.sha256(handle).hexdigest()
