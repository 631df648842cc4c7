"""What a FUSE connection is asked, where, as whom, and how long the answer may take; pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from fusewatchd.model.mounts import Device, Mount, MountNamespace


@dataclass(frozen=True, slots=True)
class Question:
    """Where to ask one connection, and as whom."""

    device: Device
    path: str
    pid: int = 0
    """Not 0: the path is inside the mount namespace of this process."""
    uid: int | None = None
    gid: int | None = None
    is_covered: bool = False
    """The path leads to another mount on top of it: it is asked in a copy of what is there."""
    is_urgent: bool = field(default=False, compare=False)
    """Something happened to this connection: it is not merely its turn."""
    asks_root: bool = field(default=False, compare=False)
    """The attributes of its root are asked for as well, once it has answered."""
    root_seconds: float = field(default=0.0, compare=False)
    """How long that may take."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How often connections are asked, in seconds."""

    interval: float
    deadline: float
    hung_after: float
    confirms: bool = False
    """Somebody wants to know for how long a hung connection has stood still."""
    held_grace: float = 0.0
    """For so long one whose server ended is waited for before it may be called hung."""


@dataclass(frozen=True, slots=True)
class Shown:
    """Where a device can be asked now, and the ids of the mounts that show it."""

    question: Question
    on_host: frozenset[int]
    elsewhere: frozenset[int] = frozenset()
    """In other namespaces, as they were at the last look there: some may be gone by now."""

    def is_same_superblock(self, before: Shown) -> bool:
        """Return True when a mount that stayed proves that the number was not reused.

        The host's table is up to date, the others may be older than the reuse: where the
        host shows the device, it alone can tell.
        """
        if self.on_host:
            return bool(self.on_host & before.on_host)
        return bool(self.elsewhere & before.elsewhere)


def credentials_of(mount: Mount) -> tuple[int | None, int | None]:
    """Return whom a probe of this mount must be, (None, None) for the daemon itself.

    Without ``allow_other`` the kernel answers everybody but the mount's owner by itself, with
    success, even when the server is dead (fs/fuse/dir.c, fuse_allow_current_process).
    """
    options = dict(option.partition("=")[::2] for option in mount.super_options.split(","))
    if "allow_other" in options or not mount.fs_type.startswith("fuse"):
        return None, None
    uid, gid = options.get("user_id", "0"), options.get("group_id", "0")
    if not (uid.isdigit() and gid.isdigit()) or (uid == "0" and gid == "0"):
        return None, None
    return int(uid), int(gid)


def shown_devices(
    host: Sequence[Mount], namespaces: Iterable[MountNamespace], ignored: Collection[str]
) -> dict[Device, Shown]:
    """Return where each FUSE device can be asked: the first path that leads to it.

    ``ignored`` are file system types.  Where every path leads to another mount on top, the
    device is asked as a covered one.
    """
    places = _Places(ignored)
    places.add(host, 0, places.on_host)
    for namespace in namespaces:
        if namespace.pid:
            places.add([m for m in namespace.mounts if m.is_fuse], namespace.pid, places.elsewhere)
    covered = {d: replace(question, is_covered=True) for d, question in places.hidden.items()}
    return {
        device: Shown(
            question,
            frozenset(places.on_host.get(device, ())),
            frozenset(places.elsewhere.get(device, ())),
        )
        for device, question in (covered | places.reached).items()
    }


class _Places:
    """Collects the devices of mounts, with the first path at which each one could be asked."""

    def __init__(self, ignored: Collection[str]) -> None:
        self._ignored = ignored
        self.reached: dict[Device, Question] = {}
        self.hidden: dict[Device, Question] = {}
        """At paths that lead to another mount."""
        self.on_host: dict[Device, set[int]] = {}
        self.elsewhere: dict[Device, set[int]] = {}

    def add(self, mounts: Sequence[Mount], pid: int, ids: dict[Device, set[int]]) -> None:
        points = {mount.mount_id: mount.mount_point for mount in mounts}
        covered = {m.parent_id for m in mounts if points.get(m.parent_id) == m.mount_point}
        for mount in mounts:
            if mount.fs_type in self._ignored:
                continue
            ids.setdefault(mount.device, set()).add(mount.unique_id or mount.mount_id)
            found = self.hidden if mount.mount_id in covered else self.reached
            if mount.device not in found:
                uid, gid = credentials_of(mount)
                found[mount.device] = Question(mount.device, mount.mount_point, pid, uid, gid)
