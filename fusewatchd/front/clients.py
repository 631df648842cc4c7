"""The clients of the kubelet and the API server, in the process of the front.

One thread takes the daemon's orders and passes on what the clients bring: to begin and to end them
takes time, and the thread that receives must never wait.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fusewatchd.errors import ParseError, assert_never
from fusewatchd.front.asking import Daemon
from fusewatchd.front.handed_over import HandedEndpoint, for_people
from fusewatchd.front.messages import (
    MAX_DOCUMENT,
    MAX_TEXT,
    MAX_TEXTS,
    Condition,
    ConditionTold,
    EventsKept,
    EventsTold,
    FromFront,
    Ping,
    PodsTold,
    Pong,
    Post,
    Refresh,
    Talk,
    Topic,
    to_json,
)
from fusewatchd.kube.events.news import PosterNews
from fusewatchd.kube.events.poster import EventPoster
from fusewatchd.kube.events.series import Series, draft_from, series_from
from fusewatchd.kube.kubelet import KubeletPods, PodsAnswer
from fusewatchd.kube.node_condition_poster import NodeConditionPoster
from fusewatchd.parse.pod_document import pod_list_of
from fusewatchd.report.events.node_condition import NodeCondition
from fusewatchd.text import printable
from fusewatchd.threads import guarded_thread

STOP_SECONDS = 2.0
"""For what the API server is still to be told when clients are replaced."""
KEEP_REST_SECONDS = 1.0
"""Between two copies of what is left to say."""

Order = Talk | Post | Condition | Refresh | Ping


class KeptEvents:
    """What is left to say, for the next one who says it."""

    def __init__(self, text: str, wake: Callable[[], None]) -> None:
        """Begin with what another one left; ``wake`` is called when there is something new."""
        self._text = text
        self._wake = wake
        self._make: Callable[[], Any] | None = None

    def load(self, now: float, wall: float) -> list[Series]:
        """Return what another one left to say; see ``Keeper``."""
        if not self._text:
            return []
        try:
            return series_from(json.loads(self._text), now, wall)
        except ValueError as exc:
            raise ParseError("torn") from exc

    def save(self, document: Callable[[], Any]) -> None:
        """Note that there is something new."""
        self._make = document
        self._wake()

    def take(self) -> str:
        """Return what is new, empty when nothing is."""
        make, self._make = self._make, None
        if make is not None:
            self._text = json.dumps(make())
        return self._text if make is not None else ""

    @property
    def has_news(self) -> bool:
        """True when ``take`` has something."""
        return self._make is not None


class Clients:
    """Begins, orders and ends the clients."""

    def __init__(self, daemon: Daemon) -> None:
        """Begin without any."""
        self._daemon = daemon
        self._orders: deque[Order] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_stopping = False
        self._stop_seconds = STOP_SECONDS
        self._then: Callable[[], None] = lambda: None
        self._kept: KeptEvents | None = None
        self._keep_at = 0.0
        self._taken = 0
        self._talk: Talk | None = None
        self._kubelet: KubeletPods | None = None
        self._poster: EventPoster | None = None
        self._condition: NodeConditionPoster | None = None
        self._condition_problem = ""
        self._last_list = ""
        self._thread = guarded_thread("clients", self._run)
        self._thread.start()

    def take(self, order: Order) -> None:
        """Take an order; returns at once."""
        self._orders.append(order)
        self._wake()

    def stop(self, seconds: float, then: Callable[[], None]) -> None:
        """Let out what is under way, for so long, and call ``then``; returns at once."""
        self._stop_seconds, self._then = seconds, then
        self._is_stopping = True
        self._wake()

    def _wake(self) -> None:
        os.eventfd_write(self._event, 1)

    # ------------------------------------------------------------------------- thread

    def _run(self) -> None:
        while not self._is_stopping or self._orders:
            while self._orders:
                self._obey(self._orders.popleft())
            self._pass_on()
            if not self._is_stopping and not self._orders:
                self._wait()
        self._end(self._stop_seconds)
        self._then()

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._event, select.POLLIN)
        for client in (self._kubelet, self._poster):
            if client is not None:
                poll.register(client.fileno(), select.POLLIN)
        rest = None
        if self._kept is not None and self._kept.has_news:
            rest = max(0.0, self._keep_at - time.monotonic()) * 1000
        poll.poll(rest)
        with suppress(BlockingIOError):
            os.eventfd_read(self._event)

    def _obey(self, order: Order) -> None:
        match order:
            case Talk():
                self._begin(order)
            case Post():
                self._taken += 1
                if self._poster is not None:
                    self._poster.post(draft_from(json.loads(order.draft)))
            case Condition():
                if self._condition is not None:
                    said = NodeCondition(order.is_true, order.reason, order.message)
                    self._condition.tell(said)
            case Refresh():
                if self._kubelet is not None:
                    self._kubelet.refresh()
            case Ping():
                self._tell(Pong())
            case _:
                assert_never(order)

    def _begin(self, order: Talk) -> None:
        self._end(STOP_SECONDS)
        self._talk, self._last_list = order, ""
        if self._kept is None:
            self._kept = KeptEvents(order.kept, self._wake)
        if order.refresh_seconds:
            endpoint = HandedEndpoint(self._daemon, Topic.KUBELET)
            self._kubelet = KubeletPods(endpoint, order.refresh_seconds)
            self._kubelet.start()
        if not order.tells:
            return
        self._poster = EventPoster(
            HandedEndpoint(self._daemon, Topic.APISERVER),
            order.node_name,
            nodes=order.cluster_nodes,
            keeper=self._kept,
        )
        self._poster.start()
        if order.has_condition:
            self._condition = NodeConditionPoster(
                HandedEndpoint(self._daemon, Topic.APISERVER),
                order.node_name,
                spread=self._poster.spread,
                on_problem=self._wake,
            )
            self._condition.start()
        self._tell_news(PosterNews())

    def _end(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        if self._condition is not None:
            self._condition.stop()
        if self._kubelet is not None:
            self._kubelet.stop()
            self._kubelet = None
        if self._poster is not None:
            self._poster.stop(end - time.monotonic())
            self._tell_news(self._poster.collect())
            self._tell_kept()
            self._poster = None
        if self._condition is not None:
            self._condition.wait(end - time.monotonic())
            self._condition = None

    # ------------------------------------------------------------------- what they bring

    def _tell(self, message: FromFront) -> None:
        self._daemon.link.send(to_json(message))

    def _pass_on(self) -> None:
        if self._kubelet is not None:
            for answer in self._kubelet.collect():
                self._tell_pods(answer)
        if self._poster is not None:
            news = self._poster.collect()
            if news != PosterNews():
                self._tell_news(news)
        if self._condition is not None and self._condition.problem != self._condition_problem:
            self._condition_problem = self._condition.problem
            self._tell(ConditionTold(_bounded(self._condition_problem)))
        if self._kept is not None and time.monotonic() >= self._keep_at:
            self._tell_kept()

    def _tell_pods(self, answer: PodsAnswer) -> None:
        assert self._talk is not None
        document, problem = "", answer.problem
        if answer.pods is not None:
            document = json.dumps(pod_list_of(answer.pods))
            if len(document) > MAX_DOCUMENT:
                document, problem = "", f"a list of pods of more than {MAX_DOCUMENT} characters"
        is_same = bool(document) and document == self._last_list
        self._last_list = document
        self._tell(
            PodsTold(
                self._talk.generation,
                answer.asked_at,
                answer.code,
                _bounded(problem),
                _all_bounded(answer.complaints),
                "" if is_same else document,
            )
        )

    def _tell_news(self, news: PosterNews) -> None:
        assert self._poster is not None
        problems = _all_bounded(news.problems)
        most = self._poster.most_told()
        self._tell(
            EventsTold(news.posted, news.failed, news.dropped, problems, news.recovered, most)
        )

    def _tell_kept(self) -> None:
        assert self._kept is not None
        taken, text = self._taken, self._kept.take()
        if not text:
            return
        self._taken = 0
        self._keep_at = time.monotonic() + KEEP_REST_SECONDS
        self._tell(EventsKept(taken, text if len(text) <= MAX_DOCUMENT else ""))


def _bounded(text: str) -> str:
    shown = for_people(text)
    return shown[:MAX_TEXT] if shown.isprintable() else printable(shown, MAX_TEXT)


def _all_bounded(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_bounded(text) for text in texts[:MAX_TEXTS])
