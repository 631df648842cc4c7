"""The processes of a server, by pidfds, pidfd_open(2)."""

from __future__ import annotations

import os
import re
import select
from collections.abc import Iterable, Sequence

from fusewatchd.keeper.records import Server
from fusewatchd.linux.procfs import process_start_time

_PID = re.compile(rb"^Pid:\s*(\d+)", re.M)


def servers_of(descriptors: Sequence[int]) -> dict[int, Server]:
    """Return copies of these pidfds, with their processes; those that have ended are left out.

    None at all where one is no pidfd.
    """
    found: dict[int, Server] = {}
    for fd in descriptors:
        pid = _process_of(fd)
        if pid is None:
            close_all(found)
            return {}
        start_time = process_start_time(pid) if pid else None
        if start_time is not None and not has_ended(fd):
            found[os.dup(fd)] = Server(pid, start_time)
    return found


def found_again(servers: Iterable[Server]) -> dict[int, Server]:
    """Return pidfds of those processes that still run."""
    found: dict[int, Server] = {}
    for server in servers:
        try:
            fd = os.pidfd_open(server.pid)
        except OSError:
            continue
        if process_start_time(server.pid) == server.start_time:
            found[fd] = server
        else:
            os.close(fd)
    return found


def has_ended(fd: int) -> bool:
    """Return True when the process of a pidfd has ended, with all its threads."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def close_all(descriptors: Iterable[int]) -> None:
    """Close these."""
    for fd in descriptors:
        os.close(fd)


def _process_of(fd: int) -> int | None:
    """Return the pid, 0 for one that has ended, None for what is no pidfd."""
    with open(f"/proc/self/fdinfo/{fd}", "rb", 0) as file:
        text = file.read()
    found = _PID.search(text)
    if found is None:
        return 0 if b"\nPid:" in text else None
    return int(found[1])
