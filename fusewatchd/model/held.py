"""Connections that the keeper holds, so that callers wait when their server ends.

See fuse(4): a connection ends with the last descriptor of ``/dev/fuse`` that belongs to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from fusewatchd.model.mounts import Device
from fusewatchd.model.servers import FuseServer


class NotHeld(Enum):
    """Why a connection that the configuration names is not held (label ``reason``)."""

    KERNEL = "kernel"
    """No unique mount ids (Linux 6.8), or nothing goes beneath a mount (6.5)."""
    CONNECTION_UNKNOWN = "connection_unknown"
    """The kernel does not tell which connection a descriptor serves (Linux 6.16 does)."""
    BLOCK_DEVICE = "block_device"
    """``fuseblk``: it is not sent to a server over ``/dev/fuse`` alone."""
    SERVER_UNKNOWN = "server_unknown"
    """No process was seen that serves it."""
    OTHER_HOLDER = "other_holder"
    """More than one process has a descriptor of it: a keeper of the driver's own, perhaps."""
    NOT_EVERYBODY_SEEN = "not_everybody_seen"
    """Some processes were not looked at: one of them may hold it as well."""
    IO_URING = "io_uring"
    """Its requests may go through a ring of the server's, which no one else reads."""
    SWITCHED_OFF = "switched_off"
    """Recovery is switched off for one of its mounts: its callers would wait for nothing."""
    REPORT_ONLY = "report_only"
    """``recovery.mode`` is report, or recovery is paused: nothing would be replaced."""
    NO_KEEPER = "no_keeper"
    """The keeper does not run, or does not answer."""
    FAILED = "failed"
    """Taking its descriptor, or handing it over, failed."""


@dataclass(frozen=True, slots=True)
class HoldRefusal:
    """A connection that is named by ``keeper.hold.drivers`` and is not held."""

    device: Device
    driver: str
    reason: NotHeld
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Caller:
    """A container that uses a connection, by the process that stands for it."""

    pid: int
    start_time: int
    is_deleting: bool = False
    """Its pod is being deleted: its callers do not wait."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A connection to be held, or to be held on."""

    device: Device
    driver: str
    callers: tuple[Caller, ...]
    server: FuseServer | None = None
    """Whose descriptor is taken; None: it is in the keeper's hands, and stays there."""


@dataclass(frozen=True, slots=True)
class HeldConnection:
    """A connection in the keeper's hands, as the keeper said last."""

    device: Device
    driver: str = ""
    hold: int = 0
    """By which number the keeper knows it; no other connection ever gets that."""
    is_dead: bool = False
    """Its server has ended: callers in pods wait, or are being answered."""
    is_answered: bool = False
    """The keeper knows that all mounts of it are replaced, or lets go of it."""
    since_seconds: float = 0.0
    """For how long it has been without a server."""
    waiting: int = 0
    """Calls that wait now."""
    oldest_seconds: float = 0.0
    """For how long the first of them has waited."""


class HoldEnd(Enum):
    """How the holding of a connection ended (label ``end``)."""

    REPLACED = "replaced"
    GRACE = "grace"
    """Nothing was replaced in time: a driver that waits for itself, perhaps."""
    RELEASED = "released"
    GONE = "gone"
    """The kernel ended it: it is mounted nowhere any more."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class EndedHold:
    """A connection that the keeper has let go of, with what became of its callers."""

    number: int
    """Greater for later ones."""
    device: Device
    driver: str
    end: HoldEnd
    waited: int = 0
    sent_on: int = 0
    """Answered ESTALE: the kernel walked them into the new mount."""
    refused_to_host: int = 0
    given_up: int = 0
    longest_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Placing:
    """The attempts to put stand-ins in the place of the mounts of one connection."""

    is_in_flight: bool = False
    failures: int = 0
    """In a row."""
    retry_at: float = 0.0
    problem: str = ""
    """With what the last one ended."""


@dataclass(frozen=True, slots=True)
class KeeperView:
    """What is known of the keeper at one moment."""

    is_on: bool = False
    """``keeper.hold.drivers`` names some, or connections are still held."""
    problem: str = ""
    """Why there is no keeper to talk to; empty: there is one, or none is needed."""
    survives: bool = True
    """What is held outlives the keeper's process."""
    own_pids: frozenset[int] = frozenset()
    """Processes that have descriptors of connections and serve none."""
    store_pid: int = 0
    """Keeps copies of the keeper's descriptors for it: systemd, with ``FDSTORE``."""
    held: Mapping[Device, HeldConnection] = field(default_factory=dict)
    refused: tuple[HoldRefusal, ...] = ()
    ended: tuple[EndedHold, ...] = ()
    """New since the last cycle, the oldest first."""

    def dead(self) -> frozenset[Device]:
        """Return the connections whose server has ended, and which are held."""
        return frozenset(device for device, held in self.held.items() if held.is_dead)


NO_KEEPER = KeeperView()
