"""Signals of the daemon: SIGTERM and SIGINT ask it to stop, SIGHUP to read its configuration."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress

from fusewatchd.daemon.selector import Callback


class Signals:
    """What was asked for; each signal wakes the loop by a pipe, signal.set_wakeup_fd."""

    def __init__(self) -> None:
        """Catch nothing yet."""
        self.is_stopping = False
        self._wants_reload = False

    def catch(self, watch: Callable[[int, Callback], None]) -> None:
        """Handle them from now on; ``watch`` is given the descriptor that they wake by."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer)
        watch(reader, lambda: _drain(reader))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop())
        signal.signal(signal.SIGHUP, lambda *_: self._ask_reload())

    def take_reload(self) -> bool:
        """True once for all the times that a reload was asked for."""
        wanted, self._wants_reload = self._wants_reload, False
        return wanted

    def _stop(self) -> None:
        self.is_stopping = True

    def _ask_reload(self) -> None:
        self._wants_reload = True


def _drain(fd: int) -> None:
    with suppress(BlockingIOError):
        os.read(fd, 4096)
