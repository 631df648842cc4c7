"""Signals that a waiting caller has to be let go for."""

from __future__ import annotations

from enum import Enum, auto

_KILL = 1 << 8
_ENDING = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14
"""SIGHUP, SIGINT, SIGQUIT, SIGTERM as bits of a signal set: what asks a process to end."""


class Signal(Enum):
    """What a thread that waits has to be let go for."""

    NONE = auto()
    END = auto()
    """It is asked to end, and has a handler for that."""
    KILL = auto()
    """It is killed, or is gone."""


def pending(status: bytes) -> Signal:
    """Return what ``/proc/<pid>/status`` says, proc_pid_status(5).

    A signal that ends the process shows as SIGKILL in each of its threads.
    """
    sets = {b"SigPnd": 0, b"ShdPnd": 0, b"SigBlk": 0}
    for line in status.splitlines():
        name, _, value = line.partition(b":")
        if name in sets:
            sets[name] = int(value, 16)
    waiting = sets[b"SigPnd"] | sets[b"ShdPnd"]
    if waiting & _KILL:
        return Signal.KILL
    return Signal.END if waiting & _ENDING & ~sets[b"SigBlk"] else Signal.NONE
