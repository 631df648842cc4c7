"""The system calls of a recovery alone, in plain loops: what nothing in Python can be faster than.

Nothing is planned, compared or decided here.  ``looks`` adds the calls with which every
replacement looks before it acts and reads back what it did; without them one would take away a
mount that somebody else made in between.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from fusewatchd.linux import statmount, syscalls
from fusewatchd.linux.syscalls import closing_fd

_RESOLVE = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
_ALL = statmount.EVERYTHING


def replace_by_hand(
    source: str, targets: Sequence[str], pids: Sequence[int], *, looks: bool
) -> float:
    """Put the new source in the place of every dead bind, and return the seconds that it took.

    The calls of the way ``beneath``; a container's mount is at ``/data``.
    """
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    spaces = [os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC) for pid in pids]
    replace = _replace_with_looks if looks else _replace
    began = time.monotonic()
    for target in targets:
        replace(source, target, home, home)
    for space in spaces:
        replace(source, "/data", home, space)
    took = time.monotonic() - began
    for fd in (home, *spaces):
        os.close(fd)
    return took


def _replace(source: str, target: str, home: int, space: int) -> None:
    clone = syscalls.open_tree(-100, source, syscalls.OPEN_TREE_CLONE)
    syscalls.mount_setattr(clone, propagation=syscalls.MS_PRIVATE)
    if space != home:
        syscalls.setns(space, syscalls.CLONE_NEWNS)
    with closing_fd(clone), closing_fd(os.open(target, os.O_PATH)) as old:
        syscalls.move_mount(clone, old, syscalls.MOVE_MOUNT_BENEATH)
    syscalls.umount2(target, syscalls.MNT_DETACH)
    if space != home:
        syscalls.setns(home, syscalls.CLONE_NEWNS)


def _replace_with_looks(source: str, target: str, home: int, space: int) -> None:
    _enter(space)
    with closing_fd(_open(target)) as fd:
        mount_id = _describe(fd)
        _look_below(mount_id)
        statmount.listmount(mount_id)
        syscalls.statx(fd, syscalls.STATX_TYPE)
    _enter(home)
    directory, _, name = source.rpartition("/")
    with closing_fd(_open(directory)) as above:
        clone = syscalls.open_tree(above, name, syscalls.OPEN_TREE_CLONE)
        # As the source is looked at, which its id names: what is detached cannot be described.
        _describe(above)
    syscalls.statx(clone, 0)
    syscalls.statx(clone, syscalls.STATX_TYPE)
    syscalls.mount_setattr(
        clone, attr_clr=syscalls.MOUNT_ATTR_RDONLY, propagation=syscalls.MS_PRIVATE
    )
    if space == home:
        syscalls.mount_setattr(clone, propagation=syscalls.MS_SHARED)
    _enter(space)
    with closing_fd(clone), closing_fd(_open(target)) as old:
        mount_id = _describe(old)
        statmount.listmount(mount_id)
        syscalls.move_mount(clone, old, syscalls.MOVE_MOUNT_BENEATH)
        _describe(clone)
        statmount.listmount(mount_id)
        syscalls.umount2(target, syscalls.MNT_DETACH)
    with closing_fd(_open(target)) as fd:
        _look_below(_describe(fd))
    _enter(home)


def _enter(space: int) -> None:
    syscalls.setns(space, syscalls.CLONE_NEWNS)


def _open(path: str) -> int:
    return syscalls.openat2(-100, path, os.O_PATH, _RESOLVE)


def _describe(fd: int) -> int:
    unique_id = statmount.mount_unique_id(fd) or 0
    statmount.ask(unique_id, _ALL)
    return unique_id


def _look_below(mount_id: int) -> None:
    statmount.ask(statmount.parent_unique_id(mount_id), _ALL)
