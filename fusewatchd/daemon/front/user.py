"""Whom the front becomes: a user of its own, nobody, or who the daemon is."""

from __future__ import annotations

import pwd
from dataclasses import dataclass

from fusewatchd.workers.fork_server import Credentials

USER = "fusewatchd"
NOBODY = 65534
"""Of the kernel itself, /proc/sys/kernel/overflowuid; no file should belong to it."""


@dataclass(frozen=True, slots=True)
class FrontUser:
    """A user, and what is to be said of the choice."""

    credentials: Credentials | None
    """None: the user of the daemon, without its capabilities."""
    remark: str = ""
    """Empty: it is the one that it should be."""


def front_user() -> FrontUser:
    """Return the user ``fusewatchd``, or what there is in the place of it."""
    try:
        found = pwd.getpwnam(USER)
    except KeyError:
        found = None
    if found is not None and found.pw_uid and _can_be(found.pw_uid, found.pw_gid):
        return FrontUser(Credentials(found.pw_uid, found.pw_gid))
    if _can_be(NOBODY, NOBODY):
        remark = f"there is no system user {USER}: uid {NOBODY} talks with others in its place"
        return FrontUser(Credentials(NOBODY, NOBODY), remark)
    # In a user namespace that has one user, as that of an ordinary user's demo.
    return FrontUser(None, "there is no other user here: the daemon's own talks with others")


def _can_be(uid: int, gid: int) -> bool:
    return _is_mapped("/proc/self/uid_map", uid) and _is_mapped("/proc/self/gid_map", gid)


def _is_mapped(path: str, number: int) -> bool:
    """Return whether this user namespace has such an id, user_namespaces(7)."""
    with open(path, encoding="ascii") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    return any(first <= number < first + count for first, _, count in ranges)
