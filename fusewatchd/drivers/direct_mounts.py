"""Volumes that are mounted straight into the pod: there is no source to bind from.

A new server makes a new mount at the pod's own path, by whoever made the first one, or none at
all.  Such mounts are named and left alone; what the kubelet bound from them, as a subPath, follows
them (``sources``).

* gcsfuse: GoogleCloudPlatform/gcs-fuse-csi-driver v1.24.0, ``pkg/csi_driver/node.go``: the plugin
  mounts at the target and a sidecar in the pod serves; with the shared mount it stages instead.
* Mountpoint for S3: awslabs/mountpoint-s3-csi-driver.  Before v2 a systemd unit mounts at the
  target.  Since v2.0.0 a Mountpoint pod serves
  ``<kubelet>/plugins/s3.csi.aws.com/mnt/<name of that pod>``, which is bound to the target
  (``pkg/driver/node/mounter/pod_mounter.go``, ``mounter.go``): the name is a random one
  (``pkg/podmounter/mppod/creator.go``), so only lineage can know it.
* blobfuse: kubernetes-sigs/blob-csi-driver 0744a60b3, ``pkg/blob/nodeserver.go``: an inline volume
  is not staged but mounted at the target.
* whatever a container of the pod mounts inside an emptyDir and shares with the host.
"""

from __future__ import annotations

from fusewatchd.drivers.base import Layout, volume_data
from fusewatchd.model.findings import SourceAnswer
from fusewatchd.model.mounts import Mount
from fusewatchd.model.pods import BindKind, BindPath, VolumeData
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason

MOUNTPOINT_S3 = "s3.csi.aws.com"


class DirectMounts:
    """Drivers without a source, as long as lineage knows of none that is older than the bind."""

    name = "direct"
    layouts = (
        Layout(
            "gcsfuse sidecars, mount-s3 before v2, inline blobfuse volumes",
            "their CSI drivers",
            "none (`direct_mount`), unless one was seen: gcsfuse with a shared mount, mount-s3 v2",
        ),
    )

    def locate(self, bind: BindPath, mount: Mount, snapshot: Snapshot) -> SourceAnswer | None:
        """Name the driver."""
        data = volume_data(bind, mount, snapshot)
        return _of(data, snapshot) if data is not None else None


class EmptyDirs:
    """FUSE file systems that a pod mounts for itself."""

    name = "emptydir"
    layouts = (
        Layout(
            "FUSE inside an emptyDir",
            "its path",
            "none (`direct_mount`); detached with its pod if `cleanup.detach_orphans` is on",
        ),
    )

    def locate(self, bind: BindPath, mount: Mount, snapshot: Snapshot) -> SourceAnswer | None:
        """Say that the pod's own containers have to mount it again."""
        if bind.kind is not BindKind.EMPTY_DIR:
            return None
        return _direct(self.name, "a container of the pod mounts it in its emptyDir")


def _of(data: VolumeData, snapshot: Snapshot) -> SourceAnswer | None:
    match data.driver:
        case "gcsfuse.csi.storage.gke.io":
            return _direct("gcsfuse", "served by the gcsfuse sidecar of its pod")
        case "blob.csi.azure.com" if data.is_ephemeral:
            return _direct("blobfuse", "an inline volume is mounted at its target")
        case "s3.csi.aws.com":
            return _mountpoint_s3(snapshot)
        case _:
            return None


def _mountpoint_s3(snapshot: Snapshot) -> SourceAnswer:
    sources = f"{snapshot.kubelet.plugins}/{MOUNTPOINT_S3}/mnt/"
    if snapshot.table.fuse_points(sources):
        why = "which Mountpoint pod served it was never seen"
        return SourceAnswer("mountpoint-s3", why, refusal=Reason.NO_SOURCE)
    return _direct("mountpoint-s3", "mount-s3 mounts at the target")


def _direct(name: str, why: str) -> SourceAnswer:
    return SourceAnswer(name, why, refusal=Reason.DIRECT_MOUNT)
