"""The node condition on its way to the API server, patched as node-problem-detector does it.

A strategic merge patch of ``nodes/<name>/status`` merges conditions by their type, so those of
others are never touched (kubernetes, core/v1 ``NodeStatus``, ``patchMergeKey``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from fusewatchd.errors import KubeError
from fusewatchd.kube.clocks import Clocks
from fusewatchd.kube.endpoint import Endpoint, EndpointSource
from fusewatchd.kube.errors import ForbiddenError
from fusewatchd.kube.events.objects import segment, whole_time
from fusewatchd.kube.http import Client
from fusewatchd.rate_limit import doubled
from fusewatchd.report.events.node_condition import TYPE, NodeCondition
from fusewatchd.threads import guarded_thread

HEARTBEAT_SECONDS = 300.0
"""Of a condition that does not change (node-problem-detector's default)."""
REST_SECONDS = 10.0
"""Between two writes, however often it changes."""
FIRST_BACK_OFF_SECONDS = 1.0
MAX_BACK_OFF_SECONDS = 300.0
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"


class NodeConditionPoster:
    """Takes conditions at any speed, and posts the newest one at a pace of its own."""

    def __init__(
        self,
        endpoint: Endpoint | EndpointSource,
        node_name: str,
        clocks: Clocks | None = None,
        spread: Callable[[], float] = lambda: 0.0,
        on_problem: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the endpoint and the node's name; nothing is sent before ``start``.

        ``spread`` gives a delay in seconds by chance, since all nodes of a cluster may see the
        same thing in the same moment (see ``pace``).  ``on_problem`` is called when ``problem``
        may have changed.
        """
        self._spread = spread
        self._on_problem = on_problem
        self._client = Client(endpoint)
        self._path = f"/api/v1/nodes/{segment(node_name)}/status"
        self._clocks = clocks or Clocks()
        self._wanted: NodeCondition | None = None
        self._posted: NodeCondition | None = None
        self._since = 0.0
        """When the status changed last, seconds since 1970."""
        self._not_before = 0.0
        self._heartbeat_at = 0.0
        self._failures = 0
        self._is_stopping = False
        self.problem = ""
        """Why it could not be posted; empty after it could."""
        self._lock = threading.Condition()
        self._thread = guarded_thread("condition", self._run)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def tell(self, condition: NodeCondition) -> None:
        """Take what is true now; returns at once."""
        with self._lock:
            if condition == self._wanted:
                return
            now = self._clocks.monotonic()
            self._not_before = max(self._not_before, now + self._spread())
            self._wanted = condition
            self._lock.notify()

    def stop(self) -> None:
        """Begin to take the condition away: nobody looks after it any more."""
        with self._lock:
            self._is_stopping = True
            self._lock.notify()

    def wait(self, seconds: float) -> None:
        """Wait until it is taken away.

        A request that hangs is left behind after so many seconds; the condition then stays,
        and its heartbeat tells how old it is.
        """
        if self._thread.ident is not None:
            self._thread.join(max(0.0, seconds))

    def _run(self) -> None:
        while (condition := self._next()) is not None:
            self._write(condition)
        if self._posted is not None:
            self._request({"$patch": "delete", "type": TYPE})
        self._client.close()

    def _next(self) -> NodeCondition | None:
        """Wait for something to write; None: it is time to stop."""
        with self._lock:
            while not self._is_stopping:
                now = self._clocks.monotonic()
                is_news = self._wanted != self._posted
                due = self._not_before if is_news else max(self._heartbeat_at, self._not_before)
                if self._wanted is not None and now >= due:
                    return self._wanted
                self._lock.wait(None if self._wanted is None else due - now)
            return None

    def _write(self, condition: NodeCondition) -> None:
        wall = self._clocks.wall()
        if self._posted is None or self._posted.is_true != condition.is_true:
            self._since = wall
        is_posted = self._request(
            {
                "type": TYPE,
                "status": str(condition.is_true),
                "reason": condition.reason,
                "message": condition.message,
                "lastHeartbeatTime": whole_time(wall),
                "lastTransitionTime": whole_time(self._since),
            }
        )
        now = self._clocks.monotonic()
        with self._lock:
            if is_posted:
                self._posted = condition
                self._not_before = now + REST_SECONDS
                self._heartbeat_at = now + HEARTBEAT_SECONDS * (0.9 + 0.2 * self._clocks.chance())

    def _request(self, condition: dict[str, Any]) -> bool:
        patch = {"status": {"conditions": [condition]}}
        try:
            self._client.request("PATCH", self._path, patch, STRATEGIC_MERGE_PATCH)
        except KubeError as exc:
            delay = doubled(FIRST_BACK_OFF_SECONDS, MAX_BACK_OFF_SECONDS, self._failures)
            pause = max(getattr(exc, "retry_after", 0.0), delay, self._spread())
            with self._lock:
                self._failures += 1
                self._not_before = self._clocks.monotonic() + pause * (
                    1 + 0.5 * self._clocks.chance()
                )
            is_forbidden = isinstance(exc, ForbiddenError)
            self.problem = "not allowed to patch nodes/status" if is_forbidden else str(exc)
            self._on_problem()
            return False
        self._failures, self.problem = 0, ""
        self._on_problem()
        return True
