"""Whether a mount namespace can be made, tried again while one could not.

By a worker of its own: who makes a namespace is in it.
"""

from __future__ import annotations

from collections.abc import Callable

from fusewatchd.errors import WorkerError
from fusewatchd.linux import syscalls
from fusewatchd.linux.limits import Limit, why_not
from fusewatchd.linux.private_namespace import Home
from fusewatchd.model.cycle import Trigger
from fusewatchd.model.degraded import Degraded
from fusewatchd.observe.degradations import RETRY_SECONDS, Degradations
from fusewatchd.workers.channel import Channel
from fusewatchd.workers.fork_server import Worker
from fusewatchd.workers.single_worker import SoleWorker

TRIAL_SECONDS = 5.0
"""Every mount of the node is copied."""


def serve_namespace_trials(channel: Channel) -> None:
    """Main function of the worker: say with which words it fails, none when it works."""
    home = Home()

    def attempt(_: object) -> None:
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
        except OSError as exc:
            channel.send({"why": why_not(exc, Limit.MOUNT_NAMESPACES)})
            return
        home.go()  # nobody is in the new one any more, and it holds no mount
        channel.send({"why": ""})

    channel.serve(attempt)


class NamespaceTrial:
    """The daemon's side; there is no worker before it is needed."""

    def __init__(self, spawn: Callable[[], Worker], degraded: Degradations) -> None:
        """Take the means to start a worker, and the book that says whether it is needed."""
        self._worker = SoleWorker(spawn, TRIAL_SECONDS, is_eager=False)
        self._degraded = degraded
        self._tried_at = 0.0

    def fileno(self) -> int:
        """Return what becomes readable when an attempt has ended."""
        return self._worker.fileno()

    @property
    def due_at(self) -> float | None:
        """When to take a ``turn`` although nothing wakes; None: not at all."""
        if self._worker.started_at is not None:
            return self._worker.next_deadline()
        is_needed = self._degraded.lacks(Degraded.MOUNT_NAMESPACE)
        return self._tried_at + RETRY_SECONDS if is_needed else None

    def turn(self, now: float) -> Trigger | None:
        """Take in how an attempt ended, and begin the next one when it is due."""
        is_new = False
        if self._worker.started_at is not None:
            try:
                answer = self._worker.collect(now)
            except (TimeoutError, WorkerError):
                answer = None
            if answer is not None:
                is_new = self._degraded.note(Degraded.MOUNT_NAMESPACE, answer["why"])
        due_at = self.due_at
        if self._worker.started_at is None and due_at is not None and now >= due_at:
            self._tried_at = now
            self._worker.start({}, now)
        return Trigger.TIMER if is_new else None

    def close(self) -> None:
        """End the worker."""
        self._worker.close()
