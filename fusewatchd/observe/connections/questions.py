"""What a FUSE connection is asked, where, as whom, and how long the answer may take; pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache

from fusewatchd.model.mounts import Device, Mount
from fusewatchd.model.quota import AGENT, Owner


class Way(IntEnum):
    """What lies on the way to a place, the best first; what is worse hides what is better."""

    PLAIN = 0
    NETWORK = 1
    """A network file system, which may hang."""
    FUSE = 2
    """A FUSE file system, which may hang or be dead."""
    AUTOMOUNT = 3
    """An automount, which does not expire while somebody passes."""
    HIDDEN = 4
    """The path leads to another mount, or nowhere."""


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
    way: Way = Way.PLAIN
    start_time: int = 0
    """Of that process: its pid may be another one's by now."""
    rest_seconds: float = 0.0
    """It is not its turn again before: an automount on the way is to expire meanwhile."""
    owner: Owner = field(default=AGENT, compare=False)
    """Because of whom it is asked; the node itself for what it needs to know."""
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
    return _credentials(mount.super_options) if mount.is_fuse else (None, None)


def is_roots(mount: Mount) -> bool:
    """True for what root mounted; fusermount3 of a user adds his ``user_id``, whatever he wants."""
    return mount.user_id == 0


@lru_cache(maxsize=256)
def _credentials(super_options: str) -> tuple[int | None, int | None]:
    options = dict(option.partition("=")[::2] for option in super_options.split(","))
    if "allow_other" in options:
        return None, None
    uid, gid = options.get("user_id", "0"), options.get("group_id", "0")
    if not (uid.isdigit() and gid.isdigit()) or (uid == "0" and gid == "0"):
        return None, None
    return int(uid), int(gid)
