"""The mounts stacked at one path; pure, and the one place that walks such a stack.

A stack is followed by parent ids in one listing of the mounts, and is as deep as it is: the
ground is what the lowest layer stands on, never what a walk has reached when it got tired.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount

Points = frozenset[tuple[str, Device, str]]
"""What is mounted where, apart from the mounts that do it."""


def covered_by(top: Mount, table: MountTable) -> tuple[Mount, ...]:
    """Return the mounts at the same path that ``top`` covers, the uppermost first."""
    found: dict[int, Mount] = {}
    layer = table.by_id(top.parent_id)
    # The root of a namespace is stacked on nothing, and a torn table may show a cycle.
    while layer is not None and layer.mount_point == top.mount_point:
        if layer.mount_id in found or layer.mount_id == top.mount_id:
            break
        found[layer.mount_id] = layer
        layer = table.by_id(layer.parent_id)
    return tuple(found.values())


def ground_of(top: Mount, table: MountTable) -> Mount | None:
    """Return the mount on which the lowest layer at the path of ``top`` stands."""
    lowest = (top, *covered_by(top, table))[-1]
    return table.by_id(lowest.parent_id)


def ground_at(path: str, table: MountTable) -> Mount | None:
    """Return the mount on which a path lies, without what is mounted just there."""
    stack = table.stack_at(path)
    if stack:
        return table.by_id(stack[0].parent_id)
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        top = table.top_at(path)
        if top is not None:
            return top
    return None


class Grounds:
    """What the mounts of one table stand on, as ``ground_of`` says; each stack is walked once."""

    def __init__(self, table: MountTable) -> None:
        """Know nothing yet."""
        self._table = table
        self._known: dict[int, Mount | None] = {}

    def of(self, mount: Mount) -> Mount | None:
        """Return the mount on which the lowest layer below ``mount`` at its path stands."""
        passed = {mount.mount_id: None}
        layer = mount
        while layer.mount_id not in self._known:
            below = self._table.by_id(layer.parent_id)
            is_layer = below is not None and below.mount_point == mount.mount_point
            if below is None or not is_layer or below.mount_id in passed:
                self._known[layer.mount_id] = below
                break
            layer = below
            passed[layer.mount_id] = None
        ground = self._known[layer.mount_id]
        self._known.update(dict.fromkeys(passed, ground))
        return ground


def inside(mount: Mount, table: MountTable) -> tuple[Mount, ...]:
    """List the mounts inside ``mount``, parents first, without what is stacked on it."""
    if len(table) <= 1:
        return ()  # most have nothing inside
    found: dict[int, Mount] = {}
    queue = deque([mount])
    while queue:
        for child in table.children_of(queue.popleft().mount_id):
            if child.mount_point != mount.mount_point and child.mount_id not in found:
                found[child.mount_id] = child
                queue.append(child)
    return tuple(found.values())


def points(mounts: Iterable[Mount]) -> Points:
    """Say what is mounted where."""
    return frozenset((m.mount_point, m.device, m.root) for m in mounts)


@dataclass(frozen=True, slots=True)
class Pile:
    """A stack as one listing showed it, and what is mounted inside each of its layers."""

    layers: tuple[Mount, ...]
    """The topmost first."""
    table_of: Callable[[Mount], MountTable]
    """Returns a listing that has all that is mounted inside a layer; made when it is asked for."""

    @property
    def top(self) -> Mount:
        """The layer that the path leads to."""
        return self.layers[0]

    def inside(self, layer: Mount) -> tuple[Mount, ...]:
        """List the mounts inside one of the layers, parents first."""
        return inside(layer, self.table_of(layer))

    def without(self, taken: int) -> Pile:
        """Return what is left when the uppermost layers are gone."""
        return Pile(self.layers[taken:], self.table_of)
