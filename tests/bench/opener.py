"""One process that tries to open a file in many containers, one after the other.

It stays in one container until the file opens there and only then goes to the next, so that it
costs the machine the same however many containers wait: what is measured is the recovery and not
the waiting.  The last moment is that at which the file opens everywhere.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence

from fusewatchd.linux import syscalls

REST_SECONDS = 0.0002


class Opener:
    """Started before the crash; enters each container and stays until its file opens."""

    def __init__(self, pids: Sequence[int], path: str, seconds: float) -> None:
        """Fork the opener; it begins when ``go`` is called."""
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        gate, self._gate = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                os.close(self._gate)
                found = _open_all(pids, path, seconds, gate)
                os.write(writer, json.dumps(found).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        os.close(gate)

    def go(self) -> None:
        """Let it begin."""
        os.close(self._gate)

    def moments(self) -> list[float]:
        """Wait for its end; return when it saw each container's file open, CLOCK_MONOTONIC."""
        with open(self._reader, "rb") as pipe:
            data = pipe.read()
        os.waitpid(self._pid, 0)
        if not data:
            raise RuntimeError("the opener failed")
        found: list[float] = json.loads(data)
        return found


def _open_all(pids: Sequence[int], path: str, seconds: float, gate: int) -> list[float]:
    spaces = [os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC) for pid in pids]
    moments = [float("inf")] * len(pids)
    os.read(gate, 1)
    end = time.monotonic() + seconds
    for number, space in enumerate(spaces):
        syscalls.setns(space, syscalls.CLONE_NEWNS)
        while not _opens(path):
            if time.monotonic() > end:
                return moments
            time.sleep(REST_SECONDS)
        moments[number] = time.monotonic()
    return moments


def _opens(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
