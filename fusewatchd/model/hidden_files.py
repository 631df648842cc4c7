"""Files in the node's directory below a volume, which its mount hides."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DirectoryJob:
    """A directory to look at, as it is below all that is mounted in it."""

    path: str
    ground: str
    """Where the mount is on which the directory lies."""
    ground_id: int
    inside: str
    """The directory below ``ground``."""


@dataclass(frozen=True, slots=True)
class DirectoryCount:
    """What one look counted."""

    files: int
    size: int
    """Bytes, as stat(2) has them."""
    is_whole: bool
    """False: there are more than one look counts."""


@dataclass(frozen=True, slots=True)
class HiddenFiles:
    """What was found in the directory of a volume that was not mounted for some time."""

    path: str
    pod_uid: str
    volume: str
    count: DirectoryCount
    is_covered: bool
    """The volume is mounted there by now."""
