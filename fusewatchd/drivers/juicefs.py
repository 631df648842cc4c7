"""JuiceFS CSI: a mount pod, or the plugin's own process, mounts each volume once for the node.

Layout: juicedata/juicefs-csi-driver v0.32.4.  A mount pod mounts at ``/jfs/<id>`` of its own
(``pkg/juicefs/juicefs.go``, ``MountFs``), with the last seven characters of its name behind that
since v0.16.0: ``-`` and six small letters (``pkg/juicefs/mount/pod_mount.go``,
``createOrAddRef``; ``pkg/util/util.go``, ``RandStringRunes``).  ``/jfs`` is the host's
``/var/lib/juicefs/volume`` (``pkg/config/config.go``, ``JUICEFS_MOUNT_PATH``).  A process mounts
at ``/var/lib/jfs/<id>`` inside the plugin's container, which the host sees where that directory
is shared with it.

``<id>`` is the volume handle, but for volumes that share a mount by their storage class or file
system (``getUniqueId``): of those nothing on the node tells, and lineage has to know.

``a-bcdefg`` can be the mount of volume ``a``, or of a volume of that name by a plugin before
v0.16.0: where a volume of that name is known it belongs to neither.  Two mounts of one volume,
which different options give, are two candidates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from fusewatchd.config.settings import DriverSettings
from fusewatchd.drivers.base import Driver, Layout, is_one_name, sources_at, volume_data
from fusewatchd.model.findings import SourceAnswer
from fusewatchd.model.mounts import Mount
from fusewatchd.model.pods import BindPath, VolumeData
from fusewatchd.model.snapshot import Snapshot

CSI_DRIVER = "csi.juicefs.com"
PROCESS_ROOT = "/var/lib/jfs/"

Volumes = Mapping[tuple[str, str], VolumeData]

_SUFFIX = re.compile(r"-[a-z]{6}")


def driver(settings: DriverSettings) -> Driver:
    """Return this driver, with its configured mount root."""
    return JuiceFS(settings.juicefs.mount_root)


class JuiceFS:
    """The JuiceFS CSI driver, with mount pods or with processes."""

    name = "juicefs"
    layouts = (
        Layout(
            "JuiceFS CSI, mount pods and processes",
            "CSI driver `csi.juicefs.com`",
            "`/var/lib/juicefs/volume/<handle>-xxxxxx` (`drivers.juicefs.mount_root`),"
            " `/var/lib/jfs/<handle>`",
        ),
    )

    def __init__(self, mount_root: str) -> None:
        """Take the real path of what mount pods have at ``/jfs``."""
        self._prefix = mount_root.rstrip("/") + "/"
        self._made_of: Volumes = {}
        self._made: frozenset[str] = frozenset()

    def locate(self, bind: BindPath, mount: Mount, snapshot: Snapshot) -> SourceAnswer | None:
        """Match the volume's handle against the names of all mount pods' mounts."""
        data = volume_data(bind, mount, snapshot)
        if data is None or data.driver != CSI_DRIVER or not is_one_name(data.volume_handle):
            return None
        handle = data.volume_handle
        names = self._mounts_of(handle, snapshot)
        others = self._handles(snapshot.volume_data).intersection(names)
        if others:
            return SourceAnswer(self.name, f"{min(others)} is another volume's handle, too")
        paths = [*(self._prefix + name for name in names), PROCESS_ROOT + handle]
        if found := sources_at(paths, snapshot):
            return SourceAnswer(self.name, f"mounted for volume {handle}", found)
        return SourceAnswer(self.name, f"nothing is mounted for volume {handle}")

    def _mounts_of(self, handle: str, snapshot: Snapshot) -> list[str]:
        points = snapshot.table.fuse_points(f"{self._prefix}{handle}-")
        names = (point[len(self._prefix) :] for point in points)
        return [name for name in names if _SUFFIX.fullmatch(name, len(handle))]

    def _handles(self, volumes: Volumes) -> frozenset[str]:
        """Return the handles of all JuiceFS volumes; made once for all binds of a look."""
        if self._made_of is not volumes:
            known = (data for data in volumes.values() if data.driver == CSI_DRIVER)
            self._made = frozenset(data.volume_handle for data in known)
            self._made_of = volumes
        return self._made
