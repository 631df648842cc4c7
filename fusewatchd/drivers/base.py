"""What a driver module is: pure knowledge of where its FUSE servers mount.

A driver reads a snapshot and answers; it opens nothing and remembers nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from fusewatchd.model import BindPath, Mount, SourceAnswer, SourcePath, VolumeData
from fusewatchd.snapshot import Snapshot


class Driver(Protocol):
    """Knows the layout of one family of FUSE volumes."""

    name: str

    def locate(self, bind: BindPath, mount: Mount, snapshot: Snapshot) -> SourceAnswer | None:
        """Say where the source of this bind is mounted; None: not a volume of this driver."""


def volume_data(bind: BindPath, snapshot: Snapshot) -> VolumeData | None:
    """Return the CSI driver and handle of a bind's volume; None when it has none, or unknown."""
    return snapshot.volume_data.get((bind.pod_uid, bind.volume))


def namespace_of(bind: BindPath, snapshot: Snapshot) -> str | None:
    """Return the namespace of a bind's pod; None while the kubelet has not told."""
    pod = (snapshot.pods or {}).get(bind.pod_uid)
    return pod.namespace if pod else None


def is_one_name(text: str) -> bool:
    """True when this is the name of one entry of a directory, and no way out of it."""
    return bool(text) and "/" not in text and "\0" not in text and text not in (".", "..")


def sources_at(paths: Iterable[str], snapshot: Snapshot) -> tuple[SourcePath, ...]:
    """Return those of these paths at which a FUSE file system is mounted now."""
    tops = ((path, snapshot.table.top_at(path)) for path in dict.fromkeys(paths))
    return tuple(SourcePath(path, top.root) for path, top in tops if top and top.is_fuse)
