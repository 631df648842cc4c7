"""Events on their way to the API server, posted by a thread of their own.

What is to be said and when: ``outbox``; how fast: ``pace``.
"""

from __future__ import annotations

import threading
from typing import Any

from fusewatchd.errors import CredentialsError, KubeError, ParseError
from fusewatchd.kube.clocks import Clocks
from fusewatchd.kube.endpoint import Endpoint, EndpointSource
from fusewatchd.kube.errors import (
    ConflictError,
    ForbiddenError,
    NoOwnerError,
    NotFoundError,
    ServerError,
    TooManyRequestsError,
    UnauthorizedError,
    UnreachableError,
)
from fusewatchd.kube.events.cluster_size import ClusterSize
from fusewatchd.kube.events.keeper import Keeper
from fusewatchd.kube.events.news import NewsBox, PosterNews
from fusewatchd.kube.events.objects import (
    EventsApi,
    Occurrences,
    collection_path,
    event_object,
    namespace_of,
    object_path,
    series_patch,
)
from fusewatchd.kube.events.outbox import Outbox
from fusewatchd.kube.events.pace import Pace, most_told
from fusewatchd.kube.events.series import Series, document_of
from fusewatchd.kube.events.volume_owners import VolumeOwners
from fusewatchd.kube.http import Client
from fusewatchd.rate_limit import Rate, doubled
from fusewatchd.report.events.draft import EventDraft, ObjectReference
from fusewatchd.threads import guarded_thread, place_of

FIRST_BACK_OFF_SECONDS = 0.5
MAX_BACK_OFF_SECONDS = 60.0
FORBIDDEN_REST_SECONDS = 60.0
MERGE_PATCH = "application/merge-patch+json"


class EventPoster:
    """Takes Events at any speed and posts them at the server's."""

    def __init__(
        self,
        endpoint: Endpoint | EndpointSource,
        instance: str,
        *,
        clocks: Clocks | None = None,
        writes: Rate | None = None,
        nodes: int = 0,
        keeper: Keeper | None = None,
    ) -> None:
        """Take the endpoint and the name of this node; nothing is sent before ``start``.

        Args:
            endpoint: the API server.
            instance: who reports; the name of the node.
            clocks: of a test; None: those of this machine.
            writes: what this node may write; None: its share, by the number of nodes.
            nodes: of the cluster; 0: the API server is asked.
            keeper: where Events are kept over a restart; None: they are not.
        """
        self._client = Client(endpoint)
        self._clocks = clocks or Clocks()
        self._owners = VolumeOwners(self._client, self._clocks.monotonic)
        self._keeper = keeper
        self._instance = instance
        self._api = EventsApi.EVENTS_V1
        self._outbox = Outbox(Pace(self._clocks.chance, writes))
        self._outbox.pace.take_nodes(nodes)
        self._size = None if nodes else ClusterSize(self._clocks.chance, self._clocks.monotonic())
        self._failures = 0
        self._current: Series | None = None
        """What the thread works on."""
        self._news = NewsBox()
        self._lock = threading.Condition()
        self._stop_at: float | None = None
        self._thread = guarded_thread("events", self._run, recover=self._give_up_current)

    def start(self) -> None:
        """Start the thread, with what an earlier run had left to say."""
        self._remember()
        self._thread.start()

    def post(self, draft: EventDraft) -> None:
        """Take an Event; returns at once."""
        now, wall = self._clocks.monotonic(), self._clocks.wall()
        with self._lock:
            dropped = self._outbox.add(draft, now, wall)
            if dropped:
                self._news.tell(dropped=dropped)
            self._lock.notify()
        self._keep()

    def spread(self) -> float:
        """Return a delay by chance that spreads one write of every node of the cluster."""
        return self._outbox.pace.spread()

    def most_told(self) -> int:
        """Return of how many pods a storm can be told one by one."""
        return most_told(self._outbox.pace.rate)

    def fileno(self) -> int:
        """Return what becomes readable when ``collect`` has something."""
        return self._news.fileno()

    def collect(self) -> PosterNews:
        """Return what happened since the last call."""
        with self._lock:
            return self._news.collect()

    def stop(self, seconds: float = 2.0) -> None:
        """Post what waits, for at most so long; a request that hangs is left behind."""
        with self._lock:
            self._stop_at = self._clocks.monotonic() + seconds
            self._lock.notify()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        with self._lock:
            left = self._outbox.unsaid
            if left and self._keeper is None:
                self._news.tell(dropped=left)
            self._news.close()
        self._keep()

    # -------------------------------------------------------------------- over a restart

    def _remember(self) -> None:
        if self._keeper is None:
            return
        now = self._clocks.monotonic()
        try:
            known = self._keeper.load(now, self._clocks.wall())
        except ParseError as exc:
            with self._lock:
                self._news.tell(problem=f"what an earlier run left to say is left out: {exc}")
            return
        with self._lock:
            self._outbox.restore(known, now)

    def _keep(self) -> None:
        if self._keeper is not None:
            self._keeper.save(self._document)

    def _document(self) -> dict[str, Any]:
        with self._lock:
            return document_of(self._outbox.all())

    # ------------------------------------------------------------------------- thread

    def _run(self) -> None:
        while True:
            with self._lock:
                series = self._next()
            if series is None:
                break
            if isinstance(series, ClusterSize):
                self._ask_size(series)
                continue
            self._current = series
            self._handle(series)
            self._current = None
            self._keep()
        self._client.close()

    def _give_up_current(self, failure: Exception) -> None:
        """Drop the Event at which this thread failed: the next one is not to wait for it."""
        series, self._current = self._current, None
        if series is not None:
            problem = f"{type(failure).__name__} at {place_of(failure)}"
            with self._lock:
                self._news.tell(failed=self._outbox.drop(series), problem=problem)

    def _handle(self, series: Series) -> None:
        """Send one request about an Event: whom it is about, or the Event itself."""
        is_new = not series.posted
        try:
            if series.regarding is None and self._look_up(series):
                return
            assert series.regarding is not None
            with self._lock:
                event = series.occurrences(series.regarding)
            self._write(event, is_new=is_new)
        except KubeError as exc:
            with self._lock:
                self._take_failure(series, exc, is_new=is_new)
        else:
            with self._lock:
                self._take_success(series, event.count)

    def _look_up(self, series: Series) -> bool:
        """Find out whom the server knows it to be about; True when the server was asked."""
        about, before = series.draft.regarding, self._owners.requests
        if isinstance(about, ObjectReference):
            series.regarding = about
            return False
        try:
            series.regarding = self._owners.find(about)
        finally:
            asked = self._owners.requests - before
            with self._lock:
                self._outbox.pace.take(max(0, asked - 1), self._clocks.monotonic())
        return asked > 0

    def _ask_size(self, size: ClusterSize) -> None:
        nodes = size.ask(self._client, self._clocks.monotonic())
        if nodes is not None:
            with self._lock:
                self._outbox.pace.take_nodes(nodes)
                self._news.tell()  # more, or fewer, can be told of now

    def _next(self) -> Series | ClusterSize | None:
        """Wait for an Event to write, or something to ask; None: it is time to stop."""
        while True:
            now, stop_at = self._clocks.monotonic(), self._stop_at
            if stop_at is not None and now >= stop_at:
                return None
            found = self._outbox.next(now, is_last=stop_at is not None)
            if isinstance(found, Series):
                return found
            if stop_at is not None and (found.until is None or self._failures):
                return None
            times = [] if found.until is None else [found.until]
            if self._size is not None and stop_at is None:
                if now >= self._size.due_at:
                    return self._size
                times.append(self._size.due_at)
            self._lock.wait(min(times) - now if times else None)

    def _write(self, event: Occurrences, *, is_new: bool) -> None:
        if is_new:
            path = collection_path(self._api, event.regarding)
            self._client.request("POST", path, event_object(self._api, event, self._instance))
            return
        patch = series_patch(self._api, event)
        self._client.request("PATCH", object_path(self._api, event), patch, MERGE_PATCH)

    # --------------------------------------------------------------------- what it led to

    def _take_success(self, series: Series, count: int) -> None:
        if series.posted:
            self._outbox.was_patched(series, count, self._clocks.monotonic())
        else:
            has_counts = self._api is EventsApi.CORE_V1
            self._outbox.was_created(series, count, has_counts=has_counts)
        self._failures = 0
        self._news.tell_posted()

    def _take_failure(self, series: Series, exc: KubeError, *, is_new: bool) -> None:
        now = self._clocks.monotonic()
        match exc:
            case UnreachableError() | TooManyRequestsError() | ServerError():
                self._back_off(now, getattr(exc, "retry_after", 0.0))
                self._news.complain(str(exc))
            case UnauthorizedError() | CredentialsError():
                self._outbox.retry_at = now + FORBIDDEN_REST_SECONDS
                self._failures += 1
                self._news.complain(str(exc))
            case ForbiddenError() if "being terminated" in str(exc):
                self._news.tell(dropped=self._outbox.drop(series))
            case NoOwnerError():
                self._leave_out(series, exc)
            case ForbiddenError():
                series.due = now + FORBIDDEN_REST_SECONDS
                verb = "create" if is_new else "patch"
                group = "events.k8s.io" if self._api is EventsApi.EVENTS_V1 else "core"
                where = namespace_of(series.regarding) if series.regarding else "?"
                self._news.complain(f"not allowed to {verb} events ({group}) in namespace {where}")
            case NotFoundError() if not is_new:
                series.posted = 0
                self._outbox.rename(series)
            case NotFoundError() if 'namespaces "' in str(exc):
                self._news.tell(dropped=self._outbox.drop(series))
            case NotFoundError() if self._api is EventsApi.EVENTS_V1:
                self._api = EventsApi.CORE_V1
            case ConflictError() if is_new:
                self._outbox.rename(series)
                series.due = now + FIRST_BACK_OFF_SECONDS
            case _:
                self._news.tell(failed=self._outbox.drop(series), problem=str(exc))

    def _leave_out(self, series: Series, exc: NoOwnerError) -> None:
        """Nobody is there to be told; that we may not even look is said once."""
        count = self._outbox.drop(series)
        missing = exc.missing_permission
        if missing:
            text = f"{exc}: there are no events on what stands for volumes"
            self._news.complain_of_missing(missing, text)
        self._news.tell(failed=count if missing else 0)

    def _back_off(self, now: float, retry_after: float) -> None:
        delay = doubled(FIRST_BACK_OFF_SECONDS, MAX_BACK_OFF_SECONDS, self._failures)
        self._failures += 1
        least = self._outbox.pace.seconds_between
        jitter = 0.5 + 0.5 * self._clocks.chance()
        self._outbox.retry_at = now + max(retry_after, max(delay, least) * jitter)
