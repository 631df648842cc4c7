"""The account of all FUSE mounts that are seen: each one is in exactly one class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from fusewatchd.model.mounts import Device, Mount
from fusewatchd.text import printable

MAX_NAMED = 5
"""Names that are kept for one class; the numbers count all."""
MAX_LISTED = 100
"""Mounts of each kind that are listed one by one."""


class MountClass(Enum):
    """What a FUSE mount is (label ``class``); a closed set."""

    BIND_HOST = "bind_host"
    """A pod's volume on the host."""
    BIND_CONTAINER = "bind_container"
    """A pod's volume in a container."""
    SOURCE = "source"
    """The place on the host where a server mounted."""
    COPY = "copy"
    """Another place that shows what a volume or a source shows, or showed."""
    OWN = "own"
    """Made by the container or the user that has it."""
    AGENT_COPY = "agent_copy"
    """In a copy of the host's directories that a node agent or a service has."""
    EXCEPTION = "exception"
    """Left out by a rule that has a name."""
    OTHER_CONTAINER = "other_container"
    """In a container that belongs to no pod."""
    NOT_READ = "not_read"
    """A copy of a volume in a pod that has more of them than one pod may have."""
    NOT_UNDERSTOOD = "not_understood"
    """Looks like a pod's volume, and no rule explains it."""
    STILL_DEAD = "still_dead"
    """As above, and its server is gone."""


UNEXPLAINED = frozenset({MountClass.NOT_UNDERSTOOD, MountClass.STILL_DEAD})
OF_PODS = UNEXPLAINED | {MountClass.COPY, MountClass.OWN, MountClass.NOT_READ}
"""Classes that count when it is asked what still shows the file system of a dead server.

Copies in agents and in other containers keep no pod from its volume.
"""


@dataclass(frozen=True, slots=True)
class Account:
    """One mount and its class."""

    kind: MountClass
    mount: Mount
    namespace: int = 0
    """Inode; 0 for the host's."""
    whose: str = ""
    """A pod's uid, a path, a container or a rule, as the class asks for."""
    pod_uid: str = ""
    """Of the pod in whose container it is."""
    why: str = ""
    """For what is not explained: what about it looks like a pod's volume."""
    is_dead: bool = False
    is_of_volume: bool = False
    """It shows, or showed, a volume of this pod; of any pod, on the host."""

    def place(self) -> str:
        """Say where it is."""
        pod = f"pod {self.pod_uid}, " if self.pod_uid else ""
        return f"{pod}{printable(self.mount.mount_point)}"

    def describe(self) -> str:
        """Say where it is and what about it looks like a pod's volume."""
        return f"{self.place()} ({'dead, ' if self.is_dead else ''}{self.why})"


@dataclass(frozen=True, slots=True)
class Sum:
    """How many mounts of one class there are."""

    mounts: int = 0
    dead: int = 0
    whose: tuple[str, ...] = ()
    """The first names."""


NOTHING = Sum()


@dataclass(frozen=True, slots=True)
class Accounts:
    """The sums, and what of it has to be named."""

    sums: Mapping[MountClass, Sum] = field(default_factory=dict)
    unexplained: tuple[Account, ...] = ()
    dead: tuple[Account, ...] = ()
    """Dead mounts in the classes of ``OF_PODS`` that showed a volume."""

    @property
    def mounts(self) -> int:
        """How many FUSE mounts were seen."""
        return sum(one.mounts for one in self.sums.values())

    def of(self, kind: MountClass) -> Sum:
        """Return the sum of a class."""
        return self.sums.get(kind, NOTHING)

    def still_showing(self, device: Device) -> tuple[Account, ...]:
        """Return the places that show a dead file system and are not repaired."""
        return tuple(one for one in self.dead if one.mount.device == device)


NO_ACCOUNTS = Accounts()


def add_up(parts: Iterable[Accounts]) -> Accounts:
    """Return the account of several mount namespaces as one."""
    sums: dict[MountClass, Sum] = {}
    unexplained: list[Account] = []
    dead: list[Account] = []
    for part in parts:
        for kind, one in part.sums.items():
            before = sums.get(kind, NOTHING)
            names = before.whose
            if len(names) < MAX_NAMED:
                names = tuple(dict.fromkeys((*names, *one.whose)))[:MAX_NAMED]
            sums[kind] = Sum(before.mounts + one.mounts, before.dead + one.dead, names)
        unexplained += part.unexplained
        dead += part.dead
    return Accounts(sums, tuple(unexplained), tuple(dead))


def account_of(mounts: Iterable[Account]) -> Accounts:
    """Return the account of the mounts of one namespace."""
    names: dict[MountClass, dict[str, None]] = {}
    count: dict[MountClass, int] = {}
    dead_count: dict[MountClass, int] = {}
    unexplained: list[Account] = []
    dead: list[Account] = []
    for one in mounts:
        count[one.kind] = count.get(one.kind, 0) + 1
        dead_count[one.kind] = dead_count.get(one.kind, 0) + one.is_dead
        known = names.setdefault(one.kind, {})
        if one.whose and len(known) < MAX_NAMED:
            known[one.whose] = None
        if one.kind in UNEXPLAINED:
            unexplained.append(one)
        if one.is_dead and one.is_of_volume and one.kind in OF_PODS:
            dead.append(one)
    sums = {kind: Sum(n, dead_count[kind], tuple(names[kind])) for kind, n in count.items()}
    return Accounts(sums, tuple(unexplained), tuple(dead))
