"""The mount operations that a replacement asks of a kernel, as few as it needs.

``act.replace_mount`` is written against the protocol ``MountKernel``, so that one contract suite
runs it on this kernel (``running_kernel``) and on a stateful fake, and so that faults can be
put between any two calls.  Every mount is named by a descriptor; a path is used once, to get
that descriptor, and never follows a symbolic link.  An attempt ends early by ``Stop``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Protocol

from fusewatchd.linux import syscalls
from fusewatchd.model.actions import NamespaceRef, OutcomeStatus, Propagation
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount, UserNamespaceRef
from fusewatchd.model.verdicts import Reason


class Way(Enum):
    """How a mount is replaced; the newest one that works here, tried once at start."""

    BENEATH = "beneath"
    """6.5 and newer: attach below the old top, then detach the old top."""
    ON_TOP = "on-top"
    """5.12 to 6.4: attach on top of the old mount, made private first."""
    STAGED = "staged"
    """5.2 to 5.11: as ON_TOP, with the flags set on a staging mount (no mount_setattr)."""


class FileKind(Enum):
    """What a descriptor refers to, as far as a bind mount cares."""

    DIRECTORY = "directory"
    FILE = "file"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a clone must carry before anybody can see it."""

    options: str
    """Per-mount options as mountinfo prints them."""
    propagation: Propagation
    idmap: UserNamespaceRef | None = None
    """The user namespace that is the mount's id mapping; None: not idmapped."""
    is_tree: bool = True
    """False: the clone has nothing mounted inside, which saves a call."""


LEAVES_GROUP = {
    Propagation.OWN_GROUP: syscalls.MS_PRIVATE,
    Propagation.PRIVATE: syscalls.MS_PRIVATE,
    Propagation.SLAVE: syscalls.MS_SLAVE,
    Propagation.RECEIVER: syscalls.MS_SLAVE,
}
"""How a copy gets out of the group that its origin is in; a peer stays."""

IS_SHARED = frozenset({Propagation.OWN_GROUP, Propagation.RECEIVER})
"""What is in a peer group of its own after that."""


class MountKernel(Protocol):
    """What a replacement asks of a kernel.  Every method raises ``OSError``."""

    way: Way

    def now(self) -> float:
        """Tell the time, clock_gettime(2) CLOCK_MONOTONIC."""

    def enter(self, namespace: NamespaceRef | None) -> None:
        """Go to a mount namespace, or home to the host's with None; ESRCH when it is gone.

        Until ``leave`` the same one is held: its process is looked at once, and not again when
        it is entered a second time.
        """

    def leave(self) -> None:
        """Go home, and hold no namespace any longer."""

    def open_mount(self, path: str, *, may_ask: bool = True) -> int:
        """Open the root of the topmost mount at an absolute path without symlinks.

        Unless it ``may_ask``, no file system is asked for the way: ``WouldAsk`` where one would
        have to be, as far as the kernel can tell that (openat2(2) RESOLVE_CACHED, Linux 5.12).
        """

    def open_below(self, fd: int, relative: str) -> int:
        """Open something below ``fd`` inside the same mount, following no link."""

    def close(self, fd: int) -> None:
        """Give a descriptor back."""

    def mount_of(self, fd: int) -> Mount:
        """Describe the mount that ``fd`` is on, as it is now, in this namespace."""

    def ids_of(self, fd: int) -> tuple[int, int]:
        """Return mount id and unique id (0 where there is none) of a mount, attached or not."""

    def mount_by_id(self, mount_id: int, unique_id: int) -> Mount:
        """Describe a mount of this namespace; ENOENT when it is gone."""

    def covered_by(self, mount: Mount) -> tuple[Mount, ...]:
        """List the mounts at its path that ``mount`` covers, the uppermost first."""

    def tree_of(self, mount: Mount, known: Iterable[Mount] = ()) -> MountTable:
        """List ``mount`` and all that is attached to it, at any depth; there may be more in it.

        From one look.  Nothing at all is in it where nothing is attached, as for most mounts.
        Those that are ``known`` need not be described again.
        """

    def kind_of(self, fd: int) -> FileKind:
        """Tell the file type without asking a FUSE server."""

    def idmap_of(self, mount: Mount) -> tuple[str, str] | None:
        """Return uid and gid mapping as text, None where this kernel does not tell."""

    def idmap_of_users(self, users: UserNamespaceRef) -> tuple[str, str]:
        """Return the mappings of a user namespace as text; ESRCH when it is gone."""

    def problem_of_place(self, path: str, uid: int) -> str:
        """Say why others than root and ``uid`` can mount at a path; empty: they cannot."""

    def copy(self, path: str, below: str, *, recursive: bool) -> int:
        """Return a detached copy of the topmost mount at ``path``, rooted at ``below`` in it.

        Nothing of the original is held afterwards.  Until ``configure`` the copy is in the
        original's peer group and has its flags.  ``below`` is resolved as ``open_below`` does;
        ``recursive`` takes the mounts inside along.
        """

    def copy_of(self, fd: int) -> int:
        """Return a detached copy of the attached mount of ``fd``, as ``copy`` does."""

    def make_dead(self, like: Mount, *, is_directory: bool) -> int:
        """Return a detached mount of a new FUSE file system that has no server.

        It calls itself as ``like`` does, and is that file system's only mount.
        """

    def configure(self, copy: int, attributes: Attributes) -> int:
        """Return a descriptor of the detached ``copy`` as ``attributes`` say.

        It may be the same mount or a copy of it; the descriptor passed stays the caller's.
        """

    def device_of(self, fd: int) -> Device:
        """Return the device of what ``fd`` is on, attached or detached."""

    def assemble(self, clone: int, children: Sequence[tuple[int, int]]) -> int:
        """Mount each (clone, place inside the tree of ``clone``); return the detached whole.

        The result is a new descriptor; all descriptors passed stay the caller's.
        """

    def attach(self, clone: int, target: int) -> None:
        """Attach a clone on top of ``target``."""

    def attach_beneath(self, clone: int, target: int) -> None:
        """Attach a clone between the mount of ``target`` and what is below it."""

    def make_private(self, fd: int) -> None:
        """Take the mount of ``fd`` out of its peer group."""

    def detach(self, fd: int) -> None:
        """Detach the topmost mount where ``fd`` is (umount2(2) MNT_DETACH)."""


_ATTRIBUTE_BITS = {
    "ro": syscalls.MOUNT_ATTR_RDONLY,
    "nosuid": syscalls.MOUNT_ATTR_NOSUID,
    "nodev": syscalls.MOUNT_ATTR_NODEV,
    "noexec": syscalls.MOUNT_ATTR_NOEXEC,
    "nodiratime": syscalls.MOUNT_ATTR_NODIRATIME,
    "nosymfollow": syscalls.MOUNT_ATTR_NOSYMFOLLOW,
}
SETTABLE = syscalls.MOUNT_ATTR_ATIME
"""Every bit that ``attribute_bits`` may return."""
for _bit in _ATTRIBUTE_BITS.values():
    SETTABLE |= _bit


@lru_cache  # a node has few combinations
def attribute_bits(options: str) -> int:
    """Translate mountinfo's per-mount options to ``MOUNT_ATTR_*`` bits.

    No atime word at all means strictatime: mountinfo prints nothing for it.
    """
    words = options.split(",")
    bits = 0
    for word in words:
        bits |= _ATTRIBUTE_BITS.get(word, 0)
    if "noatime" in words:
        return bits | syscalls.MOUNT_ATTR_NOATIME
    return bits if "relatime" in words else bits | syscalls.MOUNT_ATTR_STRICTATIME


class Stop(Exception):
    """An attempt ends here; nothing further is done to the target."""

    def __init__(
        self, status: OutcomeStatus, reason: Reason, detail: str, found: Mount | None = None
    ) -> None:
        """Keep what the outcome will say."""
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.found = found


class WouldAsk(Exception):
    """Nothing was done: a file system would have to be asked, and it may not answer."""


def refuse(reason: Reason, detail: str) -> Stop:
    """Return the end of an attempt that a rule forbids."""
    return Stop(OutcomeStatus.REFUSED, reason, detail)


def skip(reason: Reason, detail: str, found: Mount | None = None) -> Stop:
    """Return the end of an attempt whose world has changed; ``found`` stands at the target."""
    return Stop(OutcomeStatus.SKIPPED, reason, detail, found)


def fail(reason: Reason, detail: str) -> Stop:
    """Return the end of an attempt that did not get where it wanted."""
    return Stop(OutcomeStatus.FAILED, reason, detail)
