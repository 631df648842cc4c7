"""The mounts of other namespaces, each ready to be followed from one to the other.

A pod decides how many mounts its namespaces have, and every bind in them asks for what is above,
below and inside it.  So each listing is indexed once, and again only when it is another one.
"""

from __future__ import annotations

from collections.abc import Collection

from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Mount, MountNamespace


class NamespaceTables:
    """The index of each namespace, made when somebody asks for it."""

    def __init__(self) -> None:
        """Have none."""
        self._made: dict[int, tuple[tuple[Mount, ...], MountTable]] = {}

    def of(self, namespace: MountNamespace) -> MountTable:
        """Return the mounts of a namespace; the same table as long as it has the same listing."""
        known = self._made.get(namespace.inode)
        if known is None or known[0] is not namespace.mounts:
            known = namespace.mounts, MountTable.of(namespace.mounts)
            self._made[namespace.inode] = known
        return known[1]

    def keep_only(self, inodes: Collection[int]) -> None:
        """Forget all other namespaces."""
        for inode in self._made.keys() - set(inodes):
            del self._made[inode]
