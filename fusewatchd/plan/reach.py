"""Which mounts of containers are found only with the help of another living server; pure.

To get to one the kernel asks that server for a name, and it may be the next one to hang.
"""

from __future__ import annotations

from collections.abc import Collection

from fusewatchd.model.mounts import Device, Mount, MountNamespace

REMOTE = frozenset(
    {
        "nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "glusterfs", "lustre", "gpfs", "beegfs",
        "afs", "autofs",
    }
)  # fmt: skip


class Reach:
    """The ways through the namespaces of one look."""

    def __init__(self, dead: Collection[Device]) -> None:
        """``dead`` file systems say no at once."""
        self._dead = dead
        self._by_id: dict[int, dict[int, Mount]] = {}
        self._crosses: dict[tuple[int, int], bool] = {}

    def crosses_living(self, mount: Mount, namespace: MountNamespace) -> bool:
        """True when a file system above ``mount`` has a server that must answer first."""
        inode = namespace.inode
        if inode not in self._by_id:
            self._by_id[inode] = {m.mount_id: m for m in namespace.mounts}
        by_id, known = self._by_id[inode], self._crosses
        way: list[tuple[int, int]] = []
        crosses = False
        while (step := (inode, mount.mount_id)) not in known:
            known[step] = False  # and the end of a circle, which no table has
            way.append(step)
            above = by_id.get(mount.parent_id)
            if above is None:
                break
            if above.mount_point != mount.mount_point and self._is_asked(above):
                crosses = True
                break
            mount = above
        crosses = crosses or known[step]
        known.update(dict.fromkeys(way, crosses))
        return crosses

    def _is_asked(self, mount: Mount) -> bool:
        is_remote = mount.is_fuse or mount.fs_type in REMOTE
        return is_remote and mount.device not in self._dead
