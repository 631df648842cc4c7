"""Metrics of the account of all FUSE mounts."""

from __future__ import annotations

from fusewatchd.model.accounts import NO_ACCOUNTS, Accounts, MountClass
from fusewatchd.model.cycle import CycleReport
from fusewatchd.report.metrics.exposition import Exposition


class AccountMetrics:
    """The sums of all classes."""

    def __init__(self, series: Exposition) -> None:
        """Make the series."""
        self._mounts = series.gauge(
            "fusewatchd_fuse_mounts",
            "FUSE mounts of all mount namespaces that were read; each is in one class.",
            "class",
        )
        self._dead = series.gauge(
            "fusewatchd_dead_fuse_mounts",
            "FUSE mounts whose server is gone, in classes that had one since the start.",
            "class",
        )
        self._had_dead: set[MountClass] = set()
        self._set(NO_ACCOUNTS)

    def report(self, cycle: CycleReport) -> None:
        """Take the sums, if they are other ones."""
        if cycle.accounts is not self._accounts:
            self._set(cycle.accounts)

    def _set(self, accounts: Accounts) -> None:
        self._accounts = accounts
        for kind in MountClass:
            one = accounts.of(kind)
            self._mounts.labels(kind.value).set(one.mounts)
            if one.dead or kind in self._had_dead:
                self._had_dead.add(kind)
                self._dead.labels(kind.value).set(one.dead)
