"""Pods of the demo node: what the kubelet lays out for them and says about them.

Only values and paths; ``node`` makes the directories and mounts.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.container_spec import Access, MountPropagation
from fusewatchd.demo.node.sources import Source
from fusewatchd.errors import FusewatchError

_START = "2026-01-01T00:00:00Z"


class VolumeKind(Enum):
    """How a volume comes to the node."""

    CSI = "csi"
    """A PersistentVolume of a CSI driver, through a claim."""
    CSI_INLINE = "csi-inline"
    """An ephemeral ``csi`` volume in the pod's own spec."""
    EPHEMERAL = "ephemeral"
    """A generic ephemeral volume: as CSI, of a claim that is made for the pod."""
    LOCAL = "local"
    """A ``local`` PersistentVolume: the kubelet itself binds a directory of the node."""
    FLEX = "flex"
    HOST_PATH = "host-path"
    """No directory of the pod's: the container gets the host's path."""
    EMPTY_DIR = "empty-dir"


_PLUGIN_DIRECTORIES = {
    VolumeKind.CSI: "kubernetes.io~csi",
    VolumeKind.CSI_INLINE: "kubernetes.io~csi",
    VolumeKind.EPHEMERAL: "kubernetes.io~csi",
    VolumeKind.LOCAL: "kubernetes.io~local-volume",
    VolumeKind.FLEX: "demo~fuse",
    VolumeKind.EMPTY_DIR: "kubernetes.io~empty-dir",
}


@dataclass(frozen=True, slots=True)
class PodVolume:
    """One entry of ``spec.volumes``."""

    name: str
    source: Source | None = None
    """What the driver binds; None for an emptyDir or where a server mounts by itself."""
    kind: VolumeKind = VolumeKind.CSI
    directory: str = ""
    """Name on disk: the PersistentVolume's; the volume's own name when empty."""
    driver: str = "fuse.csi.demo"
    handle: str = ""
    claim: str = ""
    flags: str = ""
    """Per-mount flags that the driver sets on its bind, ``ro,noexec,noatime``."""
    host_path: str = ""
    root: str = ""
    """Directory inside the source that the driver binds (relative); empty for its root."""

    @property
    def is_csi(self) -> bool:
        return _PLUGIN_DIRECTORIES.get(self.kind) == "kubernetes.io~csi"

    @property
    def directory_name(self) -> str:
        return self.directory or self.name

    @property
    def claim_name(self) -> str:
        return self.claim or f"{self.directory_name}-claim"

    @property
    def volume_handle(self) -> str:
        return self.handle or f"handle-{self.directory_name}"


@dataclass(frozen=True, slots=True)
class PodMount:
    """One entry of a container's ``volumeMounts``."""

    volume: str
    mount_path: str
    sub_path: str = ""
    access: Access = Access.READ_WRITE
    propagation: MountPropagation = MountPropagation.NONE
    container: str = "app"


class ContainerRole(Enum):
    """In which list of the pod's spec a container is."""

    APP = "containers"
    INIT = "initContainers"
    SIDECAR = "restartable init"
    """An init container with ``restartPolicy: Always``."""
    EPHEMERAL = "ephemeralContainers"


@dataclass(slots=True)
class DemoPod:
    """A pod on the node."""

    namespace: str
    name: str
    uid: str
    """Name of its directory: for a static pod the hash of its configuration."""
    pods_directory: str
    volumes: tuple[PodVolume, ...]
    mounts: tuple[PodMount, ...]
    api_uid: str = ""
    """The API server's uid where it differs (static pods)."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    is_deleting: bool = False
    roles: Mapping[str, ContainerRole] = field(default_factory=dict)
    """By name, of those that are no ordinary containers."""
    containers: dict[str, Container] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)

    @property
    def directory(self) -> str:
        return os.path.join(self.pods_directory, self.uid)

    def volume(self, name: str) -> PodVolume:
        """Return a volume by its name in the spec."""
        for volume in self.volumes:
            if volume.name == name:
                return volume
        raise FusewatchError(f"pod {self.name} has no volume {name}")

    def volume_directory(self, volume: PodVolume) -> str:
        """Return the directory the kubelet makes for a volume."""
        plugin = _PLUGIN_DIRECTORIES[volume.kind]
        return os.path.join(self.directory, "volumes", plugin, volume.directory_name)

    def volume_path(self, name: str) -> str:
        """Return where the volume's data is on the host: the publish target for CSI."""
        volume = self.volume(name)
        if volume.kind is VolumeKind.HOST_PATH:
            return volume.host_path
        directory = self.volume_directory(volume)
        if volume.is_csi:
            return os.path.join(directory, "mount")
        return directory

    def container_mounts(self, container: str) -> list[PodMount]:
        """Return the volumeMounts of one container, in order."""
        return [mount for mount in self.mounts if mount.container == container]

    @property
    def container_names(self) -> list[str]:
        return list(dict.fromkeys(mount.container for mount in self.mounts)) or ["app"]

    def subpath_path(self, mount: PodMount) -> str:
        """Return the kubelet's bind for a mount with ``subPath``."""
        index = self.container_mounts(mount.container).index(mount)
        directory = self.volume(mount.volume).directory_name
        parts = ("volume-subpaths", directory, mount.container, str(index))
        return os.path.join(self.directory, *parts)

    def host_path_of(self, mount: PodMount) -> str:
        """Return what the container runtime is told to bind."""
        return self.subpath_path(mount) if mount.sub_path else self.volume_path(mount.volume)

    def document(self, node_name: str) -> dict[str, Any]:
        """Return the pod as the kubelet's ``/pods`` shows it (v1.Pod)."""
        metadata: dict[str, Any] = {
            "name": self.name,
            "namespace": self.namespace,
            "uid": self.api_uid or self.uid,
            "creationTimestamp": _START,
            "annotations": dict(self.annotations),
        }
        if self.is_deleting:
            metadata["deletionTimestamp"] = _START
            metadata["deletionGracePeriodSeconds"] = 30
        return {
            "metadata": metadata,
            "spec": {
                "volumes": [_volume_document(volume) for volume in self.volumes],
                "containers": self._container_documents(ContainerRole.APP),
                "initContainers": self._container_documents(
                    ContainerRole.INIT, ContainerRole.SIDECAR
                ),
                "ephemeralContainers": self._container_documents(ContainerRole.EPHEMERAL),
                "nodeName": node_name,
                "restartPolicy": "Always",
                "serviceAccountName": "default",
            },
            "status": {
                "phase": "Running" if self.containers else "Pending",
                "startTime": _START,
                "containerStatuses": self._status_documents(ContainerRole.APP),
                "initContainerStatuses": self._status_documents(
                    ContainerRole.INIT, ContainerRole.SIDECAR
                ),
                "ephemeralContainerStatuses": self._status_documents(ContainerRole.EPHEMERAL),
                "qosClass": "BestEffort",
            },
        }

    def _container_documents(self, *roles: ContainerRole) -> list[dict[str, Any]]:
        names = self.container_names
        return [
            self._container_document(name)
            for name in names
            if self.roles.get(name, ContainerRole.APP) in roles
        ]

    def _container_document(self, name: str) -> dict[str, Any]:
        mounts = []
        for mount in self.container_mounts(name):
            document: dict[str, Any] = {"name": mount.volume, "mountPath": mount.mount_path}
            if mount.access is Access.READ_ONLY:
                document["readOnly"] = True
            if mount.sub_path:
                document["subPath"] = mount.sub_path
            if mount.propagation is not MountPropagation.NONE:
                document["mountPropagation"] = mount.propagation.value
            mounts.append(document)
        document = {"name": name, "image": "demo.invalid/app:1", "volumeMounts": mounts}
        if self.roles.get(name) is ContainerRole.SIDECAR:
            document["restartPolicy"] = "Always"
        return document

    def _status_documents(self, *roles: ContainerRole) -> list[dict[str, Any]]:
        return [
            self._status_document(name, container)
            for name, container in self.containers.items()
            if self.roles.get(name, ContainerRole.APP) in roles
        ]

    def _status_document(self, name: str, container: Container) -> dict[str, Any]:
        return {
            "name": name,
            "state": {"running": {"startedAt": _START}},
            "ready": container.is_running,
            "restartCount": self.restarts.get(name, 0),
            "image": "demo.invalid/app:1",
            "containerID": f"containerd://{container.spec.container_id}",
            "started": True,
        }


def new_uid() -> str:
    """Return a pod uid."""
    return str(uuid.uuid4())


def volume_data(volume: PodVolume, node_name: str) -> str:
    """Return ``vol_data.json`` as the kubelet writes it beside a publish target."""
    digest = hashlib.sha256(f"{volume.volume_handle}{volume.driver}{node_name}".encode())
    mode = "Ephemeral" if volume.kind is VolumeKind.CSI_INLINE else "Persistent"
    return json.dumps(
        {
            "attachmentID": f"csi-{digest.hexdigest()}",
            "driverName": volume.driver,
            "nodeName": node_name,
            "specVolID": volume.directory_name,
            "volumeHandle": volume.volume_handle,
            "volumeLifecycleMode": mode,
        },
        separators=(",", ":"),
    )


def pod_list(pods: Sequence[DemoPod], node_name: str) -> dict[str, Any]:
    """Return a v1.PodList as the kubelet's ``/pods`` answers it."""
    return {
        "kind": "PodList",
        "apiVersion": "v1",
        "metadata": {},
        "items": [pod.document(node_name) for pod in pods],
    }


def _volume_document(volume: PodVolume) -> dict[str, Any]:
    details: dict[VolumeKind, dict[str, Any]] = {
        VolumeKind.CSI: {"persistentVolumeClaim": {"claimName": volume.claim_name}},
        VolumeKind.CSI_INLINE: {"csi": {"driver": volume.driver}},
        VolumeKind.EPHEMERAL: {"ephemeral": {"volumeClaimTemplate": {}}},
        VolumeKind.LOCAL: {"persistentVolumeClaim": {"claimName": volume.claim_name}},
        VolumeKind.FLEX: {"flexVolume": {"driver": "demo/fuse"}},
        VolumeKind.HOST_PATH: {"hostPath": {"path": volume.host_path, "type": ""}},
        VolumeKind.EMPTY_DIR: {"emptyDir": {}},
    }
    return {"name": volume.name, **details[volume.kind]}
