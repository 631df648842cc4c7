"""Leaving a process the rights of its kind, for good; ``privileges`` says which those are."""

from __future__ import annotations

import resource
from contextlib import suppress

from fusewatchd.linux import seccomp
from fusewatchd.linux.capabilities import keep_only
from fusewatchd.workers.privileges import Privileges


def filter_of(privileges: Privileges) -> bytes | None:
    """Return the filter of system calls of a kind; None where the kernel has no filters."""
    return None if seccomp.problem() else seccomp.compiled(privileges.denied())


def confine(privileges: Privileges, program: bytes | None) -> None:
    """Give up what this kind of process does not need; ``program`` comes from ``filter_of``.

    To be called while the process has one thread: another one would keep what it has.

    Raises:
        OSError: the kernel refuses.
    """
    keep_only(privileges.keeps)
    set_oom_score(privileges.oom_score_adj)
    _limit_memory(privileges.address_space)
    if program is not None:
        seccomp.install(program)


def _limit_memory(address_space: int | None) -> None:
    if address_space is not None:
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        least = address_space if most == resource.RLIM_INFINITY else min(most, address_space)
        resource.setrlimit(resource.RLIMIT_AS, (least, least))


def set_oom_score(score: int | None) -> None:
    """Say how soon this process is killed for want of memory; nobody may ask for less."""
    if score is not None:
        with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(score))
