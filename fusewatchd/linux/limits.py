"""Limits of the kernel that a node can run into, by the names that sysctl(8) knows.

Those of ``user.*`` count for each user and user namespace, user_namespaces(7); what is in ``fs.*``
is the same value for root's processes on the host.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum


class Limit(Enum):
    """One limit; the value is every name of it."""

    INOTIFY_INSTANCES = ("fs.inotify.max_user_instances", "user.max_inotify_instances")
    INOTIFY_WATCHES = ("fs.inotify.max_user_watches", "user.max_inotify_watches")
    FANOTIFY_GROUPS = ("fs.fanotify.max_user_groups", "user.max_fanotify_groups")
    FANOTIFY_MARKS = ("fs.fanotify.max_user_marks", "user.max_fanotify_marks")
    MOUNT_NAMESPACES = ("user.max_mnt_namespaces",)

    def describe(self) -> str:
        """Name the limit, with its present value."""
        values = {name: value for name in self.value if (value := _read(name)) is not None}
        if len(set(values.values())) == 1:
            return f"{' or '.join(values)} ({next(iter(values.values()))})"
        return " or ".join(f"{name} ({value})" for name, value in values.items()) or self.value[0]


class NamespaceShortageError(OSError):
    """No mount namespace is to be had; ``strerror`` names the limit."""


@contextmanager
def counted_as_namespace() -> Iterator[None]:
    """Name the limit where there are too many mount namespaces.

    For unshare(2), and for open_tree(2) that makes a detached copy: the kernel counts that as a
    mount namespace for as long as it is attached nowhere (fs/namespace.c, alloc_mnt_ns).

    Raises:
        NamespaceShortageError: ENOSPC.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        raise NamespaceShortageError(exc.errno, why_not(exc, Limit.MOUNT_NAMESPACES)) from exc


_USED_UP = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOMEM})


def is_shortage(error: OSError) -> bool:
    """Return True when there is no more of something now, and may be later."""
    return error.errno in _USED_UP


def why_not(error: OSError, limit: Limit | None = None) -> str:
    """Say why something is not to be had, with the limit by name where it was met.

    ``limit`` None: nothing but descriptors has one.
    """
    if error.errno == errno.EMFILE and (limit is None or not _has_descriptor()):
        return "the daemon's file descriptors are used up (LimitNOFILE=)"
    if error.errno == errno.ENFILE:
        return "the node's file descriptors are used up (fs.file-max)"
    if limit is not None and error.errno in (errno.EMFILE, errno.ENOSPC):
        return f"used up: {limit.describe()}"
    return error.strerror or str(error)


def _has_descriptor() -> bool:
    try:
        os.close(os.dup(0))
    except OSError as exc:
        return exc.errno != errno.EMFILE
    return True


def _read(name: str) -> str | None:
    try:
        with open(f"/proc/sys/{name.replace('.', '/')}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None
