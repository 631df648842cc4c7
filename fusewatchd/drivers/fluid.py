"""Fluid: every runtime mounts at ``<mount root>/<runtime>/<namespace>/<dataset>/<name>-fuse``.

Layout: fluid-cloudnative/fluid, ``pkg/utils/mount.go`` and each runtime's ``getMountPoint``
(alluxio-fuse, goosefs-fuse, jindofs-fuse, juicefs-fuse, thin-fuse, efc-fuse, vineyard-fuse).
A PersistentVolume is named ``<namespace>-<dataset>``, which alone cannot be taken apart:
``a-b`` + ``c`` and ``a`` + ``b-c`` give the same name.  But a pod can only use claims of its
own namespace, so the pod says where the first part ends.  While its namespace is not known,
every place where the volume could be counts, whether something is mounted there or not: the
one dataset that is there may be another team's.
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
        found = self._places(bind.volume, namespace, snapshot)
        if not found and data is None:
            return None
        if len(found) == 1:
            why = f"dataset mount of volume {bind.volume}"
        elif found:
            why = f"{len(found)} places could be volume {bind.volume}"
        else:
            why = f"no dataset of volume {bind.volume} is mounted"
        return SourceAnswer(self.name, why, found)

    def _namespace(self, bind: BindPath, snapshot: Snapshot) -> str | None:
        pod = (snapshot.pods or {}).get(bind.pod_uid)
        return pod.namespace if pod else None

    def _places(
        self, volume: str, namespace: str | None, snapshot: Snapshot
    ) -> tuple[SourcePath, ...]:
        """Return where this volume can be, by the runtimes that have a mount for its name."""
        names = _names_of(volume, namespace)
        found: dict[str, None] = {}
        for mount in snapshot.table.fuse_mounts():
            if not mount.mount_point.startswith(self._prefix):
                continue
            match mount.mount_point[len(self._prefix) :].split("/"):
                case [runtime, *name, last] if tuple(name) in names and last.endswith("-fuse"):
                    for place in names:
                        found[self._prefix + "/".join((runtime, *place, last))] = None
        return tuple(map(SourcePath, found))


def _names_of(volume: str, namespace: str | None) -> list[tuple[str, str]]:
    """Return every namespace and dataset that give a volume this name."""
    parts = volume.split("-")
    names = [("-".join(parts[:i]), "-".join(parts[i:])) for i in range(1, len(parts))]
    return [name for name in names if all(name) and namespace in (None, name[0])]
