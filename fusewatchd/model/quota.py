"""How much of the daemon one owner may take; pure.

A pod or a local user can multiply mounts, descriptors, names, namespaces and devices at will.  So
everything that is spent because of an owner has a limit of that owner.  What is above the limit is
refused to this owner alone, and told: in the status, the log, a metric and an Event on the pod.

A limit is never below what the spec of a pod can need.  Node agents of root could do anything to
the node anyway, and show copies of all of its mounts: they have the bounds of the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from fusewatchd.model.mounts import MountNamespace

QUIET_SECONDS = 5.0
"""A limit that refused nothing for so long is over."""
MAX_REFUSED = 256
"""Owners and resources remembered at a time; a node runs fewer pods."""


class OwnerKind(Enum):
    """What an owner is."""

    POD = "pod"
    AGENT = "agent"
    """Root's own, in the user namespace of the daemon and in no pod without privileges."""
    FOREIGN = "foreign"
    """Local users, all of them together."""

    __hash__ = object.__hash__  # there is one of each; the hash of Enum is a call of Python


class Owner(NamedTuple):
    """Because of whom something is spent."""

    kind: OwnerKind
    uid: str = ""
    """Of a pod, as its directory and its cgroup name it.  The id of a container of which no cgroup
    tells the pod."""


FOREIGN = Owner(OwnerKind.FOREIGN)
AGENT = Owner(OwnerKind.AGENT)


def pod(uid: str) -> Owner:
    """Return the owner for a pod, or for a container of which only its id is known."""
    return Owner(OwnerKind.POD, uid)


def owner_of(namespace: MountNamespace | None) -> Owner:
    """Return to whom a mount namespace belongs; None is the host's own."""
    if namespace is None:
        return AGENT
    uid = namespace.pod_uid or namespace.container_id
    if namespace.is_agent:
        return Owner(OwnerKind.AGENT, uid)
    return pod(uid) if uid else FOREIGN


class Resource(Enum):
    """What can be spent (label ``resource``); a closed set."""

    WALK = "walk"
    """Seconds of a processor for one walk through /proc."""
    TABLE = "table"
    """Bytes and lines of a mount table."""
    NAMESPACES = "namespaces"
    DESCRIPTORS = "descriptors"
    """Open files of one process."""
    SERVERS = "servers"
    """Processes that serve FUSE file systems."""
    BINDS = "binds"
    """Mounts in containers that count as ours."""
    QUESTIONS = "questions"
    """FUSE connections that are asked whether they live."""
    WORKERS = "workers"
    """Workers that a path holds."""
    BUDGET = "budget"
    """Replacements of mounts."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one owner, or of what the name of a field says."""

    walk_seconds: float
    """Seconds of a processor, in one walk."""
    table_bytes: int
    """Of one mount table."""
    table_lines: int
    table_mounts: int
    """FUSE mounts of all namespaces of one container; of all of the owner that have none."""
    told_bytes: int
    """Of the lines of one table that the daemon is told of."""
    namespaces_of_container: int
    namespaces: int
    descriptors: int
    """Of one process, in one look."""
    questions: int
    """Connections that no bind of the host shows."""
    servers: int
    """Processes that serve FUSE file systems."""
    stuck_workers: int


TOLD_FACTOR = 4
"""With each FUSE mount so many mounts are told: what is mounted inside, and itself."""
LINE_BYTES = 8 << 10
"""Of one line of a mount table: two paths of PATH_MAX, each byte as it is."""
SPARE = 2
"""A mount of a spec may be there twice: the dead one, and what was put over it."""
LEAST_BINDS = 64
LEAST_BINDS_OF_POD = 256

OF_POD = Limits(
    walk_seconds=0.5,
    table_bytes=4 << 20,
    table_lines=5_000,
    table_mounts=256,
    told_bytes=512 << 10,
    namespaces_of_container=4,
    namespaces=16,
    descriptors=4_096,
    questions=64,
    servers=64,
    stuck_workers=2,
)
OF_FOREIGN = replace(
    OF_POD, table_bytes=1 << 20, namespaces_of_container=64, namespaces=64, servers=256
)
OF_AGENT = Limits(
    walk_seconds=float("inf"),
    table_bytes=32 << 20,
    table_lines=100_000,
    table_mounts=100_000,
    told_bytes=8 << 20,
    namespaces_of_container=1_024,
    namespaces=1_024,
    descriptors=1 << 16,
    questions=4_096,
    servers=10_000,
    stuck_workers=16,
)
STUCK_WORKERS = 16
"""Of all owners."""

_LIMITS = {OwnerKind.POD: OF_POD, OwnerKind.FOREIGN: OF_FOREIGN, OwnerKind.AGENT: OF_AGENT}


def limits_of(owner: Owner) -> Limits:
    """Return the limits of an owner."""
    return _LIMITS[owner.kind]


def binds_of_container(mounts_in_spec: int) -> int:
    """Return how many binds of one container count as ours.

    ``mounts_in_spec`` are the volumeMounts of this container, or of its whole pod where the
    container's name is not known.
    """
    return max(LEAST_BINDS, SPARE * mounts_in_spec)


def binds_of_pod(mounts_in_spec: int) -> int:
    """Return how many binds of all containers of a pod count as ours."""
    return max(LEAST_BINDS_OF_POD, SPARE * mounts_in_spec)


def questions_of(owner: Owner, mounts_in_spec: int) -> int:
    """Return how many connections are asked for an owner beside those that the host needs."""
    return max(limits_of(owner).questions, SPARE * mounts_in_spec)


# ------------------------------------------------------------------------- refused


@dataclass(frozen=True, slots=True)
class RefusedOwner:
    """An owner that wants more of something than it may have."""

    owner: Owner
    resource: Resource
    limit: float
    wanted: float = 0
    """How much it wants, as far as that is known; 0: it was not counted."""
    example: str = ""
    """What shows whose it is, in a person's words: ``pid 4711 of user 1000``."""


Key = tuple[Owner, Resource]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refused owner, and for how long it has been one."""

    owner: RefusedOwner
    since: float
    last_at: float
    """When it was refused last."""


Refused = Mapping[Key, Refusal]


@dataclass(slots=True)
class Collected:
    """Collects refused owners while something is counted: one for each owner and resource."""

    found: dict[Key, RefusedOwner] = field(default_factory=dict)

    def add(self, one: RefusedOwner) -> None:
        """Add one; of two with the same owner and resource the one that wants more counts."""
        known = self.found.get((one.owner, one.resource))
        if known is None or known.wanted < one.wanted:
            self.found[one.owner, one.resource] = one

    def all(self) -> tuple[RefusedOwner, ...]:
        """Return them in the order in which they came."""
        return tuple(self.found.values())


def follow(known: Refused, now_refused: Iterable[RefusedOwner], now: float) -> Refused:
    """Return who is refused after this look.

    One that is refused again and again stays refused without a break, so that each is told once.
    Those that are known stay when there are too many.
    """
    kept = {key: one for key, one in known.items() if now - one.last_at < QUIET_SECONDS}
    for one in now_refused:
        key = one.owner, one.resource
        before = kept.get(key)
        if before is not None:
            kept[key] = Refusal(one, before.since, now)
        elif len(kept) < MAX_REFUSED:
            kept[key] = Refusal(one, now, now)
    return kept
