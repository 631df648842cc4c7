"""Mount workers: single-threaded processes that carry out actions, one after the other.

A worker holds no state and no descriptor of a watched mount between two actions, so killing
one at any moment loses nothing but the outcome of the action under way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from fusewatchd.actions import (
    AbortConnection,
    Action,
    DetachDeadSource,
    DetachOrphan,
    DetachOwnLayer,
    Outcome,
    OutcomeStatus,
    OwnLayer,
    ReplaceMount,
)
from fusewatchd.errors import ParseError
from fusewatchd.linux.channel import Channel
from fusewatchd.linux.forkserver import Worker
from fusewatchd.linux.layerjournal import LayerJournal
from fusewatchd.linux.mountkernel import MountKernel, Way
from fusewatchd.linux.replacement import Note, carry_out, ignore
from fusewatchd.linux.runningkernel import RealKernel
from fusewatchd.linux.staging import Staging
from fusewatchd.model import Mount
from fusewatchd.verdicts import Reason
from fusewatchd.wire import decode, encode

FLUSH_SECONDS = 0.04
"""Outcomes are sent at the latest this long after they are known, and at the end."""

CHUNK = 16
"""Actions in one message."""

_ACTIONS: dict[str, type[Action]] = {
    "replace": ReplaceMount,
    "detach": DetachOwnLayer,
    "detach_orphan": DetachOrphan,
    "detach_dead_source": DetachDeadSource,
    "abort": AbortConnection,
}


def mount_worker(
    way: Way, *, mounts_on_detached: bool, journal: Callable[[], LayerJournal] | None = None
) -> Callable[[Channel], None]:
    """Return the main function of a mount worker that replaces in this way."""

    def serve(channel: Channel) -> None:
        kernel = RealKernel(way, Staging(), mounts_on_detached=mounts_on_detached)
        note = journal().note if journal is not None else ignore
        channel.serve(_Work(kernel, channel.send, note).take)

    return serve


class _Work:
    """Carries messages of actions out and reports now and then, not after each one."""

    def __init__(self, kernel: MountKernel, send: Callable[[Any], None], note: Note) -> None:
        self._kernel = kernel
        self._note = note
        self._send = send
        self._done: list[Any] = []
        self._flushed_at = 0.0

    def take(self, message: Any) -> None:
        if not self._done:
            self._flushed_at = time.monotonic()
        for item in message["actions"]:
            action: Action = decode(_ACTIONS[item["kind"]], item["action"])
            started_at = time.monotonic()
            outcome = carry_out(self._kernel, action, self._note)
            now = time.monotonic()
            self._done.append(_report(replace(outcome, started_at=started_at, finished_at=now)))
            if now - self._flushed_at >= FLUSH_SECONDS:
                self._flush(now)
        if not message["more"]:
            self._flush(time.monotonic())

    def _flush(self, now: float) -> None:
        if self._done:
            self._send(self._done)
        self._done, self._flushed_at = [], now


def _report(outcome: Outcome) -> dict[str, Any]:
    return {
        "status": outcome.status.value,
        "reason": outcome.reason.value,
        "errno": outcome.errno,
        "detail": outcome.detail,
        "mount": encode(outcome.mount),
        "depth": outcome.depth,
        "layer": encode(outcome.layer),
        "started_at": outcome.started_at,
        "finished_at": outcome.finished_at,
    }


class MountWorker:
    """The daemon's side of one worker."""

    def __init__(self, worker: Worker) -> None:
        """Wrap a process started with ``mount_worker``."""
        self._worker = worker
        self._sent: list[Action] = []
        self.is_dead = False

    def fileno(self) -> int:
        """Return what becomes readable when outcomes arrive."""
        return self._worker.channel.fileno()

    def send(self, actions: Iterable[Action]) -> None:
        """Hand actions over; they are carried out in this order."""
        actions = list(actions)
        self._sent.extend(actions)
        kinds = {cls: kind for kind, cls in _ACTIONS.items()}
        for start in range(0, len(actions), CHUNK):
            # The worker is at the first ones while the rest is still being written down.
            chunk = actions[start : start + CHUNK]
            items = [{"kind": kinds[type(action)], "action": encode(action)} for action in chunk]
            more = start + CHUNK < len(actions)
            self._worker.channel.send({"more": more, "actions": items})

    def receive(self) -> list[Outcome]:
        """Return the outcomes that have arrived, in order; sets ``is_dead`` at the end."""
        try:
            messages = self._worker.channel.receive()
        except EOFError:
            self.is_dead = True
            return []
        return [self._outcome(item) for message in messages for item in message]

    def _outcome(self, item: dict[str, Any]) -> Outcome:
        if not self._sent:
            raise ParseError("a mount worker reported an action that it was not given")
        return Outcome(
            action=self._sent.pop(0),
            status=OutcomeStatus(item["status"]),
            reason=Reason(item["reason"]),
            errno=item["errno"],
            detail=item["detail"],
            mount=None if item["mount"] is None else decode(Mount, item["mount"]),
            depth=item["depth"],
            layer=None if item["layer"] is None else decode(OwnLayer, item["layer"]),
            started_at=item["started_at"],
            finished_at=item["finished_at"],
        )

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        self._worker.kill()
