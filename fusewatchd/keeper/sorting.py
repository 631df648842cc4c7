"""Sorting the requests of one connection whose server is dead: who waits, who gets which error.

Pure: times are arguments, and callers are looked at through what is given.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from fusewatchd.keeper.access import Access
from fusewatchd.keeper.fuse_requests import FuseRequest, Kind
from fusewatchd.keeper.protocol import Counts, State
from fusewatchd.keeper.signals import Signal

MAX_WAITING_OF_POD = 1024
"""Callers of one pod that wait; more get ENOTCONN.  All pods of unknown callers count as one."""
MAX_WAITING = 8192
"""Callers of one connection that wait."""
LOOK_AGAIN_SECONDS = 0.05
"""Between two looks at a caller after a signal: the kernel reports only the first one."""
MAX_LOOKS_OF_POD = 128
"""Callers of one pod that are looked at in one turn."""

UNKNOWN = ""
"""The pod of a caller whose pid is not known."""

Reply = tuple[int, int]
"""``unique`` of a request, and the errno that answers it; 0: done."""


class Seen(Protocol):
    """What ``/proc`` shows of a caller."""

    def cgroups(self, pid: int) -> list[str]:
        """Return its cgroups; none where it cannot be seen."""

    def signal(self, pid: int) -> Signal:
        """Return for what it has to be let go."""


@dataclass(slots=True)
class _Waiting:
    pid: int
    pod: str
    since: float
    may_lock: bool


class Sorter:
    """Takes each request of one connection from the death of its server on.

    Every method returns what is to be answered now; ``take`` answers whatever does not wait.
    """

    def __init__(self, access: Access, seen: Seen, state: State = State.HOLDING) -> None:
        """Nothing waits yet."""
        self.access = access
        self.state = state
        self._counts: Counter[str] = Counter()
        self._longest = 0.0
        self._seen = seen
        self._lets_locks_wait = True
        self._waiting: dict[int, _Waiting] = {}
        """By ``unique``, oldest first."""
        self._of_pod: Counter[str] = Counter()
        self._signalled: dict[str, dict[int, None]] = {}
        """By pod: who waits on after a signal; the next one to be looked at comes first."""

    @property
    def counts(self) -> Counts:
        """What became of the requests so far."""
        return Counts(**self._counts, longest_seconds=self._longest)

    @property
    def waiting(self) -> int:
        """How many callers wait."""
        return len(self._waiting)

    @property
    def looks_again(self) -> bool:
        """True while ``look_again`` has something to look at."""
        return bool(self._signalled)

    def callers(self) -> set[int]:
        """Return the threads that wait, as far as they are known."""
        return {one.pid for one in self._waiting.values()}

    def oldest_seconds(self, now: float) -> float:
        """Return for how long the first caller has waited; 0 when none waits."""
        first = next(iter(self._waiting.values()), None)
        return max(0.0, now - first.since) if first else 0.0

    def take(self, request: FuseRequest, now: float) -> list[Reply]:
        """Sort one request."""
        match request.kind:
            case Kind.NOTHING:
                return []
            case Kind.DONE:
                return [(request.unique, 0)]
            case Kind.INTERRUPT:
                return self._interrupt(request.interrupted, now)
            case Kind.DESCRIPTOR:
                self._counts["descriptor"] += 1
                aborted = request.is_resent
                return [(request.unique, errno.ECONNABORTED if aborted else errno.ENOTCONN)]
            case Kind.PATH:
                error = self._error_of(request, now)
                return [(request.unique, error)] if error else []

    def replaced(self, now: float) -> list[Reply]:
        """Send all callers to the new mount, from now on too."""
        self.state = State.ANSWERING
        return self._let_go(list(self._waiting), errno.ESTALE, "stale", now)

    def end(self, now: float) -> list[Reply]:
        """End every wait: the connection is being let go."""
        self.state = State.ENDING
        return self._let_go(list(self._waiting), errno.ENOTCONN, "given_up", now)

    def allow(self, access: Access, now: float) -> list[Reply]:
        """Let others wait from now on, and those no longer that may not."""
        self.access = access
        gone = [
            unique
            for unique, one in self._waiting.items()
            if one.pod != UNKNOWN and (one.pod in access.deleting or one.pod not in access.pods)
        ]
        return self._let_go(gone, errno.ENOTCONN, "deleted", now)

    def free_locks(self, now: float) -> list[Reply]:
        """Let go of callers that may hold a lock: other threads stand still.

        At first of those whose requests are of that kind, which do not wait later either.  When
        that did not help, of all: any request may come from a call that holds one.
        """
        self._lets_locks_wait = False
        those = [unique for unique, one in self._waiting.items() if one.may_lock]
        return self._let_go(those or list(self._waiting), errno.ENOTCONN, "locked", now)

    def look_again(self, now: float) -> list[Reply]:
        """Look at the callers that a signal has reached, some of each pod."""
        replies: list[Reply] = []
        for pod in list(self._signalled):
            those = self._signalled[pod]
            for unique in list(those)[:MAX_LOOKS_OF_POD]:
                found = self._after_signal(unique, now)
                replies += found
                if not found:
                    del those[unique]
                    those[unique] = None
        return replies

    def _error_of(self, request: FuseRequest, now: float) -> int:
        """Return what a request by path is answered with; 0: it waits."""
        if request.is_resent and request.changes:
            # The dead server may have done it.
            self._counts["descriptor"] += 1
            return errno.ECONNABORTED
        pod = self._pod(request.pid)
        if pod is None:
            self._counts["host"] += 1
            return errno.ENOTCONN
        if pod in self.access.deleting:
            self._counts["deleted"] += 1
            return errno.ENOTCONN
        if self.state is not State.HOLDING:
            is_answering = self.state is State.ANSWERING
            self._counts["stale" if is_answering else "given_up"] += 1
            return errno.ESTALE if is_answering else errno.ENOTCONN
        if request.may_lock and not self._lets_locks_wait:
            self._counts["locked"] += 1
            return errno.ENOTCONN
        if self._of_pod[pod] >= MAX_WAITING_OF_POD or len(self._waiting) >= MAX_WAITING:
            self._counts["too_many"] += 1
            return errno.ENOTCONN
        self._counts["waited"] += 1
        if request.is_resent:
            self._counts["in_flight"] += 1
        self._waiting[request.unique] = _Waiting(request.pid, pod, now, request.may_lock)
        self._of_pod[pod] += 1
        return 0

    def _pod(self, pid: int) -> str | None:
        """Return the pod of a caller; None for one that must not wait."""
        if not pid:
            return UNKNOWN
        if not self.access.pids_are_hosts:
            # It is seen from the pid namespace of the server: it is in the server's container.
            return None
        cgroups = self._seen.cgroups(pid)
        if self.access.servers.above(cgroups) is not None:
            return None
        return self.access.pods.above(cgroups)

    def _interrupt(self, unique: int, now: float) -> list[Reply]:
        one = self._waiting.get(unique)
        if one is None:
            return []
        if not one.pid:
            # There is no process to look at.
            return self._let_go([unique], errno.EINTR, "signalled", now)
        self._signalled.setdefault(one.pod, {})[unique] = None
        return self._after_signal(unique, now)

    def _after_signal(self, unique: int, now: float) -> list[Reply]:
        match self._seen.signal(self._waiting[unique].pid):
            case Signal.NONE:
                return []
            case Signal.KILL:
                return self._let_go([unique], errno.EINTR, "signalled", now)
            case Signal.END:
                return self._let_go([unique], errno.ENOTCONN, "signalled", now)

    def _let_go(self, those: Iterable[int], error: int, name: str, now: float) -> list[Reply]:
        replies: list[Reply] = []
        for unique in those:
            one = self._waiting.pop(unique)
            self._of_pod[one.pod] -= 1
            if not self._of_pod[one.pod]:
                del self._of_pod[one.pod]
            signalled = self._signalled.get(one.pod, {})
            signalled.pop(unique, None)
            if not signalled:
                self._signalled.pop(one.pod, None)
            self._longest = max(self._longest, now - one.since)
            replies.append((unique, error))
        self._counts[name] += len(replies)
        return replies
