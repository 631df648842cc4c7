"""What two kernels must agree on: the tree of mounts, whatever its numbers are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from fusewatchd.model.mounts import Device, Mount

Shape: TypeAlias = tuple[object, ...]


def shape_of(
    namespaces: Sequence[Iterable[Mount]], base: str, names: Mapping[Device, str]
) -> list[Shape]:
    """Describe the mounts at and below ``base`` of several namespaces.

    Groups are numbered in the order of a walk that does not depend on them, so that equal
    trees have equal shapes.
    """
    groups: dict[int, int] = {0: 0}
    return [_shape(list(mounts), base, names, groups) for mounts in namespaces]


def _shape(
    mounts: list[Mount], base: str, names: Mapping[Device, str], groups: dict[int, int]
) -> Shape:
    ours = [
        replace(m, mount_point=m.mount_point[len(base) :] or "/")
        for m in mounts
        if m.mount_point == base or m.mount_point.startswith(base + "/")
    ]
    ids = {m.mount_id for m in ours}
    roots = [m for m in ours if m.parent_id not in ids]
    return tuple(_node(m, ours, names, groups) for m in sorted(roots, key=_point))


def _node(
    mount: Mount, mounts: list[Mount], names: Mapping[Device, str], groups: dict[int, int]
) -> Shape:
    numbers = [groups.setdefault(n, len(groups)) for n in (mount.peer_group, mount.master)]
    head = (mount.mount_point, names.get(mount.device, "?"), mount.root, mount.options, *numbers)
    children = sorted((m for m in mounts if m.parent_id == mount.mount_id), key=_point)
    return (head, *(_node(child, mounts, names, groups) for child in children))


def _point(mount: Mount) -> str:
    return mount.mount_point


def as_text(shape: Shape, indent: int = 0) -> str:
    """Print a shape, one mount a line."""
    lines = []
    for entry in shape:
        assert isinstance(entry, tuple)
        lines.append("  " * indent + " ".join(map(str, entry[0])))
        if entry[1:]:
            lines.append(as_text(entry[1:], indent + 1))
    return "\n".join(lines)
