"""What is known of the pods of this node, and whether it is newer than what their binds tell.

Names never change, so an old list goes on giving them.  But only a list that was asked for
after the last bind came or went, and that has every pod of the node, can say that a pod is
*not* there.

No clock and no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone

from fusewatchd.model.findings import Gap
from fusewatchd.model.pods import Pod
from fusewatchd.observe.namespaces.container_owners import ListedPods

GAP = "kubelet"
MISSED_REFRESHES = 3
"""Lists that did not come: from then on none is expected soon."""


class Pods:
    """The last pod list and the binds that it is compared with."""

    def __init__(self) -> None:
        """Know nothing; as long as no kubelet is asked, this is how it stays."""
        self.known: Mapping[str, Pod] | None = None
        """By directory uid; None before the first list."""
        self.asked_at = 0.0
        """When ``known`` was asked for."""
        self._is_whole = False
        self._problem = ""
        self._paths: frozenset[str] = frozenset()
        self._changed_at = 0.0
        self._is_wanted = False
        self._refresh_seconds = 0.0
        self._expected_since = 0.0
        self._wall_offset = 0.0

    def expect_lists(self, refresh_seconds: float, now: float, wall: float) -> None:
        """Note that a list comes every so many seconds from now on; 0: none is asked for.

        Args:
            refresh_seconds: between two lists when nothing changes.
            now: monotonic.
            wall: the same moment, seconds since the epoch.
        """
        self._refresh_seconds = refresh_seconds
        self._expected_since, self._wall_offset = now, wall - now

    def take_list(self, pods: Iterable[Pod], asked_at: float, *, is_whole: bool) -> None:
        """Take a list that the kubelet was asked for at ``asked_at``.

        One that may lack pods (``is_whole`` is false) names those that it has, and no more.
        """
        self.known = {pod.directory_uid: pod for pod in pods}
        self.asked_at = asked_at
        self._is_whole = is_whole
        self._problem = ""

    def change_kubelet(self) -> None:
        """Note that another one is asked from now on, or none.

        Names and deletions stay known, for a deletion is never taken back; but until it has
        answered, no pod is proven not to be there.
        """
        self._is_whole, self._problem = False, ""

    def take_problem(self, problem: str) -> None:
        """Note that the kubelet does not answer; what was known stays."""
        self._problem = problem

    def take_binds(self, paths: Iterable[str], now: float) -> None:
        """Compare with the binds that are there now: one that came or went wants a new list."""
        current = frozenset(paths)
        if current != self._paths:
            self._paths, self._changed_at = current, now
            self.want_list()

    def want_list(self) -> None:
        """Note that a new list is worth asking for."""
        self._is_wanted = True

    def take_wish(self) -> bool:
        """Return True when a new list is to be asked for; the wish is fulfilled by that."""
        is_wanted, self._is_wanted = self._is_wanted, False
        return is_wanted

    @property
    def are_current(self) -> bool:
        """True when a pod that the list lacks is really not there."""
        return self._is_whole and not self._problem and self.asked_at > self._changed_at

    @property
    def listed(self) -> ListedPods:
        """Return the list as far as it says whose a container is."""
        return ListedPods(self.known, self.asked_at if self._is_whole else 0.0)

    def is_overdue(self, now: float) -> bool:
        """Return True when a list should have come for long, whatever keeps it."""
        if not self._refresh_seconds:
            return False
        limit = MISSED_REFRESHES * self._refresh_seconds
        return now - max(self.asked_at, self._expected_since) > limit

    def gap(self, now: float) -> Gap | None:
        """Return what cannot be seen."""
        if self._problem:
            return Gap(GAP, self._problem)
        if not self.is_overdue(now):
            return None
        since = max(self.asked_at, self._expected_since) + self._wall_offset
        at = datetime.fromtimestamp(since, timezone.utc)
        return Gap(GAP, f"no list of pods came since {at:%Y-%m-%dT%H:%M:%SZ}")
