"""The keeper's process: ``fusewatchd keeper``.

It has no thread and no child, and no descriptor of any file system but ``/proc``.  A child that
inherits a clone, or a file of a held mount, would keep callers waiting without an answer.  All
that it needs is loaded before it holds anything, since an upgrade replaces the files under it.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Mapping

from fusewatchd.keeper.client import Client
from fusewatchd.keeper.clients import Clients, listen
from fusewatchd.keeper.events import Events
from fusewatchd.keeper.keeper import Keeper
from fusewatchd.keeper.protocol import Stop
from fusewatchd.keeper.service_manager import ServiceManager, given

STOP_SECONDS = 10.0
"""For how long ``stop`` waits."""


def run(path: Callable[[], str], environ: Mapping[str, str]) -> int:
    """Hold connections until a client says ``Stop``; return the exit status.

    Args:
        path: tells where to listen, unless systemd hands over a socket that it listens at.
        environ: with what systemd tells its services.

    Raises:
        OSError: the socket cannot be made.
    """
    sockets: list[int] = []
    stored: list[tuple[str, int]] = []
    for name, fd in given(environ, os.getpid()):
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            sockets.append(fd)
        else:
            stored.append((name, fd))
    own = "" if sockets else path()
    listener = listen(own) if own else socket.socket(fileno=sockets[0])
    events = Events()
    manager = ServiceManager(environ)
    keeper = Keeper(events, manager)
    keeper.take_back(stored)
    clients = Clients(listener, keeper, events)
    manager.ready()
    try:
        while True:
            seconds = keeper.turn()
            if keeper.is_stopping and keeper.holds_nothing:
                break
            events.wait(seconds)
    finally:
        if own:
            os.unlink(own)
    clients.say_that_it_is_done()
    return 0


def stop(path: str) -> bool:
    """Have a keeper let go of everything and end; False where none runs.

    Raises:
        OSError: it does not answer.
    """
    try:
        client = Client(path, STOP_SECONDS)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    with client:
        client.ask(Stop())
    return True
