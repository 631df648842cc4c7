"""What a driver module is: pure knowledge of where its FUSE servers mount.

A driver reads a snapshot and answers; it opens nothing and remembers nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from fusewatchd.model.findings import SourceAnswer, SourcePath
from fusewatchd.model.mounts import Mount
from fusewatchd.model.pods import BindKind, BindPath, VolumeData
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.parse.kubelet_paths import publish_directory


@dataclass(frozen=True, slots=True)
class Layout:
    """What a driver knows, as a row of the table in ``README.md`` beside this file; Markdown."""

    volumes: str
    recognised: str
    """By which property of the volume."""
    source: str
    """Where its server mounts."""


class Driver(Protocol):
    """Knows the layout of one family of FUSE volumes."""

    name: str

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Return what it knows, for the table of drivers."""

    def locate(self, bind: BindPath, mount: Mount, snapshot: Snapshot) -> SourceAnswer | None:
        """Say where the source of this bind is mounted; None: not a volume of this driver."""


_OF_PERSISTENT_VOLUMES = ("persistentVolumeClaim", "ephemeral")


def volume_data(bind: BindPath, mount: Mount, snapshot: Snapshot) -> VolumeData | None:
    """Return the CSI driver and handle of a bind's volume; None when it has none, or unknown.

    A pod may have a hostPath ``data`` beside a PersistentVolume ``data``, and the subPaths of
    both are at ``volume-subpaths/data``: one that shows another file system than the CSI volume
    does is only taken for that when the pod's spec has no volume of this name.
    """
    data = snapshot.volume_data.get((bind.pod_uid, bind.volume))
    if data is None or bind.kind is BindKind.PUBLISH:
        return data
    if bind.kind is not BindKind.SUBPATH:
        return None
    volume = publish_directory(snapshot.kubelet, bind.pod_uid, bind.volume)
    if any(other.device == mount.device for other in snapshot.table.at(f"{volume}/mount")):
        return data
    pod = (snapshot.pods or {}).get(bind.pod_uid)
    if pod is None:
        return None
    kinds = {found.kind for found in pod.volumes if found.name == bind.volume}
    own = {*_OF_PERSISTENT_VOLUMES, "csi"} if data.is_ephemeral else {*_OF_PERSISTENT_VOLUMES}
    return data if kinds <= own else None


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
