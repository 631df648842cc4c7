"""What the daemon goes on without, and why it has to.

None of it is needed to see a mount, and but for the last one none to replace one: without it
changes are noticed later, by looking.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Degraded(Enum):
    """What is not to be had (label ``what``)."""

    INOTIFY = "inotify"
    """An inotify instance for the pods' directories."""
    INOTIFY_WATCHES = "inotify_watches"
    """Watches for all of these directories."""
    SOCKET_INOTIFY = "socket_inotify"
    """An inotify instance for the directories of ``sockets``."""
    SOCKETS = "sockets"
    """A connection to every socket of ``sockets``."""
    FANOTIFY = "fanotify"
    """Notices of single mounts, where the kernel has them."""
    PIDFD = "pidfd"
    """A descriptor for every process that serves a mount."""
    MOUNT_NAMESPACE = "mount_namespace"
    """A mount namespace for a worker."""


INSTEAD: Mapping[Degraded, str] = {
    Degraded.INOTIFY: "new pods are noticed by their mounts, and every look_seconds",
    Degraded.INOTIFY_WATCHES: "these pods are noticed by their mounts, and every look_seconds",
    Degraded.SOCKET_INOTIFY: "new sockets are looked for every 10 seconds",
    Degraded.SOCKETS: "the end of these servers is noticed by asking, every probe.interval_seconds",
    Degraded.FANOTIFY: "the whole mount table is read after each change, until fusewatchd"
    " is started again",
    Degraded.PIDFD: "the end of these servers is noticed by asking, every probe.interval_seconds",
    Degraded.MOUNT_NAMESPACE: "nothing is replaced until one is to be had: the kernel counts a new"
    " mount as a namespace until it is attached",
}
"""What happens instead."""


@dataclass(frozen=True, slots=True)
class Degradation:
    """One thing that the daemon goes on without."""

    what: Degraded
    why: str
    """With the name of the limit that was met."""
