"""What the process of the front does, from its start to its end."""

from __future__ import annotations

import os
import socket
import threading

from fusewatchd.errors import assert_never
from fusewatchd.front.asking import Daemon
from fusewatchd.front.clients import Clients
from fusewatchd.front.link import Link
from fusewatchd.front.messages import (
    Answer,
    Condition,
    Ping,
    Post,
    Refresh,
    Serve,
    Stop,
    Talk,
    ThreadFailed,
    to_front,
    to_json,
)
from fusewatchd.front.pages import Web
from fusewatchd.threads import place_of
from fusewatchd.workers.channel import Channel

MAX_BYTES = 256 << 20
"""Of one message of the daemon, which is trusted: a page of metrics is as long as it is."""


def serve_others(channel: Channel) -> None:
    """Talk with others for the daemon, until it ends or says that it is enough."""
    link = Link(socket.socket(fileno=os.dup(channel.fileno())), MAX_BYTES)
    _Process(Daemon(link)).run()


class _Process:
    """Receives what the daemon says; what takes time is done in other threads."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._web = Web(daemon)
        self._clients = Clients(daemon)
        threading.excepthook = self._tell_failure

    def run(self) -> None:
        while True:
            value, descriptors = self._daemon.link.receive_with_descriptors()
            message = to_front(value)
            match message:
                case Answer():
                    self._daemon.take(message, descriptors)
                case Serve():
                    self._web.serve(message, descriptors)
                case Stop():
                    # The daemon is still asked for keys meanwhile.
                    self._clients.stop(message.seconds, self._end)
                case Talk() | Post() | Condition() | Refresh() | Ping():
                    self._clients.take(message)
                case _:
                    assert_never(message)

    def _end(self) -> None:
        self._web.close()
        self._daemon.link.end()

    def _tell_failure(self, failed: threading.ExceptHookArgs) -> None:
        name = failed.thread.name if failed.thread is not None else "?"
        place = "?" if failed.exc_value is None else place_of(failed.exc_value)
        self._daemon.link.send(
            to_json(ThreadFailed(name[:64], f"{failed.exc_type.__name__} at {place}"))
        )
