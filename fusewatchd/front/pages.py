"""The web server of the front: what it shows comes from the daemon."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from fusewatchd.errors import ConfigError
from fusewatchd.front.asking import Daemon, Question, SharedQuestions
from fusewatchd.front.handed_over import HandedWebConfig, for_people
from fusewatchd.front.messages import Answer, Serve, Serving, Topic, WebComplaint, to_json
from fusewatchd.report.metrics.exposition import OPENMETRICS_TYPE, Page
from fusewatchd.serve.health import Health
from fusewatchd.serve.status_page import status_page
from fusewatchd.serve.volume_history import Spell
from fusewatchd.serve.web import Later, Pages, T, WebServer
from fusewatchd.serve.web_security import WebSecurity


class Web:
    """Serves the pages, once it was told where."""

    def __init__(self, daemon: Daemon) -> None:
        """Serve nothing yet."""
        self._daemon = daemon
        self._server: WebServer | None = None
        self._questions = SharedQuestions(daemon, self._wake)

    def serve(self, order: Serve, descriptors: Sequence[int]) -> None:
        """Serve from now on, and say whether that is possible."""
        listeners = [socket.socket(fileno=fd) for fd in descriptors[: order.listeners]]
        problem = ""
        if listeners:
            try:
                security = self._security(order, descriptors[order.listeners :])
            except ConfigError as exc:
                problem = for_people(str(exc))
            else:
                self._server = WebServer(listeners, self._pages(order), security)
                self._server.start()
        self._daemon.link.send(to_json(Serving(problem)))

    def close(self) -> None:
        """Stop at once; connections that are being served are cut."""
        if self._server is not None:
            self._server.close()

    def _security(self, order: Serve, files: Sequence[int]) -> WebSecurity:
        if not order.path:
            return WebSecurity()
        source = HandedWebConfig(self._daemon, order.path, order.config, order.version, files)
        return WebSecurity(source, self._complain, source.note_used)

    def _complain(self, problem: str) -> None:
        self._daemon.link.send(to_json(WebComplaint(for_people(problem))))

    def _wake(self) -> None:
        if self._server is not None:
            self._server.wake()

    # ------------------------------------------------------- in the thread of the server

    def _pages(self, order: Serve) -> Pages:
        def metrics(accept: str) -> Later[Page]:
            # Only the kind is handed on: see ``Exposition.page``.
            is_openmetrics = OPENMETRICS_TYPE in accept.lower()
            return self._later(Topic.METRICS, _page, is_openmetrics=is_openmetrics)

        return Pages(
            metrics,
            lambda: self._later(Topic.ALIVE, _health),
            lambda: self._later(Topic.READY, _health),
            (lambda: self._later(Topic.STATUS, _status)) if order.shows_status else None,
        )

    def _later(
        self, topic: Topic, made: Callable[[Answer], T], *, is_openmetrics: bool = False
    ) -> Later[T]:
        question = self._questions.ask(topic, is_openmetrics=is_openmetrics)

        def look(question: Question = question) -> T | None:
            self._questions.advance()
            return None if question.answer is None else made(question.answer)

        return Later(look)


def _page(answer: Answer) -> Page:
    return Page(answer.content_type, answer.text.encode())


def _health(answer: Answer) -> Health:
    return Health(answer.is_good, answer.text)


def _status(answer: Answer) -> bytes:
    if not answer.text:
        return b""
    said: Any = json.loads(answer.text)
    history = {
        (uid, volume): tuple(Spell(since, verdict) for since, verdict in spells)
        for uid, volume, spells in said["history"]
    }
    return status_page(said["document"], history, time.monotonic())
