"""The loop rests after it did too much, and workers do not wait for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from fusewatchd.daemon.throttle import LOOP_RATE, Throttle


class Pipe:
    """A worker that has something to say until it was listened to."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self.heard = 0

    def fileno(self) -> int:
        return self._read

    def say(self) -> None:
        os.write(self._write, b"x")

    def listen(self) -> None:
        os.read(self._read, 1)
        self.heard += 1

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@pytest.fixture
def worker() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def after(seconds: float, worker: Pipe, serve: Callable[[], None]) -> Throttle:
    """A loop that has used so many seconds on a processor, just now."""
    used = [0.0]
    throttle = Throttle(lambda: [worker], serve, lambda: used[0])
    used[0] = seconds
    return throttle


def test_what_a_crash_takes_needs_no_rest(worker: Pipe) -> None:
    worker.say()
    after(LOOP_RATE.burst - 0.5, worker, worker.listen).rest()
    assert worker.heard == 0  # it did not rest, and so looked at nobody


def test_workers_are_served_while_the_loop_rests(worker: Pipe) -> None:
    throttle = after(LOOP_RATE.burst + 0.05 * LOOP_RATE.per_second, worker, worker.listen)
    for _ in range(2):
        worker.say()
    began = time.monotonic()
    throttle.rest()
    assert worker.heard == 2
    assert time.monotonic() - began >= 0.04


def test_a_worker_that_is_never_quiet_does_not_keep_the_loop_from_its_work(worker: Pipe) -> None:
    calls: list[None] = []
    worker.say()
    after(LOOP_RATE.burst + 0.02 * LOOP_RATE.per_second, worker, lambda: calls.append(None)).rest()
    assert calls


def test_what_was_counted_is_not_counted_again(worker: Pipe) -> None:
    throttle = after(LOOP_RATE.burst - 0.5, worker, worker.listen)
    worker.say()
    for _ in range(3):
        throttle.rest()
    assert worker.heard == 0
