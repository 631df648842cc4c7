"""The other mount namespaces as they are believed to be: when they are looked at, what was seen."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from fusewatchd.model.actions import Outcome
from fusewatchd.model.findings import Gap
from fusewatchd.model.held import NO_KEEPER
from fusewatchd.model.mounts import Device, MountNamespace
from fusewatchd.model.namespace_tables import NamespaceTables
from fusewatchd.model.quota import RefusedOwner
from fusewatchd.model.servers import FuseServer
from fusewatchd.observe.namespaces.container_owners import (
    ListedPods,
    are_all_listed,
    of_no_pod,
)
from fusewatchd.observe.namespaces.scanner import (
    NamespaceScanner,
    ScanResult,
    UnfinishedWalkError,
)
from fusewatchd.observe.namespaces.schedule import ScanSchedule
from fusewatchd.observe.namespaces.view import NamespaceView


class NamespaceWatch:
    """Owns the scans of /proc and what the last ones found."""

    def __init__(self, scanner: NamespaceScanner) -> None:
        """Plan the first scan for now."""
        self.period = 0.0
        """Seconds between the beginnings of two looks, at most."""
        self.keeper = NO_KEEPER
        """It has descriptors of FUSE connections, and serves none."""
        self.gaps: tuple[Gap, ...] = ()
        self.servers: dict[Device, tuple[FuseServer, ...]] = {}
        self.anonymous_servers: tuple[FuseServer, ...] = ()
        """Servers of which the kernel does not tell the connection."""
        self.refused_owners: tuple[RefusedOwner, ...] = ()
        """Of whom the last look that ended did not see everything."""
        self.tables = NamespaceTables()
        """The mounts of all of them, indexed."""
        self._scanner = scanner
        self._view = NamespaceView()
        self._schedule = ScanSchedule()

    @property
    def all(self) -> tuple[MountNamespace, ...]:
        """Every namespace of the last look, with what actions changed since then."""
        return self._view.namespaces

    def settled(self, listed: ListedPods, pods: Collection[str]) -> tuple[MountNamespace, ...]:
        """Return them with the owners that the kubelet's list gives or denies.

        ``pods`` are the names of directories of pods.
        """
        return self._view.settled(listed, pods)

    def of_no_pod(
        self, settled: Iterable[MountNamespace], listed: ListedPods, devices: Collection[Device]
    ) -> tuple[str, ...]:
        """Return the ids of containers that may be any pod's, as ``container_owners`` does."""
        return of_no_pod(settled, listed, self._view.seen, devices)

    def are_all_listed(self, listed: ListedPods, now: float) -> bool:
        """False when a newer list may name the owner of a container."""
        return are_all_listed(self._view.namespaces, listed, self._view.seen, now)

    @property
    def looked_at(self) -> float:
        """When the last look that ended had begun; 0: there was none."""
        return self._schedule.looked_at

    @property
    def due_at(self) -> float:
        """When to ``look_if_due``."""
        return self._schedule.due_at

    def next_deadline(self) -> float | None:
        """Return when ``collect`` must be called although nothing arrived."""
        return self._scanner.next_deadline()

    def want_now(self) -> None:
        """Plan a look for now, whatever was planned."""
        self._schedule.want_now()

    def expect_containers(self, now: float) -> None:
        """Plan a look for soon: a container may have been started."""
        self._schedule.expect_containers(now)

    def look_if_due(self, now: float) -> None:
        """Begin a look when it is time to."""
        if self._schedule.due_at > now:
            return
        self._schedule.begin(now, self.period)
        self._scanner.request(now)
        if not self._scanner.is_running:
            self.gaps = (Gap("namespaces", "there is nothing to make a worker of"),)

    def collect(self, in_flight: Collection[int], now: float) -> ScanResult | None:
        """Take in a look that has ended; ``in_flight`` are namespaces that are being changed."""
        try:
            result = self._scanner.collect(now)
        except UnfinishedWalkError as exc:
            self.gaps = (Gap("namespaces", str(exc)),)
            # A container that was started meanwhile is known all the same.
            seen = (*self._view.namespaces, *exc.new)
            self._view.take_look(seen, exc.started_at, in_flight, now)
            return None
        if result is None:
            return None
        result = result.without_keeper(self.keeper)
        self.gaps, self.refused_owners = result.gaps, result.refused_owners
        self.servers, self.anonymous_servers = result.servers, result.anonymous
        self._schedule.end(result.started_at, result.elapsed)
        self.tables.keep_only([namespace.inode for namespace in result.namespaces])
        began_at, kept = result.started_at, result.kept
        if self._view.take_look(result.namespaces, began_at, in_flight, now, kept):
            self.expect_containers(now)
        return result

    def take_outcomes(self, outcomes: Iterable[Outcome]) -> None:
        """Note what actions changed in other namespaces."""
        self._view.take_outcomes(outcomes)

    def expect_late_births(self, now: float) -> None:
        """Plan the looks that follow a recovery."""
        self._schedule.expect_late_births(now)
