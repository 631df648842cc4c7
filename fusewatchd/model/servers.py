"""FUSE connections, the processes behind them, and what is known of their end.

Also who still holds files of a dead mount.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum
from signal import Signals

from fusewatchd.errors import error_name
from fusewatchd.model.mounts import Device

# ----------------------------------------------------------------- FUSE connections


class Answer(Enum):
    """How a connection answered the last ``statfs`` that was sent to it."""

    ANSWERED = "answered"
    DISCONNECTED = "disconnected"
    """The kernel refuses with ENOTCONN or ECONNABORTED: no server, for good."""
    REFUSED = "refused"
    """A server refused with such an errno, as its backend did; or it is not known who did."""
    PENDING = "pending"
    """Asked and not answered yet."""
    NOT_ALLOWED = "not_allowed"
    """The kernel answered by itself because the caller may not use this mount."""
    ERROR = "error"
    """Another errno: the server is there and unwell, or the path is not reachable."""


_NO_FAILURE = frozenset({0, errno.EACCES, errno.EPERM, errno.ENOSYS})
"""A root may be squashed, a mount be for its owner only: what is there is served."""


@dataclass(frozen=True, slots=True)
class Root:
    """What a connection said when it was asked for the attributes of its root."""

    errno: int = 0
    is_pending: bool = False
    """It was asked for the first time, and neither answered nor was the deadline passed."""
    is_slow: bool = False
    """The deadline passed without an answer."""

    @property
    def fails(self) -> bool:
        """True when nobody can use what is mounted there."""
        return self.errno not in _NO_FAILURE


SERVED = Root()


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a connection could not be asked: no path that leads to it could be taken."""

    errno: int = 0
    """With what the last one failed; 0: another mount was there."""
    hangs: bool = False
    """A file system on the way gives no answer."""

    def describe(self) -> str:
        """Say what is in the way."""
        if self.hangs:
            return "a file system on the way to it hangs"
        why = f" ({error_name(self.errno)})" if self.errno else ""
        return f"no path leads to it{why}"


@dataclass(frozen=True, slots=True)
class Connection:
    """What is known of one FUSE connection (one superblock), whatever mounts show it."""

    device: Device
    answer: Answer | None
    """None: never answered so far."""
    asked_at: float = 0.0
    answered_at: float = 0.0
    errno: int = 0
    waiting: int | None = None
    """``/sys/fs/fuse/connections/N/waiting``; None where fusectl cannot be read."""
    is_overdue: bool = False
    """The pending probe has passed its deadline."""
    is_hung: bool = False
    """Nothing was answered for ``hung.after_seconds``."""
    confirmations: int = 0
    """How often in a row it was found hung, one probe deadline after the other."""
    is_unasked: bool = False
    """Its question waits for a free probe child, for ``hung.after_seconds`` by now."""
    server_gone_at: float | None = None
    """When the last serving process was seen to exit."""
    first_asked_at: float | None = None
    """None: never asked so far."""
    was_seen_working: bool = False
    """It answered at some time of this run, so the end of its server would have been seen."""
    disconnected_at: float | None = None
    """When the first DISCONNECTED came in; None for any other answer."""
    waited_seconds: float = 0.0
    """How long its question had waited when the kernel said so; the kernel aborts a connection
    whose request waits for longer than a timeout, Linux 6.15 and newer (fs/fuse/dev.c)."""
    held_since: float | None = None
    """Since when something keeps it alive without a serving process, and without an answer."""
    root: Root = SERVED
    is_outdated: bool = False
    """It could not be asked since its last answer, or since the end of its server."""
    obstacle: Obstacle | None = None
    """What was in the way whenever it was to be asked; None: its question reached it."""

    @property
    def refuses_all(self) -> bool:
        """True when a pod gets ENOTCONN from its server, whatever it asks."""
        return self.answer is Answer.REFUSED and self.root.errno in (
            errno.ENOTCONN,
            errno.ECONNABORTED,
        )

    @property
    def is_dead(self) -> bool:
        """True when the kernel said that it has no server; that is for good."""
        return self.answer is Answer.DISCONNECTED


@dataclass(frozen=True, slots=True)
class MemoryCgroup:
    """Where the memory of a process is counted, cgroups(7)."""

    version: int
    """Of cgroups: 1 or 2."""
    path: str
    """As ``/proc/<pid>/cgroup`` has it, below the root of the hierarchy."""


@dataclass(frozen=True, slots=True)
class FuseServer:
    """A process that holds a ``/dev/fuse`` descriptor of a connection."""

    pid: int
    start_time: int
    """Field 22 of ``/proc/<pid>/stat`` in clock ticks: guards against pid reuse."""
    devices: tuple[Device, ...]
    """Connections it serves; empty when the kernel does not tell (before about 6.16)."""
    command: str = ""
    """Its arguments, where the kernel does not tell which connections it serves."""
    pod_uid: str = ""
    """Directory uid; empty outside pods."""
    container_id: str = ""
    unit: str = ""
    """The systemd unit of a server outside pods."""
    name: str = ""
    """Its name in the kernel, at most 15 bytes."""
    memory: MemoryCgroup | None = None


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
            return "killed by the OOM killer"
        if self.status is None:
            return "exit status unknown (only its parent can read it)"
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
    roots: int = 0
    """Descriptors of the root of the dead mount, its own root directory included.

    What it opens by them is never on the new mount, as with gVisor's gofer.
    """


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
