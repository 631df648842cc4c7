"""Going to the mount namespace in which the kubelet works."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from fusewatchd.errors import NamespaceError
from fusewatchd.linux import procfs, syscalls
from fusewatchd.linux.procfs import open_process
from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.observe.kubelet.place import (
    FIRST_PID,
    HERE,
    Place,
    find_place,
    is_hidden_from_first,
)
from fusewatchd.observe.kubelet.processes import HostProcesses
from fusewatchd.serve.listeners import FIRST_FD


def take_place(configured: str) -> Place:
    """Go to the kubelet's mount namespace if the caller is in the one of the first process.

    To be called while the process has one thread.  Returns where it is then: ``HERE``, or a place
    with a problem.  Who may not look at the first process can enter nothing, and stays.

    Args:
        configured: ``kubelet.root``.

    Raises:
        OSError: /proc cannot be read, or a namespace not be entered.
    """
    with suppress(PermissionError):
        return _take_place(configured)
    return HERE


def _take_place(configured: str) -> Place:
    if not is_in_first_namespace():
        return HERE
    place = find_place(configured)
    if not place.pid:
        return place
    return HERE if _enter(place) else Place(problem="the kubelet's mount namespace has just ended")


def is_in_first_namespace() -> bool:
    """Return True in the namespace of the host's first process.

    Raises:
        OSError: that cannot be found out.
    """
    own, first = (procfs.ns_inode(pid, "mnt") for pid in (os.getpid(), FIRST_PID))
    return own == first


def require_right_namespace(configured: str) -> None:
    """Make sure that what is mounted here is what the kubelet sees.

    Raises:
        NamespaceError: this process has a mount namespace of its own, and the kubelet has not.
        OSError: that cannot be found out.
    """
    if not is_in_first_namespace() and not is_hidden_from_first(configured):
        raise NamespaceError(
            "this process has a mount namespace of its own: no pod would see what it mounts."
            " Start it on the host, by a unit without ProtectSystem=, PrivateTmp= and the like"
        )


def _enter(place: Place) -> bool:
    """Enter the namespace, if the process that was found is still in it and still root's own."""
    with (
        suppress(ProcessLookupError),
        open_process(place.pid) as process,
        closing_fd(process.open_namespace("mnt", place.namespace)) as fd,
    ):
        if HostProcesses().is_one(process):
            syscalls.setns(fd, syscalls.CLONE_NEWNS)
            os.chdir("/")
            return True
    return False


def begin_again(sockets: Sequence[socket.socket]) -> NoReturn:
    """Start this program anew in its own process, which has closed everything but ``sockets``.

    Only a process with one thread can enter a mount namespace.
    """
    for fd, listener in enumerate(sockets, FIRST_FD):
        os.dup2(listener.fileno(), fd, inheritable=True)
    if sockets:
        os.environ |= {"LISTEN_FDS": str(len(sockets)), "LISTEN_PID": str(os.getpid())}
    os.execv(sys.executable, sys.orig_argv)
