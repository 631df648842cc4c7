"""Mounts and mount namespaces, as the kernel tells of them.

Everything in this folder is frozen and compares by value.  Paths are ``str`` decoded with
``surrogateescape``, so that any byte sequence the kernel shows survives a round trip.
Times are seconds of the monotonic clock, passed in by whoever has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

DELETED = "//deleted"
"""What the kernel appends to the root of a bind whose directory was removed."""


@lru_cache(maxsize=256)
def _user_id_in(super_options: str) -> int:
    words = (word.partition("=") for word in super_options.split(","))
    text = next((value for name, _, value in words if name == "user_id"), "0")
    return int(text) if text.isascii() and text.isdigit() else -1


class Device(NamedTuple):
    """A superblock's device number; for plain FUSE the minor is the connection number."""

    # A tuple, since the hash of one is no call of Python: each cycle looks up many thousands.

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"

    @property
    def connection(self) -> int:
        """Number of its FUSE connection, as in fusectl: the device number as the kernel has it."""
        return self.major << 20 | self.minor

    @classmethod
    def of_connection(cls, number: int) -> Device:
        """Return the device of a FUSE connection."""
        return cls(number >> 20, number & 0xFFFFF)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of ``/proc/<pid>/mountinfo``, named as in proc_pid_mountinfo(5)."""

    mount_id: int
    parent_id: int
    device: Device
    root: str
    mount_point: str
    options: str
    """Per-mount options, comma separated, as the kernel prints them."""
    peer_group: int
    """``shared:N``, 0 when the mount is not shared."""
    master: int
    """``master:N``, 0 when the mount is no slave."""
    fs_type: str
    source: str
    super_options: str
    unique_id: int = 0
    """64-bit id that is never reused (statx(2) ``STATX_MNT_ID_UNIQUE``), 0 where unknown."""

    @property
    def is_fuse(self) -> bool:
        """True for every file system served over ``/dev/fuse``, ``fuseblk`` included."""
        return self.fs_type.startswith("fuse") and self.fs_type != "fusectl"

    @property
    def subtype(self) -> str:
        """What the server calls its file system, ``sshfs``; ``fuse`` where it has no name."""
        return self.fs_type.partition(".")[2] or self.fs_type

    @property
    def user_id(self) -> int:
        """Whose FUSE server it is, mount.fuse3(8); 0 for root's, and for what is no FUSE.

        -1 for what is no number: nobody's.
        """
        return _user_id_in(self.super_options)

    @property
    def is_read_only(self) -> bool:
        """True when this mount (not the superblock) refuses writes."""
        return "ro" in self.options.split(",")

    @property
    def is_idmapped(self) -> bool:
        """True when the mount carries an id mapping (mount_setattr(2) ``MOUNT_ATTR_IDMAP``)."""
        return "idmapped" in self.options.split(",")

    @property
    def is_of_removed(self) -> bool:
        """True when the directory or file that it shows was removed from its file system."""
        return self.root.endswith(DELETED)

    def has_id(self, mount_id: int, unique_id: int) -> bool:
        """Return True when these are the ids of this mount.

        The ids of mountinfo are used again at once: where both sides have the one that never
        is, that one alone counts.
        """
        if unique_id and self.unique_id:
            return unique_id == self.unique_id
        return mount_id == self.mount_id


class NamespaceKind(Enum):
    """Why a mount namespace is entered or only counted."""

    CONTAINER = "container"
    """Belongs to a pod: its cgroup proves it, and no newer list of the kubelet denies it."""
    FOREIGN = "foreign"
    """A system service, a node agent outside pods, anything else: never entered."""


def is_of_another_user(old: Mount, new: Mount) -> bool:
    """Return True for a server that is neither root's nor of the user whose the old one was."""
    return new.user_id not in (old.user_id, 0)


@dataclass(frozen=True, slots=True)
class UserNamespaceRef:
    """A user namespace, by a process in it; its start time guards against a reused pid."""

    inode: int
    pid: int
    start_time: int


@dataclass(frozen=True, slots=True)
class MountNamespace:
    """A mount namespace other than the host's that holds FUSE mounts."""

    inode: int
    """Inode of ``/proc/<pid>/ns/mnt``."""
    pid: int
    """A process inside; 0 when only a descriptor or bind keeps the namespace."""
    start_time: int
    kind: NamespaceKind
    pod_uid: str
    container_id: str
    mounts: tuple[Mount, ...]
    """The FUSE mounts and ``directories``, what they stand on and what is mounted inside."""
    own_user_namespace: bool = False
    """Its processes live in another user namespace than the daemon."""
    is_own: bool = True
    """The container's own: that of its oldest process, and none that one of them made."""
    container_name: str = ""
    """As the kubelet's list has it; empty while no list has the container."""
    users: UserNamespaceRef | None = None
    """That of the container's oldest process, where it is not the daemon's."""
    is_agent: bool = False
    """Root's own, or a container with CAP_SYS_ADMIN: it has the bounds of the host."""
    directories: tuple[int, ...] = ()
    """Ids of mounts that show a directory in which the kubelet mounts a volume."""


class TargetKey(NamedTuple):
    """Names a bind across cycles; ``namespace`` is 0 on the host, else its inode."""

    namespace: int
    mount_point: str

    @property
    def is_host(self) -> bool:
        """True for a bind in the host's own mount table."""
        return self.namespace == 0
