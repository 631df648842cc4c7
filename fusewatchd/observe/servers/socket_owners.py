"""Maps a configured server socket to its FUSE connections; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from fusewatchd.config.settings import SocketSettings
from fusewatchd.model.findings import Finding
from fusewatchd.model.mounts import Device, Mount


def devices_behind(
    socket: str,
    entries: Iterable[SocketSettings],
    mounts: Sequence[Mount],
    findings: Sequence[Finding],
) -> frozenset[Device] | None:
    """Return the connections that may have lost their server when a socket hung up.

    None when that is not said, or when nothing that is mounted is what is said: then it may
    be any of them.

    Args:
        socket: its path.
        entries: of the configuration.
        mounts: the FUSE mounts of the host.
        findings: of the last cycle.
    """
    devices: set[Device] = set()
    for entry in entries:
        if not matches(socket, entry.glob):
            continue
        if not entry.source and not entry.driver:
            return None
        devices |= {m.device for m in mounts if _is_meant(m, entry)}
        if entry.driver:
            binds = [f.bind for f in findings if fnmatchcase(f.bind.driver, entry.driver)]
            devices |= {bind.mount.device for bind in binds if bind.mount is not None}
    return frozenset(devices) or None


def _is_meant(mount: Mount, entry: SocketSettings) -> bool:
    if entry.source and matches(mount.mount_point, entry.source):
        return True
    names = (mount.fs_type, mount.subtype) if entry.driver else ()
    return any(fnmatchcase(name, entry.driver) for name in names)


def matches(path: str, pattern: str) -> bool:
    """Return True for a path that glob(7) finds: no wildcard stands for a slash."""
    parts, patterns = path.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))
