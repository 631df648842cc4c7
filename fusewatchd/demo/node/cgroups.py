"""Cgroups of demo containers: what makes the kernel say which pod a process belongs to.

Below the cgroup2 root every world has one cgroup of its own, named after the process that
made it, and in there the kubelet's layout ``kubepods/besteffort/pod<uid>/<container>``.
Nothing is limited or moved by them; cgroups(7).

Where cgroupfs may not be written, a tmpfs that stands in for it is mounted over it, with the
same directories and their ``cgroup.procs``: whoever asks whose they are finds them root's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from typing import Final

from fusewatchd.linux import syscalls

_PREFIX: Final = "fusewatchd-demo."
_STAND_IN: Final = ".stands-in"
_GONE: Final = (errno.ENOENT, errno.ENODEV)


def new_name() -> str:
    """Return a name no other world has; the pid in it tells when it is a leftover."""
    return f"{_own_prefix()}{os.getpid()}.{secrets.token_hex(4)}"


def _own_prefix() -> str:
    """Name the pid namespace too: a pid says nothing about the makers in another one."""
    return f"{_PREFIX}{os.stat('/proc/self/ns/pid').st_ino}."


def hierarchy() -> str | None:
    """Return where cgroup2 is mounted writable (alone or beside v1), or None."""
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            before, _, after = line.partition(b" - ")
            if after.startswith(b"cgroup2 "):
                path = os.fsdecode(before.split(b" ")[4])
                if os.access(path, os.W_OK) and not is_stand_in(path):
                    return path
    return None


def is_stand_in(path: str) -> bool:
    """Return True for a directory of the tmpfs that stands in for cgroupfs."""
    return os.path.exists(os.path.join(path, _STAND_IN))


def create_stand_in(path: str, pid: int) -> str:
    """Make the directory of a cgroup with one process in a tmpfs over cgroup2; return it.

    Returns nothing where no cgroup2 is mounted: then nobody can tell whose the process is.
    """
    with open("/proc/self/mountinfo", "rb") as file:
        found = [line.split(b" ")[4] for line in file if b" - cgroup2 " in line]
    if not found:
        return ""
    root = os.fsdecode(found[0])
    if not is_stand_in(root):
        syscalls.mount("cgroup", root, "tmpfs", 0, "mode=755")
        with open(os.path.join(root, _STAND_IN), "wb"):
            pass
    os.makedirs(root + path, exist_ok=True)
    with open(f"{root}{path}/cgroup.procs", "w", encoding="ascii") as processes:
        processes.write(f"{pid}\n")
    return root + path


def remove_stand_in(directory: str) -> None:
    """Remove what ``create_stand_in`` made of one cgroup, and its pod's with the last one."""
    with contextlib.suppress(OSError):
        os.unlink(f"{directory}/cgroup.procs")
        os.rmdir(directory)
        os.rmdir(os.path.dirname(directory))


def give_away(directory: str, user: int) -> None:
    """Make a container's cgroup its user's, as runtimes do for user namespaces."""
    for name in ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
        os.chown(os.path.join(directory, name), user, user)


def pod_cgroup(world_cgroup: str, pod_uid: str, container_id: str) -> str:
    """Return the path of a container's cgroup as ``/proc/<pid>/cgroup`` shows it."""
    return f"/{world_cgroup}/kubepods/besteffort/pod{pod_uid}/{container_id}"


def create(path: str) -> str | None:
    """Make a cgroup with its parents; returns its directory, None where that is not allowed."""
    root = hierarchy()
    if root is None:
        return None
    try:
        os.makedirs(root + path, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return None
        raise
    return root + path


def remove_tree(name: str, grace_seconds: float = 2.0) -> None:
    """Remove a world's cgroup once its processes are gone; gives up silently after the grace.

    A cgroup with a process in it cannot be removed (EBUSY), so nothing alive is ever hit.
    """
    root = hierarchy()
    if root is None:
        return
    top = os.path.join(root, name)
    end = time.monotonic() + grace_seconds
    while os.path.isdir(top):
        for directory, _, _ in os.walk(top, topdown=False):
            remove(directory)
        if time.monotonic() > end:
            return
        time.sleep(0.005)


def remove(directory: str) -> bool:
    """Remove one cgroup; returns False while it is in use."""
    try:
        os.rmdir(directory)
    except OSError as error:
        if error.errno not in (*_GONE, errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return error.errno in _GONE
    return True


def remove_leftovers() -> None:
    """Remove the empty cgroups of worlds whose maker was killed before it could do so."""
    root = hierarchy()
    if root is None:
        return
    prefix = _own_prefix()
    for name in os.listdir(root):
        maker = name.removeprefix(prefix).partition(".")[0]
        if name.startswith(prefix) and not os.path.exists(f"/proc/{maker}"):
            remove_tree(name, grace_seconds=0.0)
