"""What the daemon and the keeper say to each other.

One message is one packet of a ``SOCK_SEQPACKET`` unix socket, JSON: ``[VERSION, name, content]``.
Each request gets one answer, in the order of the requests.  Descriptors travel with the packet,
unix(7) ``SCM_RIGHTS``.  An upgrade restarts the daemon and not the keeper, so either may be older
than the other.  The keeper answers a packet of another version with ``OTHER_VERSION``.  The reader
skips fields that it does not know.

The keeper names what it holds by a number of its own, the *hold*.  It never uses a number twice.
The kernel gives the device number of a connection that has ended to another one at once, so no
request but ``Hold`` goes by that.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from fusewatchd.errors import ParseError
from fusewatchd.json_values import decode, encode

VERSION = 1
MAX_PACKET = 160 * 1024
"""Bytes of one packet: below what a socket takes at once by default, ``net.core.wmem_default``."""
MAX_SERVERS = 16
"""Processes of one server."""
MAX_PODS = 1024
"""Cgroups in one list."""
MAX_TEXT = 1024
"""Characters of a cgroup or a name."""
MAX_NUMBER = (1 << 63) - 1
MAX_SECONDS = 1e7
PAGE = 128
"""Connections in one answer to ``List``."""
MAX_ENDED = 128
"""Ended connections that are remembered."""


def socket_path(runtime_dir: str) -> str:
    """Return where the keeper listens.

    Not in the daemon's own directory: systemd removes that one when it stops the daemon.
    """
    return f"{runtime_dir.rstrip('/')}-keeper.sock"


# ------------------------------------------------------------------------------ requests


@dataclass(frozen=True, slots=True)
class Hold:
    """Hold this connection from now on; answered with ``Held`` or ``Refused``.

    Descriptors: a clone of the server's one of ``/dev/fuse`` (``linux.fuse_device``), then a pidfd
    of each process that has it, at most ``MAX_SERVERS``.  The server's own would do as well.  But
    while that lies in the socket of a keeper that stands still, callers of a dead server could not
    be killed.
    """

    connection: int
    """Its number below ``/sys/fs/fuse/connections``, ``Device.connection``."""
    driver: str
    grace_seconds: float
    """From the death until callers get the error that they get without a keeper."""
    pids_are_hosts: bool
    """True when the server mounted from the host's pid namespace.

    Only then do requests bear pids of the host.  Otherwise they bear 0 for a caller outside the
    server's container, and for one inside it the pid that it has in there.
    """
    pods: tuple[str, ...]
    """Cgroups of the pods that use it, as in ``/proc/<pid>/cgroup``: their callers wait.

    A cgroup stands for all below it.  Other callers get what they get without a keeper.
    """
    deleting: tuple[str, ...] = ()
    """Those of ``pods`` that are being deleted: their callers do not wait."""
    servers: tuple[str, ...] = ()
    """Cgroups of the server itself, also where they lie in a pod: their callers do not wait."""


@dataclass(frozen=True, slots=True)
class Update:
    """Let these callers wait from now on, in the place of those before; answered with ``Done``.

    Callers that wait already and no longer may are answered at once.
    """

    hold: int
    pods: tuple[str, ...]
    deleting: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Watch:
    """These processes have the server's descriptor now; answered with ``Done``.

    Descriptors: a pidfd of each, in the place of those before.  The connection is without a server
    when all have ended.
    """

    hold: int


@dataclass(frozen=True, slots=True)
class List:
    """Tell what is held; answered with ``Connections``."""

    after: int = 0
    """The last hold of the page before."""
    ended_after: int = 0
    """The last ``Ended.number`` that is known."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """All mounts of this connection are replaced, in the host's and all containers' namespaces.

    Answered with ``Answered``.  Callers that wait, and later ones, get ESTALE: the kernel walks
    their paths once more, and comes out in the new mount.  The connection is let go
    ``LINGER_SECONDS`` of the keeper later.  Said while the server lives, it counts from its death.
    """

    hold: int


@dataclass(frozen=True, slots=True)
class Release:
    """Let go of this connection, whatever state it is in; answered with ``Done``.

    Callers that wait get ENOTCONN.
    """

    hold: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Let go of everything and end; answered with ``Done`` when nothing is held any more."""


Request = Hold | Update | Watch | List | Replaced | Release | Stop

# ------------------------------------------------------------------------------ answers


class Refusal(Enum):
    """Why the keeper does not do what it was asked for."""

    OTHER_VERSION = "other_version"
    NOT_UNDERSTOOD = "not_understood"
    """No request, or one beyond a bound."""
    NOT_FUSE = "not_fuse"
    """The first descriptor is not one of ``/dev/fuse``."""
    OTHER_CONNECTION = "other_connection"
    """The descriptor belongs to another connection than the one named (Linux 6.16 tells)."""
    NO_SERVER = "no_server"
    """The other descriptors are no pidfds, or of processes that have ended."""
    CANNOT_CLONE = "cannot_clone"
    """It has no connection, or ``/dev/fuse`` cannot be opened."""
    HELD_ALREADY = "held_already"
    TOO_MANY = "too_many"
    NOT_HELD = "not_held"
    """There is no such hold; it may have ended."""
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Refused:
    """The request changed nothing."""

    why: Refusal
    text: str = ""
    """For people; may be empty."""


@dataclass(frozen=True, slots=True)
class Held:
    """The connection is held, by this number."""

    hold: int


@dataclass(frozen=True, slots=True)
class Done:
    """The request is carried out."""


@dataclass(frozen=True, slots=True)
class Answered:
    """So many callers were waiting, and are answered now."""

    callers: int
    longest_seconds: float


class State(Enum):
    """Where a held connection stands."""

    HEALTHY = "healthy"
    """The server runs; nothing is read."""
    HOLDING = "holding"
    """The server has ended: callers in pods wait."""
    ANSWERING = "answering"
    """All is replaced: callers are sent to the new mount."""
    ENDING = "ending"
    """It is being let go: every caller gets ENOTCONN."""


class End(Enum):
    """Why a connection is no longer held."""

    REPLACED = "replaced"
    GRACE = "grace"
    """Nothing was replaced in time."""
    RELEASED = "released"
    GONE = "gone"
    """The kernel ended it: unmounted everywhere, or aborted."""
    FAILED = "failed"
    """The keeper could not go on with it."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the requests of one connection since its server ended."""

    waited: int = 0
    """Requests that had to wait."""
    stale: int = 0
    """Answered ESTALE: sent to the new mount."""
    host: int = 0
    """Answered ENOTCONN since the caller is in no pod that uses the volume."""
    descriptor: int = 0
    """Answered ENOTCONN since it asks for an open file, or writes."""
    too_many: int = 0
    """Answered ENOTCONN since too many of its pod wait already."""
    locked: int = 0
    """Answered ENOTCONN since the caller may have held a lock that others waited for."""
    signalled: int = 0
    """Let go for a signal, with EINTR or ENOTCONN."""
    deleted: int = 0
    """Answered ENOTCONN since the pod is being deleted, or no longer uses the volume."""
    given_up: int = 0
    """Waited in vain: answered ENOTCONN when the connection was let go."""
    in_flight: int = 0
    """Taken over from the dead server (``FUSE_NOTIFY_RESEND``, Linux 6.9)."""
    longest_seconds: float = 0.0
    """The longest wait that is over."""


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection that is held."""

    hold: int
    connection: int
    driver: str
    pids: tuple[int, ...]
    """The processes of its server."""
    state: State
    since_seconds: float
    """For how long it has been without a server; 0 while that runs."""
    waiting: int
    """Callers that wait now."""
    oldest_seconds: float
    """For how long the first of them has waited; 0: none waits."""
    counts: Counts


@dataclass(frozen=True, slots=True)
class Ended:
    """One connection that is no longer held."""

    number: int
    """Of those that have ended; greater for later ones."""
    hold: int
    connection: int
    driver: str
    how: End
    counts: Counts


@dataclass(frozen=True, slots=True)
class Connections:
    """What is held, by hold, and what has ended since."""

    connections: tuple[Connection, ...]
    """At most ``PAGE``: ask for those after the last one where there are that many."""
    ended: tuple[Ended, ...]
    """The newest ``MAX_ENDED``, oldest first."""
    pid: int
    """Of the keeper, which a socket of systemd's does not tell."""
    survives: bool
    """True when connections outlive the keeper, by the descriptor store of systemd."""


Answer = Held | Refused | Done | Answered | Connections

# ---------------------------------------------------------------------------- as packets

_REQUESTS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (Hold, Update, Watch, List, Replaced, Release, Stop)
}
_ANSWERS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (Held, Refused, Done, Answered, Connections)
}


class OtherVersionError(ParseError):
    """A packet of another version of this protocol."""


def packet_of(message: Request | Answer) -> bytes:
    """Return a message as a packet.

    Raises:
        ValueError: it is longer than ``MAX_PACKET``.
    """
    packet = json.dumps(
        [VERSION, type(message).__name__, encode(message)], separators=(",", ":")
    ).encode("ascii")
    if len(packet) > MAX_PACKET:
        raise ValueError(f"a packet of {len(packet)} bytes")
    return packet


def request_of(packet: bytes) -> Request:
    """Return what the daemon asks for.

    Raises:
        ParseError: it is no request, or exceeds a bound; ``OtherVersionError`` where the version
            is another one.
    """
    request: Request = _decoded(_REQUESTS, packet)
    return request


def answer_of(packet: bytes) -> Answer:
    """Return what the keeper answers; raises as ``request_of``."""
    answer: Answer = _decoded(_ANSWERS, packet)
    return answer


def _decoded(kinds: dict[str, type[Any]], packet: bytes) -> Any:
    if len(packet) > MAX_PACKET:
        raise ParseError("a packet that is too long")
    try:
        value = json.loads(packet)
    except (ValueError, RecursionError) as exc:
        raise ParseError(f"not JSON: {exc}") from exc
    if not isinstance(value, list) or not value or type(value[0]) is not int:
        raise ParseError("expected version, name and content")
    if value[0] != VERSION:
        raise OtherVersionError(f"version {value[0]}, and this one speaks {VERSION}")
    if len(value) != 3 or not isinstance(value[1], str) or value[1] not in kinds:
        raise ParseError("a message that this version does not know")
    message = decode(kinds[value[1]], value[2])
    _require_bounded(value[1], message)
    return message


def _require_bounded(name: str, value: object) -> None:
    """Refuse what no peer of ours says; ``name`` is for the message."""
    if isinstance(value, str):
        is_fine = len(value) <= MAX_TEXT
    elif isinstance(value, float):
        is_fine = math.isfinite(value) and 0 <= value <= MAX_SECONDS
    elif isinstance(value, int):
        is_fine = 0 <= value <= MAX_NUMBER
    elif isinstance(value, tuple):
        is_fine = len(value) <= MAX_PODS
        for item in value if is_fine else ():
            _require_bounded(name, item)
    elif isinstance(value, Enum):
        is_fine = True
    else:
        is_fine = True
        for field in fields(value):  # type: ignore[arg-type]  # all else is a dataclass of ours
            _require_bounded(f"{name}.{field.name}", getattr(value, field.name))
    if not is_fine:
        raise ParseError(f"{name}: out of bounds")
