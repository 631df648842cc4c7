"""How many namespaces and FUSE mounts of one owner are told of in one walk; pure."""

from __future__ import annotations

from fusewatchd.model.quota import Collected, Limits, Owner, RefusedOwner, Resource
from fusewatchd.observe.namespaces.mount_lines import Told


class Rooms:
    """Counts what is told of the namespaces of one owner."""

    def __init__(self, owner: Owner, over: Collected) -> None:
        """Tell ``over`` what is above the limits."""
        self._owner = owner
        self._over = over
        self._namespaces: dict[str, int] = {}
        """By container; without one all have the same room."""
        self._mounts: dict[str, int] = {}

    def room(self, container: str, limits: Limits, example: str) -> int:
        """Return how many FUSE mounts may be told of one more namespace; 0: it is left out."""
        here, of_owner = self._namespaces.get(container, 0), sum(self._namespaces.values())
        if of_owner >= limits.namespaces or here >= limits.namespaces_of_container:
            is_container = of_owner < limits.namespaces
            limit = limits.namespaces_of_container if is_container else limits.namespaces
            self._add(Resource.NAMESPACES, limit, 0, example)
            return 0
        left = limits.table_mounts - self._mounts.get(container, 0)
        if left <= 0:
            self._add(Resource.TABLE, limits.table_mounts, 0, example)
        return max(0, left)

    def take(self, container: str, limits: Limits, told: Told, example: str) -> None:
        """Count what was told of a namespace."""
        self._namespaces[container] = self._namespaces.get(container, 0) + 1
        self._mounts[container] = self._mounts.get(container, 0) + told.fuse
        if told.is_cut:
            self._add(Resource.TABLE, limits.table_lines, 0, example)
        elif told.wanted > told.fuse and self._mounts[container] >= limits.table_mounts:
            self._add(Resource.TABLE, limits.table_mounts, told.wanted, example)

    def _add(self, resource: Resource, limit: int, wanted: int, example: str) -> None:
        self._over.add(RefusedOwner(self._owner, resource, limit, wanted, example))
