"""Mount workers: single-threaded processes that carry out actions, one after the other.

A worker holds no state and no descriptor of a watched mount between two actions, so killing
one at any moment loses nothing but the outcome of the action under way.  What has ended
before is known, even when nothing can end the worker: see ``worker_pages``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from fusewatchd.act.last_word import LastWord
from fusewatchd.act.layer_journal import LayerJournal
from fusewatchd.act.replace_mount import carry_out
from fusewatchd.act.stand_in_journal import StandInJournal
from fusewatchd.act.worker_pages import Page, Pages
from fusewatchd.errors import ParseError
from fusewatchd.json_values import decode, encode
from fusewatchd.linux.limits import NamespaceShortageError
from fusewatchd.linux.mount_kernel import Way, WouldAsk
from fusewatchd.linux.private_namespace import Staging
from fusewatchd.linux.procfs import is_running
from fusewatchd.linux.running_kernel import RealKernel
from fusewatchd.model.actions import (
    AbortConnection,
    Action,
    DetachDeadSource,
    DetachOrphan,
    DetachOwnLayer,
    DropLayers,
    Outcome,
    OutcomeStatus,
    OwnLayer,
    PlaceStandIns,
    ReplaceMount,
)
from fusewatchd.model.mounts import Mount
from fusewatchd.model.stand_in import StandIn
from fusewatchd.model.verdicts import Reason
from fusewatchd.workers.channel import Channel
from fusewatchd.workers.fork_server import Worker

FLUSH_SECONDS = 0.04
"""Outcomes are sent at the latest this long after they are known, and at the end."""

CHUNK = 16
"""Actions in one message."""

_ACTIONS: dict[str, type[Action]] = {
    "replace": ReplaceMount,
    "drop_layers": DropLayers,
    "detach": DetachOwnLayer,
    "detach_orphan": DetachOrphan,
    "detach_dead_source": DetachDeadSource,
    "abort": AbortConnection,
    "place_stand_ins": PlaceStandIns,
}
_KINDS = {cls: kind for kind, cls in _ACTIONS.items()}


def mount_worker(
    way: Way,
    pages: Pages,
    *,
    mounts_on_detached: bool,
    journal: Callable[[], LayerJournal],
    stand_in_journal: Callable[[], StandInJournal],
    last_word: Callable[[], LastWord],
) -> Callable[[Channel], None]:
    """Return the main function of a mount worker that replaces in this way."""

    def serve(channel: Channel) -> None:
        staging = Staging()
        if not mounts_on_detached:
            # Rather now than while a pod waits; who needs it tells when there is none.
            with suppress(NamespaceShortageError):
                staging.prepare()
        kernel = RealKernel(way, staging, mounts_on_detached=mounts_on_detached)
        notes, word = (journal().note, stand_in_journal().note), last_word()

        def act(action: Action, may_ask: bool) -> Outcome:
            return word.refusal(action) or carry_out(kernel, action, *notes, may_ask=may_ask)

        serve_actions(channel, pages, act)

    return serve


CarryOut = Callable[[Action, bool], Outcome]
"""Does an action; with False it raises ``WouldAsk`` rather than wait for a file system."""


def serve_actions(channel: Channel, pages: Pages, carry_out: CarryOut) -> None:
    """Carry out what a ``MountWorker`` sends, until it closes the channel."""
    channel.serve(_Work(carry_out, channel, pages).take)


class _Work:
    """Carries messages of actions out and reports now and then, not after each one.

    What has ended and was not reported stands in the shared page before the next is begun.
    """

    def __init__(self, carry_out: CarryOut, channel: Channel, pages: Pages) -> None:
        self._carry_out = carry_out
        self._channel = channel
        self._pages = pages
        self._done: list[bytes] = []
        self._flushed_at = 0.0

    def take(self, message: Any) -> None:
        page = self._pages[message["page"]]
        if not self._done:
            self._flushed_at = time.monotonic()
        for number, item in enumerate(message["actions"], message["first"]):
            if not page.begin(number):
                self._done.append(_encoded({"number": number, "left": True}))
                self._flush(page, time.monotonic())
                return
            action: Action = decode(_ACTIONS[item["kind"]], item["action"])
            report = self._report_on(action, may_ask=message["may_ask"])
            now = time.monotonic()
            self._done.append(_encoded({"number": number, **report}))
            if not page.add(self._done[-1]) or now - self._flushed_at >= FLUSH_SECONDS:
                self._flush(page, now)
        if not message["more"]:
            self._flush(page, time.monotonic())

    def _report_on(self, action: Action, *, may_ask: bool) -> dict[str, Any]:
        started_at = time.monotonic()
        try:
            outcome = self._carry_out(action, may_ask)
        except WouldAsk:
            return {"asks": True}
        return _report(replace(outcome, started_at=started_at, finished_at=time.monotonic()))

    def _flush(self, page: Page, now: float) -> None:
        if self._done:
            self._channel.send_encoded(b"[" + b",".join(self._done) + b"]")
            page.told()
        self._done, self._flushed_at = [], now


def _encoded(report: dict[str, Any]) -> bytes:
    return json.dumps(report).encode("ascii")


def _report(outcome: Outcome) -> dict[str, Any]:
    return {
        "status": outcome.status.value,
        "reason": outcome.reason.value,
        "errno": outcome.errno,
        "detail": outcome.detail,
        "mount": encode(outcome.mount),
        "found": encode(outcome.found),
        "depth": outcome.depth,
        "layer": encode(outcome.layer),
        "stand_ins": encode(outcome.stand_ins),
        "started_at": outcome.started_at,
        "finished_at": outcome.finished_at,
    }


def _mount(item: Any) -> Mount | None:
    return None if item is None else decode(Mount, item)


class MountWorker:
    """The daemon's side of one worker."""

    def __init__(self, spawn: Callable[[], Worker], pages: Pages) -> None:
        """Start a process with ``mount_worker``.

        Raises:
            WorkerShortageError: there is nothing to make one of.
            WorkerError: the fork server is gone.
        """
        self._pages = pages
        self._index = pages.take()
        self._page = pages[self._index]
        try:
            self._worker = spawn()
        except BaseException:
            pages.give_back(self._index)
            raise
        self._given = 0
        """The number of the last action that it was given; the first one has 1."""
        self._withdrawn = 0
        """The number of the last one that it shall not begin any more."""
        self._open: dict[int, Action] = {}
        """What it was given and has not reported on, by number."""
        self._left: list[Action] = []
        """What it says that it has not begun and never will."""
        self._asking: list[Action] = []
        """What it says that it has left, since a file system would have to be asked."""
        self._is_closed = False
        self.is_dead = False

    def fileno(self) -> int:
        """Return what becomes readable when outcomes arrive."""
        return self._worker.channel.fileno()

    @property
    def actions(self) -> Collection[Action]:
        """What it was given and has not reported on, in order; the first one is under way."""
        return self._open.values()

    @property
    def begun(self) -> int:
        """Return a number that changes whenever it begins an action."""
        return self._page.begun

    @property
    def is_running(self) -> bool:
        """True while it uses a processor or waits for one; one that hangs sleeps (proc(5))."""
        return is_running(self._worker.pid)

    def send(self, actions: Iterable[Action], *, may_ask: bool) -> None:
        """Hand actions over; they are carried out in this order.

        Unless they ``may_ask``, those of which the way to the target needs the answer of a file
        system are not done, and come back by ``take_asking``.
        """
        actions = list(actions)
        first, self._given = self._given + 1, self._given + len(actions)
        self._open.update(enumerate(actions, first))
        for start in range(0, len(actions), CHUNK):
            # The worker is at the first ones while the rest is still being written down.
            chunk = actions[start : start + CHUNK]
            items = [{"kind": _KINDS[type(action)], "action": encode(action)} for action in chunk]
            message = {
                "page": self._index,
                "first": first + start,
                "more": start + CHUNK < len(actions),
                "may_ask": may_ask,
                "actions": items,
            }
            self._worker.channel.send(message)

    def receive(self) -> list[Outcome]:
        """Return the outcomes that have arrived, in order; sets ``is_dead`` at the end."""
        try:
            messages = self._worker.channel.receive()
        except EOFError:
            self.is_dead = True
            return []
        return self._outcomes(item for message in messages for item in message)

    def withdraw(self) -> None:
        """Have it begin nothing more of what it was given so far.

        What it was about to begin in this very moment it may begin or not: ``take_back``
        must be called some time later.
        """
        self._withdrawn = self._given
        self._page.withdraw(self._withdrawn)

    def take_back(self) -> tuple[list[Outcome], list[Action]]:
        """Return what it has ended but not told, and what it has not begun and never will.

        To be called some time after ``withdraw``, or when it is dead.
        """
        outcomes = self._outcomes(self._noted())
        under_way = max(self._page.begun, next(iter(self._open), 0))
        back, self._left = self._left + self._take_between(under_way + 1, self._given), []
        return outcomes, back

    def take_asking(self) -> list[Action]:
        """Return what it left because a file system would have had to be asked."""
        asking, self._asking = self._asking, []
        return asking

    def _take_between(self, first: int, last: int) -> list[Action]:
        return [self._open.pop(n) for n in tuple(self._open) if first <= n <= last]

    def end(self) -> None:
        """Have the process ended; ``is_dead`` says when it is gone, which may be never."""
        self._worker.end()

    def kill(self) -> None:
        """End the process, whatever it is doing, and forget it."""
        self._worker.kill()
        if not self._is_closed:
            self._is_closed = True
            self._pages.give_back(self._index)

    def _noted(self) -> Iterator[dict[str, Any]]:
        for line in self._page.noted():
            # It may be about to write the last one, which is sent then.
            with suppress(ValueError):
                yield json.loads(line)

    def _outcomes(self, items: Iterable[dict[str, Any]]) -> list[Outcome]:
        return [outcome for item in items if (outcome := self._outcome(item)) is not None]

    def _outcome(self, item: dict[str, Any]) -> Outcome | None:
        number = item["number"]
        if not 0 < number <= self._given:
            raise ParseError("a mount worker reported an action that it was not given")
        if item.get("left"):
            # It may have had work since, and come across the old one only now.
            self._left += self._take_between(number, self._withdrawn)
            return None
        action = self._open.pop(number, None)
        if action is None:
            return None  # It stood in the page when that was looked at.
        if item.get("asks"):
            self._asking.append(action)
            return None
        return Outcome(
            action=action,
            status=OutcomeStatus(item["status"]),
            reason=Reason(item["reason"]),
            errno=item["errno"],
            detail=item["detail"],
            mount=_mount(item["mount"]),
            found=_mount(item["found"]),
            depth=item["depth"],
            layer=None if item["layer"] is None else decode(OwnLayer, item["layer"]),
            stand_ins=tuple(decode(StandIn, one) for one in item["stand_ins"]),
            narrower=action.narrower if isinstance(action, ReplaceMount) else "",
            wider=action.wider if isinstance(action, ReplaceMount) else "",
            started_at=item["started_at"],
            finished_at=item["finished_at"],
        )
