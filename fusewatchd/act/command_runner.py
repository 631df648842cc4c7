"""Runs the commands of a plan side by side in workers, and never waits for one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fusewatchd.act.run_command import TERM_SECONDS, CommandWorker
from fusewatchd.errors import WorkerShortageError
from fusewatchd.model.server_actions import CommandEnd, CommandResult, RunCommand

MAX_RUNNING = 4
"""Commands at a time; the others wait for their turn."""
PATIENCE_SECONDS = TERM_SECONDS + 3.0
"""A worker that says nothing for so long after the time is over is given up."""


@dataclass(slots=True)
class _Running:
    worker: CommandWorker
    command: RunCommand
    started_at: float
    postponed: float = 0.0

    @property
    def deadline(self) -> float:
        limit = self.command.timeout_seconds + PATIENCE_SECONDS
        return self.started_at + limit + self.postponed


class CommandRunner:
    """One worker for each command, ended with it: nothing idles for what is done seldom."""

    def __init__(self, spawn: Callable[[], CommandWorker]) -> None:
        """Take the means to start a worker."""
        self._spawn = spawn
        self._waiting: deque[RunCommand] = deque()
        self._running: list[_Running] = []

    def submit(self, commands: Iterable[RunCommand], now: float) -> None:
        """Accept commands; how they end is told by ``collect`` later."""
        self._waiting.extend(commands)
        self._start(now)

    def collect(self, now: float) -> list[CommandEnd]:
        """Return what has ended, and start what waited for that."""
        ends = []
        for running in tuple(self._running):
            end = _end_of(running, now)
            if end is not None:
                running.worker.kill()
                self._running.remove(running)
                ends.append(end)
        self._start(now)
        return ends

    @property
    def workers(self) -> tuple[CommandWorker, ...]:
        """Every worker, for the selector."""
        return tuple(running.worker for running in self._running)

    def postpone(self, seconds: float) -> None:
        """Give all commands so much more time: they could not use that."""
        for running in self._running:
            running.postponed += seconds

    def next_deadline(self) -> float | None:
        """Return when ``collect`` must be called even if nothing arrives."""
        return min((running.deadline for running in self._running), default=None)

    def close(self) -> None:
        """End all commands."""
        for running in self._running:
            running.worker.kill()

    def _start(self, now: float) -> None:
        while self._waiting and len(self._running) < MAX_RUNNING:
            try:
                worker = self._spawn()
            except WorkerShortageError:
                return  # the next cycle tries again
            command = self._waiting.popleft()
            worker.send(command.argv, command.timeout_seconds)
            self._running.append(_Running(worker, command, now))


def _end_of(running: _Running, now: float) -> CommandEnd | None:
    try:
        message = running.worker.receive()
    except EOFError:
        message = {"is_started": False, "output": "the worker ended"}
    if message is None and now >= running.deadline:
        message = {"is_started": True, "is_timely": False, "status": None, "output": ""}
    if message is None:
        return None
    return CommandEnd(
        running.command,
        _result_of(message),
        message.get("status"),
        message["output"],
        running.started_at,
        now,
    )


def _result_of(message: dict[str, Any]) -> CommandResult:
    if not message["is_started"]:
        return CommandResult.NOT_STARTED
    if not message["is_timely"]:
        return CommandResult.TIMED_OUT
    return CommandResult.FAILED if message["status"] else CommandResult.SUCCEEDED
