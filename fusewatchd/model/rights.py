"""Whether a pod could ever write to a volume: what a new file system must not undo unasked; pure.

Only what was seen while the server answered counts, and once it could, it may: a server that comes
up read-only for a while takes no right away for good.  It is remembered of the container's mount,
over replacements and restarts of the daemon, and a new container begins without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fusewatchd.model.mounts import Mount
from fusewatchd.model.servers import Answer, Connection


class Rights(Enum):
    """What a mount allowed so far."""

    UNSEEN = "unseen"
    """It was never seen with a server that answers."""
    DENIED = "denied"
    """It never allowed writing."""
    ALLOWED = "allowed"


def denies_writing(mount: Mount) -> bool:
    """Return True when this mount or its superblock refuses writes."""
    return mount.is_read_only or "ro" in mount.super_options.split(",")


def rights_after(before: Rights, mount: Mount, connection: Connection | None) -> Rights:
    """Return what is known of a mount after this look."""
    if connection is None or connection.answer is not Answer.ANSWERED:
        return before
    is_denied = before is not Rights.ALLOWED and denies_writing(mount)
    return Rights.DENIED if is_denied else Rights.ALLOWED


@dataclass(frozen=True, slots=True)
class Denied:
    """Binds on the host of which no container could ever write."""

    origins: frozenset[str] = frozenset()
    receiving: frozenset[str] = frozenset()
    """Those from which a container receives what is mounted there."""
