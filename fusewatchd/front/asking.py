"""Questions of the front to the daemon, from any of its threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress

from fusewatchd.front.link import Link
from fusewatchd.front.messages import MAX_COUNT, Answer, Ask, Topic, to_json


class Question:
    """One question; ``answer`` is None until it is answered."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        """Ask nothing yet; ``then`` is called with the answer, by the thread that receives it."""
        self.number = 0
        self.answer: Answer | None = None
        self.descriptors: list[int] = []
        self._then = then
        self._is_answered = threading.Event()

    def take(self, answer: Answer, descriptors: list[int]) -> None:
        """Take the answer."""
        self.answer, self.descriptors = answer, descriptors
        self._is_answered.set()
        self._then()

    def wait(self, seconds: float) -> bool:
        """Wait for the answer for so long; return whether it is there."""
        return self._is_answered.wait(seconds)


class Daemon:
    """The daemon, as its front sees it."""

    def __init__(self, link: Link) -> None:
        """Take the connection to it."""
        self.link = link
        self._lock = threading.Lock()
        self._number = 0
        self._asked: dict[int, Question] = {}

    def ask(
        self,
        question: Question,
        topic: Topic,
        *,
        version: int = 0,
        used: int = 0,
        is_openmetrics: bool = False,
    ) -> None:
        """Send a question, whose answer is handed to it."""
        with self._lock:
            self._number = self._number % MAX_COUNT + 1
            question.number = self._number
            self._asked[question.number] = question
        ask = Ask(question.number, topic, version, used, is_openmetrics)
        with suppress(OSError):  # the daemon ended, and this process ends with it
            self.link.send(to_json(ask))

    def wait(self, question: Question, seconds: float) -> Answer | None:
        """Wait for an answer for so long; one that comes later is nobody's."""
        if not question.wait(seconds):
            with self._lock:
                self._asked.pop(question.number, None)
        return question.answer

    def take(self, answer: Answer, descriptors: list[int]) -> None:
        """Hand an answer to who asked for it."""
        with self._lock:
            question = self._asked.pop(answer.number, None)
        if question is not None:
            question.take(answer, descriptors)
            return
        for fd in descriptors:
            os.close(fd)


class SharedQuestions:
    """Asks the same for many at once: a crowd costs the daemon two answers at a time.

    Who comes while a question is under way waits for the next one: what it gets was made after it
    came.
    """

    def __init__(self, daemon: Daemon, then: Callable[[], None]) -> None:
        """Ask nothing yet; ``then`` is called after each answer."""
        self._daemon = daemon
        self._then = then
        self._lock = threading.Lock()
        self._under_way: set[tuple[Topic, bool]] = set()
        self._next: dict[tuple[Topic, bool], Question] = {}

    def ask(self, topic: Topic, *, is_openmetrics: bool = False) -> Question:
        """Return a question that is asked now, or when the one under way has its answer."""
        key = (topic, is_openmetrics)
        with self._lock:
            question = self._next.setdefault(key, Question(lambda: self._take_end(key)))
        self.advance()
        return question

    def advance(self) -> None:
        """Ask what waited for an answer that is there now; call it where it may take time."""
        with self._lock:
            due = {key: q for key, q in self._next.items() if key not in self._under_way}
            for key in due:
                del self._next[key]
                self._under_way.add(key)
        for (topic, is_openmetrics), question in due.items():
            self._daemon.ask(question, topic, is_openmetrics=is_openmetrics)

    def _take_end(self, key: tuple[Topic, bool]) -> None:
        # In the thread that receives: if it sent as well, it and the daemon could wait for
        # each other.
        with self._lock:
            self._under_way.discard(key)
        self._then()
