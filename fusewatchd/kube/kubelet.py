"""The kubelet's ``/pods``, asked for by a thread of its own.

The loop of the daemon only ever looks into a queue.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from fusewatchd.errors import KubeError, ParseError
from fusewatchd.kube.endpoint import Endpoint, EndpointSource
from fusewatchd.kube.errors import code_class
from fusewatchd.kube.http import Client
from fusewatchd.model.pods import Pod
from fusewatchd.parse.pod_list import parse_pod_list
from fusewatchd.rate_limit import doubled
from fusewatchd.threads import guarded_thread, place_of

PATH = "/pods"
MIN_REST_SECONDS = 0.2
MIN_REST_AFTER_FAILURE_SECONDS = 1.0
FIRST_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 30.0
SPREAD = 0.2
STOP_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class PodsAnswer:
    """What one request brought."""

    asked_at: float
    """Monotonic clock, before the request was sent."""
    pods: tuple[Pod, ...] | None
    """None: see ``problem``."""
    problem: str = ""
    code: str = "2xx"
    """Class of the status, for the metric."""
    complaints: tuple[str, ...] = ()
    retry_after: float = 0.0
    """Seconds for which a kubelet that refused wants to be left in peace."""


class KubeletPods:
    """Asks by a timer, and when it is told that something may have changed."""

    def __init__(self, endpoint: Endpoint | EndpointSource, refresh_seconds: float) -> None:
        """Take the endpoint; nothing is asked before ``start``.

        Args:
            endpoint: of the read-only or the authenticated port.
            refresh_seconds: between two requests when nothing changes, spread by a fifth.
        """
        self._client = Client(endpoint)
        self._refresh_seconds = refresh_seconds
        self._answers: deque[PodsAnswer] = deque(maxlen=64)
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Condition()
        self._is_wanted = True
        self._is_stopping = False
        self._thread = guarded_thread("kubelet", self._run, recover=self._tell_failure)

    def start(self) -> None:
        """Start the thread, which asks at once."""
        self._thread.start()

    def refresh(self) -> None:
        """Ask soon; several calls are one request."""
        with self._lock:
            self._is_wanted = True
            self._lock.notify()

    def fileno(self) -> int:
        """Return what becomes readable when ``collect`` has something."""
        return self._event

    def collect(self) -> list[PodsAnswer]:
        """Return the answers that have arrived, oldest first."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._event)
        answers: list[PodsAnswer] = []
        while self._answers:
            answers.append(self._answers.popleft())
        return answers

    def stop(self) -> None:
        """End the thread; one that waits for an answer is left to its time-out."""
        with self._lock:
            self._is_stopping = True
            self._lock.notify()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)
        with self._lock:
            os.close(self._event)
            self._event = -1

    # ------------------------------------------------------------------------- thread

    def _run(self) -> None:
        failures = 0
        while not self._is_stopping:
            answer = self._ask()
            failures = 0 if answer.pods is not None else failures + 1
            self._hand_over(answer)
            self._rest(failures, answer.retry_after)
        self._client.close()

    def _hand_over(self, answer: PodsAnswer) -> None:
        with self._lock:
            if self._event >= 0:
                self._answers.append(answer)
                os.eventfd_write(self._event, 1)

    def _tell_failure(self, failure: Exception) -> None:
        problem = f"asking failed: {type(failure).__name__} at {place_of(failure)}"
        self._hand_over(PodsAnswer(time.monotonic(), None, problem, "error"))

    def _ask(self) -> PodsAnswer:
        with self._lock:
            self._is_wanted = False
        asked_at = time.monotonic()
        try:
            found = parse_pod_list(self._client.request("GET", PATH))
        except KubeError as exc:
            retry_after = getattr(exc, "retry_after", 0.0)
            return PodsAnswer(
                asked_at, None, str(exc), code_class(exc.code), retry_after=retry_after
            )
        except ParseError as exc:
            return PodsAnswer(asked_at, None, f"the kubelet's answer: {exc}")
        return PodsAnswer(asked_at, found.pods, complaints=found.complaints)

    def _rest(self, failures: int, retry_after: float) -> None:
        """Wait for the timer or for ``refresh``, and for the least rest in any case."""
        if failures:
            least = max(MIN_REST_AFTER_FAILURE_SECONDS, min(retry_after, MAX_RETRY_SECONDS))
            most = doubled(FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS, failures - 1)
        else:
            least, most = MIN_REST_SECONDS, self._refresh_seconds
        began = time.monotonic()
        until = began + max(least, most * (1 - SPREAD + 2 * SPREAD * random.random()))
        with self._lock:
            while not self._is_stopping:
                now = time.monotonic()
                end = began + least if self._is_wanted else until
                if now >= end:
                    return
                self._lock.wait(end - now)
