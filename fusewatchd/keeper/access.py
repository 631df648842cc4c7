"""Whose callers wait, by their cgroups."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class Group:
    """Some cgroups, each with all that is below it."""

    def __init__(self, paths: Iterable[str]) -> None:
        """Of these paths, as in ``/proc/<pid>/cgroup``; the root of a hierarchy is none of them."""
        self._paths = frozenset(paths) - {"", "/"}
        self._longest = max(map(len, self._paths), default=0)

    def __contains__(self, path: object) -> bool:
        """Return True for one of the paths themselves."""
        return path in self._paths

    def above(self, cgroups: Iterable[str]) -> str | None:
        """Return which of the paths one of these cgroups is or lies below; None: none.

        From the top: what is below a pod's cgroup may be the pod's own, as deep as it likes.
        """
        for cgroup in cgroups:
            end = 0
            while 0 <= end < len(cgroup) and end <= self._longest:
                end = cgroup.find("/", end + 1)
                path = cgroup if end < 0 else cgroup[:end]
                if path in self._paths:
                    return path
        return None


@dataclass(frozen=True, slots=True)
class Access:
    """Of one connection; ``protocol.Hold`` says what these are."""

    pids_are_hosts: bool
    pods: Group
    deleting: Group
    servers: Group
