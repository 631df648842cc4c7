"""Who but root can put a mount where one is: by the directories above it, and the one below it.

Each directory is looked at through a descriptor, and the next one is opened in it: what cannot be
written by others is not exchanged by them afterwards.  ``AT_STATX_DONT_SYNC``: no server is asked.
Where a directory is on a hung network file system, opening the next one may hang: for workers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection

from fusewatchd.linux import syscalls
from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model.mounts import Mount

_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_SHARED = stat.S_IWGRP | stat.S_IWOTH
"""Group bits are also what an access list allows at most, acl(5)."""


def problem_of_place(path: str, uid: int, describe: Callable[[int], Mount]) -> str:
    """Say why others than root can mount at a path; empty: nobody but root and ``uid`` can.

    The directory that the mount covers may also belong to ``uid``, as fusermount(1) wants it.

    Args:
        path: of a mount point in this namespace, as mountinfo has it.
        uid: whose mount is there, 0 for root's.
        describe: describes the mount that a descriptor is on.

    Raises:
        OSError: a directory cannot be looked at.
    """
    *above, name = path.strip("/").split("/")
    at, fd = "", os.open("/", _FLAGS)
    try:
        problem = _problem_of(fd, "/", {0}) or _problem_of_mount(fd, "/", describe)
        for part in above:
            if problem:
                return problem
            at = f"{at}/{part}"
            below = os.open(part, _FLAGS | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
            problem = _problem_of(fd, at, {0}) or _problem_of_mount(fd, at, describe)
        return problem or _problem_of_covered(fd, name, path, uid)
    finally:
        os.close(fd)


def _problem_of_covered(above: int, name: str, path: str, uid: int) -> str:
    """Look below the mount, in a copy of the directory above it without what is mounted there."""
    with (
        closing_fd(
            syscalls.open_tree(above, "", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH)
        ) as copy,
        closing_fd(os.open(name, _FLAGS, dir_fd=copy)) as covered,
    ):
        return _problem_of(covered, path, {0, uid})


def _problem_of(fd: int, at: str, owners: Collection[int]) -> str:
    owner, mode = syscalls.owner_and_mode_of(fd)
    if owner not in owners:
        return f"{at} belongs to uid {owner}"
    if mode & _SHARED:
        return f"others can write {at} (mode {stat.S_IMODE(mode):04o})"
    return ""


def _problem_of_mount(fd: int, at: str, describe: Callable[[int], Mount]) -> str:
    mount = describe(fd)
    if mount.is_fuse:
        return f"{at} is in a FUSE file system"
    return f"{at} is in an id-mapped mount" if mount.is_idmapped else ""
