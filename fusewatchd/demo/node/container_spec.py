"""What a demo container is, as values: what the runtime is told, and what a loop in it saw.

Times are seconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from enum import Enum


class MountPropagation(Enum):
    """``mountPropagation`` of a volumeMount, in the words of the Kubernetes API."""

    NONE = "None"
    HOST_TO_CONTAINER = "HostToContainer"
    BIDIRECTIONAL = "Bidirectional"


class Access(Enum):
    """``readOnly`` of a volumeMount."""

    READ_WRITE = "rw"
    READ_ONLY = "ro"


class RootKind(Enum):
    """What a process that stands beside the pods does with its root."""

    OWN_ROOT = "own root"
    """pivot_root into a file system of its own, as every container."""
    HOST_ROOT = "host root"
    """Only a mount namespace, slave of the host's: a unit with PrivateTmp= and the like."""


class CgroupKind(Enum):
    """How ``/proc/<pid>/cgroup`` came to name the pod."""

    KERNEL = "kernel"
    """A real cgroup."""
    BOUND_FILE = "bound file"
    """Cgroups are not for this user: a file is bound over that path in this namespace."""


@dataclass(frozen=True, slots=True)
class BoundVolume:
    """One mount of a container, made in the order given."""

    source: str
    mount_path: str
    propagation: MountPropagation = MountPropagation.NONE
    access: Access = Access.READ_WRITE


@dataclass(frozen=True, slots=True)
class UserNamespace:
    """Ids of a container with ``hostUsers: false``: its 0 is ``first_id`` on the host."""

    first_id: int = 100_000
    count: int = 65_536


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """What a container runtime is told."""

    stage: str
    """A mount point for bookkeeping that holds no volume and is not shared: the new root is
    mounted on a directory of it, and pivot_root(2) refuses a shared parent."""
    cgroup: str
    """As ``/proc/<pid>/cgroup`` shall show it."""
    volumes: tuple[BoundVolume, ...] = ()
    user_namespace: UserNamespace | None = None
    root: RootKind = RootKind.OWN_ROOT
    container_id: str = field(default_factory=lambda: secrets.token_hex(32))


@dataclass(frozen=True, slots=True)
class Transition:
    """A change that an open loop saw at the end of an attempt."""

    at: float
    errno: int
    """0: opened and read."""
    content: str
    """The first 256 characters of the file; empty after a failure."""


@dataclass(frozen=True, slots=True)
class OpenLoopReport:
    """What a process that opens one path all the time saw; the first transition is the start."""

    attempts: int
    transitions: tuple[Transition, ...]
    refused: int = 0
    """Opens that failed."""
    longest: float = 0.0
    """Seconds of the longest attempt."""

    def first_success_after(self, moment: float) -> float | None:
        """Return when the path first worked again after ``moment``, or None."""
        for transition in self.transitions:
            if transition.at > moment and transition.errno == 0:
                return transition.at
        return None
