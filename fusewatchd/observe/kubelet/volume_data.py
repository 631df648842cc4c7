"""Reading ``vol_data.json`` beside a CSI publish target.

Written by the kubelet (kubernetes, pkg/volume/csi/csi_util.go) next to the directory that the
driver mounts on, so the file itself is on the kubelet's own disk.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model.kubelet import KubeletDirectory
from fusewatchd.model.mounts import Device, Mount
from fusewatchd.model.pods import BindKind, BindPath, VolumeData
from fusewatchd.parse.kubelet_paths import (
    directory_named_by_volume,
    parse_bind_path,
    publish_directory,
)

MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class _Place:
    """What a mount point is for the kubelet, as its path says."""

    named_by_volume: str | None
    bind: BindPath | None

    @staticmethod
    def of(directory: KubeletDirectory, mount_point: str) -> _Place:
        return _Place(
            directory_named_by_volume(directory, mount_point),
            parse_bind_path(directory.pods, mount_point),
        )


class VolumeDataReader:
    """The files of the volumes that are mounted; each is read once."""

    def __init__(self, directory: KubeletDirectory) -> None:
        """Read nothing yet; where none was found there is nothing to read."""
        self._directory = directory
        self.published: dict[tuple[str, str], VolumeData] = {}
        """By (pod directory uid, volume)."""
        self.staged: dict[str, VolumeData] = {}
        """Beside a staging path that is only a name, by that path."""
        self.pods: frozenset[str] = frozenset()
        """Pods with binds, by the names of their directories."""
        self.devices: frozenset[Device] = frozenset()
        """What the binds show."""
        self._by_mount: dict[Mount, VolumeData] = {}
        self._places: dict[str, _Place] = {}
        """What the paths of the last look are, which most of the next ones are as well."""

    def read(self, mounts: Iterable[Mount]) -> frozenset[str]:
        """Bring both up to date with these FUSE mounts; return the paths of all binds."""
        published: dict[tuple[str, str], VolumeData] = {}
        by_mount: dict[Mount, VolumeData] = {}
        paths: set[str] = set()
        pods: set[str] = set()
        devices: set[Device] = set()
        places: dict[str, _Place] = {}
        for mount in mounts if self._directory.is_found else ():
            place = self._places.get(mount.mount_point)
            if place is None:
                place = _Place.of(self._directory, mount.mount_point)
            places[mount.mount_point] = place
            # A path alone may be another volume's by now: what is staged is known by its mount.
            if place.named_by_volume is not None:
                found = self._by_mount.get(mount) or read_volume_data(place.named_by_volume)
                if found is not None:
                    by_mount[mount] = found
            path = place.bind
            if path is None:
                continue
            paths.add(mount.mount_point)
            pods.add(path.pod_uid)
            devices.add(mount.device)
            key = (path.pod_uid, path.volume)
            if path.kind is BindKind.PUBLISH and key not in published:
                found = self.published.get(key) or read_volume_data(
                    publish_directory(self._directory, path.pod_uid, path.volume)
                )
                if found is not None:
                    published[key] = found
        self.published, self._by_mount, self._places = published, by_mount, places
        self.pods, self.devices = frozenset(pods), frozenset(devices)
        self.staged = {mount.mount_point: data for mount, data in by_mount.items()}
        return frozenset(paths)


def read_volume_data(directory: str) -> VolumeData | None:
    """Return driver and volume handle of the volume in ``directory``; None when there is none.

    The directory must not be a mount point.  Nothing there is followed, and nothing that is
    no small regular file is read: the tree belongs to the kubelet, but a pod may once have
    been able to write near it.
    """
    try:
        with closing_fd(os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            text = _read_small_file(fd, "vol_data.json")
        document = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    driver, handle = document.get("driverName"), document.get("volumeHandle")
    if not isinstance(driver, str) or not isinstance(handle, str):
        return None
    return VolumeData(driver, handle, document.get("volumeLifecycleMode") == "Ephemeral")


def _read_small_file(directory: int, name: str) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with closing_fd(os.open(name, flags, dir_fd=directory)) as fd:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            raise ValueError("not a small regular file")
        return os.read(fd, MAX_BYTES)
