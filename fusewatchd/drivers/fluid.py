"""Fluid: every runtime mounts at ``<mount root>/<runtime>/<namespace>/<dataset>/<name>-fuse``.

Layout: fluid-cloudnative/fluid, ``pkg/utils/mount.go`` and each runtime's ``getMountPoint``
(alluxio-fuse, goosefs-fuse, jindofs-fuse, juicefs-fuse, thin-fuse, efc-fuse, vineyard-fuse).
A PersistentVolume is named ``<namespace>-<dataset>``, which alone cannot be taken apart:
``a-b`` + ``c`` and ``a`` + ``b-c`` give the same name.  But a pod can only use claims of its
own namespace, so the pod says where the first part ends.
"""

from __future__ import annotations

from fusewatchd.model import BindPath, Mount, SourceAnswer, SourcePath
from fusewatchd.snapshot import Snapshot

CSI_DRIVER = "fuse.csi.fluid.io"


class Fluid:
    """The Fluid driver, for all its runtime types."""

    name = "fluid"

    def __init__(self, mount_root: str) -> None:
        """Take the real path of Fluid's ``MOUNT_ROOT``, by default ``/runtime-mnt``."""
        self._prefix = mount_root.rstrip("/") + "/"

    def locate(self, bind: BindPath, mount: Mount, snapshot: Snapshot) -> SourceAnswer | None:
        """Match the volume's name against namespace and dataset of every Fluid source."""
        data = snapshot.volume_data.get((bind.pod_uid, bind.volume))
        if data is not None and data.driver != CSI_DRIVER:
            return None
        namespace = self._namespace(bind, snapshot)
        found = tuple(
            SourcePath(path)
            for path, (source_namespace, dataset) in self._sources(snapshot).items()
            if f"{source_namespace}-{dataset}" == bind.volume
            and namespace in (None, source_namespace)
        )
        if not found and data is None:
            return None
        if len(found) == 1:
            why = f"dataset mount of volume {bind.volume}"
        elif found:
            why = f"{len(found)} datasets could be volume {bind.volume}"
        else:
            why = f"no dataset of volume {bind.volume} is mounted"
        return SourceAnswer(self.name, why, found)

    def _namespace(self, bind: BindPath, snapshot: Snapshot) -> str | None:
        pod = (snapshot.pods or {}).get(bind.pod_uid)
        return pod.namespace if pod else None

    def _sources(self, snapshot: Snapshot) -> dict[str, tuple[str, str]]:
        """Return namespace and dataset by mount point, each path once however stacked."""
        found: dict[str, tuple[str, str]] = {}
        for mount in snapshot.table.fuse_mounts():
            if not mount.mount_point.startswith(self._prefix):
                continue
            parts = mount.mount_point[len(self._prefix) :].split("/")
            if len(parts) == 4 and parts[3].endswith("-fuse"):
                found[mount.mount_point] = (parts[1], parts[2])
        return found
