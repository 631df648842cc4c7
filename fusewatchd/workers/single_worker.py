"""One worker that has one job at a time, and is replaced when it does not come back."""

from __future__ import annotations

import select
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fusewatchd.errors import WorkerShortageError
from fusewatchd.workers.fork_server import Worker


class SoleWorker:
    """The daemon's side; never waits."""

    def __init__(
        self,
        spawn: Callable[[], Worker],
        deadline_seconds: float,
        on_replaced: Callable[[], None] = lambda: None,
        *,
        is_eager: bool = True,
        on_part: Callable[[Any], bool] = lambda _: False,
    ) -> None:
        """Take the means to start a worker.

        Args:
            spawn: starts a worker.
            deadline_seconds: a job that takes longer is given up.
            on_replaced: called when what the worker knew is lost.
            on_part: takes each message of a job; False: it was the last one, the result.
            is_eager: start the first worker at once, and each other one as soon as it can be.
        """
        self._spawn = spawn
        self._deadline = deadline_seconds
        self._on_replaced = on_replaced
        self._on_part = on_part
        self._epoll = select.epoll()
        self.started_at: float | None = None
        """When the present job was begun; None while there is none."""
        self._postponed = 0.0
        """So much later than usual the present job must have ended."""
        self._is_eager = is_eager
        self._worker: Worker | None = self._new_worker() if is_eager else None
        """None while there is nothing to make one of, or no need of one."""

    @property
    def pid(self) -> int:
        """Of the worker; 0 while there is none."""
        return self._worker.pid if self._worker is not None else 0

    def fileno(self) -> int:
        """Return what becomes readable when a job has ended; it outlives the worker."""
        return self._epoll.fileno()

    def start(self, job: Any, now: float) -> bool:
        """Begin a job while there is none; False: there is nothing to make a worker of."""
        assert self.started_at is None
        if self._worker is None:
            try:
                self._worker = self._new_worker()
            except WorkerShortageError:
                return False
        self.started_at, self._postponed = now, 0.0
        self._worker.channel.send(job)
        return True

    def next_deadline(self) -> float | None:
        """Return when ``collect`` must be called although nothing arrived."""
        if self.started_at is None:
            return None
        return self.started_at + self._deadline + self._postponed

    def postpone(self, seconds: float) -> None:
        """Give the present job so much more time: the worker could not use that."""
        self._postponed += seconds

    def collect(self, now: float) -> Any:
        """Return the result of the job when it has ended, else None.

        Raises:
            TimeoutError: it did not end; the worker is replaced, now or with the next job.
            WorkerError: it cannot be replaced.
        """
        if self._worker is None:
            return None
        try:
            messages = self._worker.channel.receive()
            has_ended = False
        except EOFError:
            messages, has_ended = [], True
        was_running, deadline = self.started_at is not None, self.next_deadline()
        for message in messages if was_running else ():
            if not self._on_part(message):
                self.started_at = None
                return message
        if has_ended or (deadline is not None and now >= deadline):
            self._replace(self._worker)
            if was_running:
                raise TimeoutError("the worker did not end its job")
        return None

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.kill()
        self._epoll.close()

    def _new_worker(self) -> Worker:
        worker = self._spawn()
        self._epoll.register(worker.channel.fileno(), select.EPOLLIN)
        return worker

    def _replace(self, worker: Worker) -> None:
        with suppress(OSError):
            self._epoll.unregister(worker.channel.fileno())
        worker.kill()
        self._on_replaced()
        self.started_at = None
        self._worker = None
        with suppress(WorkerShortageError):
            self._worker = self._new_worker() if self._is_eager else None
