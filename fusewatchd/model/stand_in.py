"""One dead mount that took the place of a held one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fusewatchd.model.mounts import Device, Mount


@dataclass(frozen=True, slots=True)
class StandIn:
    """Known by its ids: the number of its file system is used again as soon as it is gone."""

    was: Mount
    """What it took the place of."""
    mount_id: int
    unique_id: int
    device: Device

    def is_about(self, mount: Mount) -> bool:
        """Return True when this is the mount, one with the same id of mountinfo.

        A table may lack the other id of a mount that came or went while it was read.
        """
        if mount.device != self.device:
            return False
        if not mount.unique_id:
            return mount.mount_point == self.was.mount_point
        return mount.unique_id == self.unique_id


StandIns = Mapping[int, StandIn]
"""Those that are in a table, by the id of mountinfo."""
