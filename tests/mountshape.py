"""What of a mount table must be the same after a recovery as before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class MountShape(NamedTuple):
    """One FUSE mount without its numbers: ids, device and peer groups are new each time."""

    mount_point: str
    root: str
    options: str
    propagation: tuple[str, ...]
    """Of one that is shared only that: a replaced bind has a group that receives from the source's."""
    file_system: str
    """Type, source and options of the superblock."""


def fuse_shapes(mountinfo: str, below: Iterable[str]) -> list[MountShape]:
    """Return the FUSE mounts at and below some paths by their place, lower layers first."""
    found = []
    for line in mountinfo.splitlines():
        mount, _, file_system = line.partition(" - ")
        fields = mount.split(" ")
        is_below = any(f"{fields[4]}/".startswith(f"{path}/") for path in below)
        if file_system.startswith("fuse") and is_below:
            tags = tuple(tag.partition(":")[0] for tag in fields[6:])
            tags = ("shared",) if "shared" in tags else tags
            found.append(MountShape(fields[4], fields[3], fields[5], tags, file_system))
    return sorted(found, key=lambda shape: shape.mount_point)
