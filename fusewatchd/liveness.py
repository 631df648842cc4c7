"""What is known of the end of a FUSE server, and of who still holds files of a dead mount.

Values only, as in ``model``; times are seconds of the monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from signal import Signals

from fusewatchd.model import Device, FuseServer

# --------------------------------------------------------------- how a server ended


class OomKill(Enum):
    """Whether the kernel killed for lack of memory where the server ran (label ``oom``)."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ServerEnd:
    """The end of one server, as far as somebody who is not its parent can tell."""

    seen_at: float
    """When it was noticed: within milliseconds of the end where the process was watched."""
    server: FuseServer | None
    """None: only its socket told of it."""
    oom: OomKill = OomKill.UNKNOWN
    why: str = ""
    """What the word on memory rests on."""
    status: int | None = None
    """As wait(2) gives it.  Only Linux 6.15 and newer tell it to others than the parent, and
    that once the parent has asked for it."""
    socket: str = ""
    """The socket that hung up."""

    def describe(self) -> str:
        """Say how it ended, as far as that is known."""
        if self.server is None:
            return "its socket hung up"
        if self.oom is OomKill.YES:
            return "killed by the kernel for lack of memory"
        if self.status is None:
            return "it ended, and its exit status was told to its parent only"
        signal = self.status & 0x7F
        if not signal:
            return f"exit status {self.status >> 8}"
        name = Signals(signal).name if signal in _SIGNALS else f"signal {signal}"
        return f"killed by {name}"


_SIGNALS = frozenset(map(int, Signals))


@dataclass(frozen=True, slots=True)
class Service:
    """What became of the servers of one source, since this daemon was started."""

    outages: int = 0
    """How often its server was found gone."""
    restarts: int = 0
    """How often it came back after that."""
    oom_kills: int = 0
    last_end: ServerEnd | None = None
    last_outage_seconds: float | None = None
    """Until the last bind of it was well again."""


# ------------------------------------------------- who holds files of a dead mount


@dataclass(frozen=True, slots=True)
class DeadMount:
    """What to look for: the mounts of a file system whose server is gone."""

    device: Device
    mount_ids: tuple[int, ...]
    """All that were ever seen of it, in any mount namespace, sorted."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has to open its files anew, or to be restarted."""

    device: Device
    pid: int
    start_time: int
    name: str
    files: int = 0
    """Open descriptors, 1000 at most."""
    mapped: int = 0
    """Mapped areas of files, 1000 at most."""
    has_directory: bool = False
    """Its working or root directory is there."""
    pod_uid: str = ""
    """Directory uid; empty outside pods."""
    container_id: str = ""
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Holding:
    """Who holds files of one dead mount, as of the last look."""

    device: Device
    source_path: str
    driver: str
    looked_at: float
    holders: tuple[Holder, ...] = ()
    count: int = 0
    """How many there are; the list is bounded."""
    unseen: int = 0
    """Processes that were not looked at: not allowed, or no time left."""
