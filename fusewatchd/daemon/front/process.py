"""The front's process: started, listened to, and replaced when it ends or says what it must not.

One thread waits for what the front says.  What it asks for is answered in that thread; what it
tells is left for the loop of the daemon, which never waits for a front.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from fusewatchd.daemon.front.parcel import Parcel
from fusewatchd.errors import ParseError, WorkerError
from fusewatchd.front.link import Link, parse
from fusewatchd.front.messages import (
    Ask,
    ConditionTold,
    EventsKept,
    EventsTold,
    FromFront,
    Ping,
    PodsTold,
    Pong,
    Serving,
    ThreadFailed,
    ToFront,
    WebComplaint,
    from_front,
    to_json,
)
from fusewatchd.model.findings import Gap
from fusewatchd.parse.pod_list import parse_pod_list
from fusewatchd.rate_limit import Bucket, Rate, doubled
from fusewatchd.threads import guarded_thread
from fusewatchd.workers.fork_server import Worker

FIRST_REST_SECONDS = 0.2
MAX_REST_SECONDS = 30.0
"""Between two fronts of which the first ended soon."""
CALM_SECONDS = 60.0
"""A front that lived so long did not end soon."""
PART_SECONDS = 10.0
"""For a part of a message: a front that takes or sends none is replaced."""
START_SECONDS = 20.0
"""Within which a new front must say that it is there."""
REST_FACTOR = 4
"""What a front asks for takes at most a fifth of one processor."""
MAX_ANSWER_REST_SECONDS = 1.0
QUIET_SECONDS = 30.0
"""A front that says nothing for so long is asked whether it goes on."""
SILENT_SECONDS = 20.0
"""One that does not answer for so long is asked again, and replaced a while later."""
SECOND_SECONDS = 5.0
"""For the second answer: both may have been frozen together before the first."""
MAX_WAITING = 4096
"""Messages that wait for a front to take them."""
TOLD = Rate(per_second=20.0, burst=200.0)
"""What wakes the loop; a front that tells more is listened to later."""
GAP = "front"


Tells = Serving | PodsTold | EventsTold | EventsKept | ConditionTold | ThreadFailed | WebComplaint


@dataclass(frozen=True, slots=True)
class Told:
    """What a front told, and what stands in its document, read again."""

    message: Tells
    content: Any = None
    """A PodList, or JSON."""


def content_of(message: Tells) -> Any:
    """Read the document of a message; raises ``ParseError``."""
    if isinstance(message, PodsTold) and message.document:
        return parse_pod_list(parse(message.document.encode()))
    if isinstance(message, EventsKept) and message.document:
        return parse(message.document.encode())
    return None


Respond = Callable[[Ask], Parcel]
"""Answers what a front asks for, in the thread that listens."""


class Session:
    """One front, from its start to its end."""

    def __init__(
        self, worker: Worker, greeting: Sequence[Parcel], respond: Respond, wake: Callable[[], None]
    ) -> None:
        """Begin to listen to a front that was just started; ``wake`` is called from the thread.

        Raises:
            OSError: there are too many open files.
            RuntimeError: no thread is to be had.
        """
        self._worker = worker
        self._respond = respond
        self._wake_loop = wake
        self._unsent: deque[Parcel] = deque(greeting)
        self._told: deque[Told] = deque()
        self._budget = Bucket()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self.began = time.monotonic()
        self.is_up = False
        """It said that it is there."""
        self._heard_at = self.began
        self._pinged_at = 0.0
        self._pings = 0
        """How many it has not answered."""
        self.problem = ""
        """Why it is over; empty while it is not."""
        with ExitStack() as opened:
            self._news = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            opened.callback(os.close, self._news)
            sock = socket.socket(fileno=os.dup(worker.channel.fileno()))
            opened.callback(sock.close)
            sock.settimeout(PART_SECONDS)
            self._link = Link(sock)
            self._thread = guarded_thread("front", self._run, recover=self._fail)
            self._thread.start()
            opened.pop_all()

    def send(self, parcel: Parcel) -> None:
        """Have a message sent; returns at once."""
        with self._lock:
            if self.problem:
                parcel.close()
                return
            if len(self._unsent) >= MAX_WAITING:
                self._end("it takes no messages")
                return
            self._unsent.append(parcel)
            os.eventfd_write(self._news, 1)

    def collect(self) -> list[Told]:
        """Return what it told, oldest first."""
        told: list[Told] = []
        while self._told:
            told.append(self._told.popleft())
        return told

    def overdue_at(self) -> float | None:
        """Return when it must have said that it is there."""
        return None if self.is_up or self.problem else self.began + START_SECONDS

    def look(self, now: float) -> None:
        """Ask one that has been quiet whether it goes on; give up one that does not answer."""
        if not self.is_up or self.problem:
            return
        if self._heard_at >= self._pinged_at:
            self._pings = 0
        patience = (QUIET_SECONDS, SILENT_SECONDS, SECOND_SECONDS)[self._pings]
        if now - max(self._heard_at, self._pinged_at) < patience:
            return
        if self._pings == 2:
            self.give_up("it does not answer")
            return
        self._pings += 1
        self._pinged_at = now
        self.send(Parcel(Ping()))

    def give_up(self, problem: str) -> None:
        """End it for a reason."""
        with self._lock:
            self._end(problem)

    def wait(self, seconds: float) -> None:
        """Wait for its end."""
        self._thread.join(max(0.0, seconds))

    def close(self) -> None:
        """End the process; its thread is not waited for.  Harmless when repeated."""
        self.give_up("it is not needed any more")
        self._worker.kill()

    def _end(self, problem: str) -> None:
        if not self.problem:
            self.problem = problem
            self._closing.set()
            self._link.end()
            os.eventfd_write(self._news, 1)
            self._wake_loop()

    # ------------------------------------------------------------------------- thread

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._link.fileno(), select.POLLIN)
        poll.register(self._news, select.POLLIN)
        try:
            while not self._closing.is_set():
                ready = {fd for fd, _ in poll.poll()}
                began = time.thread_time()
                self._turn(is_message=self._link.fileno() in ready)
                worked = time.thread_time() - began
                self._closing.wait(min(REST_FACTOR * worked, MAX_ANSWER_REST_SECONDS))
        except (EOFError, ConnectionResetError, BrokenPipeError):
            self.give_up("it ended")
        except ParseError as exc:
            self.give_up(f"it said what it must not: {exc}")
        except OSError as exc:
            self.give_up(f"it cannot be reached: {exc.strerror or 'it stopped in the middle'}")
        with self._lock:
            self._link.close()
            os.close(self._news)
            while self._unsent:
                self._unsent.popleft().close()

    def _fail(self, failure: Exception) -> None:
        self.give_up(f"{type(failure).__name__} while it was listened to")

    def _turn(self, *, is_message: bool) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._news)
        while self._unsent:
            self._send(self._unsent.popleft())
        if is_message:
            self._take(from_front(self._link.receive()))
            self._heard_at = time.monotonic()

    def _send(self, parcel: Parcel) -> None:
        try:
            self._link.send(to_json(parcel.message), parcel.descriptors)
        finally:
            parcel.close()

    def _take(self, message: FromFront) -> None:
        if isinstance(message, Ask):
            self._send(self._respond(message))
            return
        if isinstance(message, Pong):
            return
        if isinstance(message, Serving):
            self.is_up = True
        self._told.append(Told(message, content_of(message)))
        self._wake_loop()
        now = time.monotonic()
        self._budget = self._budget.take(1.0, TOLD, now)
        lacking = 1.0 - self._budget.left(TOLD, now)
        if lacking > 0:
            self._closing.wait(lacking / TOLD.per_second)


class Front:
    """There is one as long as it is wanted; what is sent while there is none is not kept."""

    def __init__(self, spawn: Callable[[], Worker], respond: Respond) -> None:
        """Start nothing yet.

        Args:
            spawn: starts a process; called in the thread of the loop.
            respond: answers what a front asks for.
        """
        self._spawn = spawn
        self._respond = respond
        self._greeting: Callable[[], Sequence[Parcel]] | None = None
        self._session: Session | None = None
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._failures = 0
        self._again_at: float | None = None
        self._problem = ""
        self._told: list[Told] = []
        self.ends = 0
        """How many fronts ended although they were wanted."""

    def fileno(self) -> int:
        """Return what becomes readable when ``collect`` is to be called."""
        return self._event

    @property
    def is_wanted(self) -> bool:
        """True once it was started."""
        return self._greeting is not None

    def start(self, greeting: Callable[[], Sequence[Parcel]], now: float) -> None:
        """Start a front, now and whenever the last one ended, and say ``greeting`` to it first."""
        self._greeting = greeting
        self._begin(now)

    def send(self, message: ToFront) -> None:
        """Tell the front, if there is one."""
        if self._session is not None:
            self._session.send(Parcel(message))

    def look(self, now: float) -> None:
        """Find out whether it goes on, where it has been quiet; call it now and then."""
        if self._session is not None:
            self._session.look(now)

    def due_at(self) -> float | None:
        """Return when ``collect`` must be called although nothing wakes."""
        if self._again_at is not None:
            return self._again_at
        return None if self._session is None else self._session.overdue_at()

    def collect(self, now: float) -> list[Told]:
        """Return what was told, and replace a front that ended."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._event)
        told, self._told = self._told, []
        session = self._session
        if session is not None:
            told += session.collect()
            overdue_at = session.overdue_at()
            if overdue_at is not None and now >= overdue_at:
                session.give_up("it did not come up in time")
            if session.problem:
                told += session.collect()
                self._bury(session, now)
            elif session.is_up:
                self._problem = ""
        if self._again_at is not None and now >= self._again_at:
            self._begin(now)
        return told

    def gap(self) -> Gap | None:
        """Return that there is no front, and why."""
        return Gap(GAP, self._problem) if self._problem else None

    def first_told(self, seconds: float) -> list[Told]:
        """Wait for so long until a front is there, and return what it told, which stays."""
        end = time.monotonic() + seconds
        while (session := self._session) is not None:
            self._told += session.collect()
            left = end - time.monotonic()
            if session.is_up or session.problem or left <= 0:
                self._told += session.collect()
                break
            select.select([self._event], [], [], left)
            with suppress(BlockingIOError):
                os.eventfd_read(self._event)
        self._wake()
        return list(self._told)

    def stop(self, last: ToFront, seconds: float) -> list[Told]:
        """Send a last message, wait for the end for so long, and return what was told."""
        self._greeting, self._again_at = None, None
        session, self._session = self._session, None
        if session is None:
            return []
        session.send(Parcel(last))
        session.wait(seconds)
        session.close()
        return [*self._told, *session.collect()]

    def close(self) -> None:
        """Close the descriptor; nothing wakes any more."""
        os.close(self._event)

    def _begin(self, now: float) -> None:
        assert self._greeting is not None
        self._again_at = None
        try:
            worker = self._spawn()
        except WorkerError as exc:
            self._rest(str(exc), now)
            return
        greeting: list[Parcel] = []
        try:
            greeting += self._greeting()
            self._session = Session(worker, greeting, self._respond, self._wake)
        except (OSError, RuntimeError) as exc:
            # No descriptor or no thread is to be had: later there may be.
            for parcel in greeting:
                parcel.close()
            worker.kill()
            self._rest(str(exc), now)

    def _bury(self, session: Session, now: float) -> None:
        self._session = None
        session.close()
        self.ends += 1
        if now - session.began >= CALM_SECONDS:
            self._failures = 0
        self._rest(session.problem, now)

    def _rest(self, problem: str, now: float) -> None:
        self._problem = f"no process talks with others: {problem}"
        self._again_at = now + doubled(FIRST_REST_SECONDS, MAX_REST_SECONDS, self._failures)
        self._failures += 1

    def _wake(self) -> None:
        with suppress(OSError):
            os.eventfd_write(self._event, 1)
