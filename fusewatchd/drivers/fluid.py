"""Fluid: every runtime mounts at ``<mount root>/<runtime>/<namespace>/<dataset>/<name>-fuse``.

Layout: fluid-cloudnative/fluid (a826600a4, 2026-07), ``MOUNT_ROOT`` of ``pkg/utils/mount.go`` and
below it the ``getMountPoint`` or ``getTargetPath`` of each runtime in ``pkg/ddc``:
``alluxio/…/alluxio-fuse``, ``jindo/…/jindofs-fuse``, ``juicefs/…/juicefs-fuse``,
``thin/…/thin-fuse``, ``efc/…/efc-fuse``, ``vineyard/…/vineyard-fuse``, ``cache/…/cache-fuse``;
GooseFS (removed since) had ``goosefs/…/goosefs-fuse``.  Without ``MOUNT_ROOT`` they start at
``/``.  The CSI plugin binds that, or a ``fluid_sub_path`` of it, to the pod
(``pkg/csi/plugins/nodeserver.go``).

A PersistentVolume is named ``<namespace>-<dataset>`` (``pkg/ddc/base/pv.go``), which alone
cannot be taken apart: ``a-b`` + ``c`` and ``a`` + ``b-c`` give the same name.  But a pod can only
use claims of its own namespace, so the pod says where the first part ends.  While its namespace
is not known, every place where the volume could be counts, whether something is mounted there or
not: the one dataset that is there may be another team's.
"""

from __future__ import annotations

from fusewatchd.config.settings import DriverSettings
from fusewatchd.drivers.base import Driver, Layout, namespace_of, volume_data
from fusewatchd.model.findings import SourceAnswer, SourcePath
from fusewatchd.model.mounts import Mount
from fusewatchd.model.pods import BindPath
from fusewatchd.model.snapshot import Snapshot

CSI_DRIVER = "fuse.csi.fluid.io"
RUNTIMES = ("alluxio", "jindo", "juicefs", "thin", "efc", "vineyard", "cache", "goosefs")
"""Directories of ``MOUNT_ROOT``."""


def driver(settings: DriverSettings) -> Driver:
    """Return this driver, with its configured mount root."""
    return Fluid(settings.fluid.mount_root)


class Fluid:
    """The Fluid driver, for all its runtime types."""

    name = "fluid"
    layouts = (
        Layout(
            "Fluid: Alluxio, Jindo, JuiceFS, GooseFS, EFC, Thin, Vineyard, Cache",
            "CSI driver `fuse.csi.fluid.io`",
            "`<MOUNT_ROOT>/<runtime>/<namespace>/<dataset>/…-fuse` (`drivers.fluid.mount_root`)",
        ),
    )

    def __init__(self, mount_root: str) -> None:
        """Take the real path of Fluid's ``MOUNT_ROOT``, by default ``/runtime-mnt``."""
        self._prefix = mount_root.rstrip("/") + "/"

    def locate(self, bind: BindPath, mount: Mount, snapshot: Snapshot) -> SourceAnswer | None:
        """Match the volume's name against namespace and dataset of every Fluid source."""
        data = volume_data(bind, mount, snapshot)
        if data is None or data.driver != CSI_DRIVER:
            return None
        found = self._places(bind.volume, namespace_of(bind, snapshot), snapshot)
        if len(found) == 1:
            why = f"dataset mount of volume {bind.volume}"
        elif found:
            why = f"{len(found)} places could be volume {bind.volume}"
        else:
            why = f"no dataset of volume {bind.volume} is mounted"
        return SourceAnswer(self.name, why, found)

    def _places(
        self, volume: str, namespace: str | None, snapshot: Snapshot
    ) -> tuple[SourcePath, ...]:
        """Return where this volume can be, by the runtimes that have a mount for its name."""
        names = _names_of(volume, namespace)
        found: dict[str, None] = {}
        for runtime in RUNTIMES:
            for name in names:
                dataset = f"{self._prefix}{runtime}/{'/'.join(name)}/"
                for point in snapshot.table.fuse_points(dataset):
                    last = point[len(dataset) :]
                    if "/" in last or not last.endswith("-fuse"):
                        continue
                    for place in names:
                        found[self._prefix + "/".join((runtime, *place, last))] = None
        return tuple(map(SourcePath, found))


def _names_of(volume: str, namespace: str | None) -> list[tuple[str, str]]:
    """Return every namespace and dataset that give a volume this name."""
    parts = volume.split("-")
    names = [("-".join(parts[:i]), "-".join(parts[i:])) for i in range(1, len(parts))]
    return [name for name in names if all(name) and namespace in (None, name[0])]
