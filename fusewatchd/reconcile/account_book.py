"""Keeps the account of all FUSE mounts up to date, without a part in any recovery; pure.

The account is made some time after something has changed and while no mount is being replaced.
Only the namespaces whose table, or whatever their classes depend on, changed are counted again.
"""

from __future__ import annotations

from dataclasses import replace

from fusewatchd.diagnose.accounts import Accountant
from fusewatchd.model.accounts import NO_ACCOUNTS, Account, Accounts, account_of, add_up
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.mounts import Mount, MountNamespace
from fusewatchd.model.quota import Resource

REST_SECONDS = 0.2
"""After a change: a recovery has begun by then, and goes first."""
SETTLED_SECONDS = 1.5
"""What is not explained for less is no news: host and containers are looked at one by one."""


class AccountBook:
    """The account of the last look, and when it is to be made again."""

    def __init__(self, ignored_fs_types: frozenset[str]) -> None:
        """Begin with an empty account."""
        self.ignored_fs_types = ignored_fs_types
        self.accounts = NO_ACCOUNTS
        self.due_at: float | None = None
        """When ``settle`` has something to do; None while nothing changed."""
        self._cycle: CycleReport | None = None
        self._seen: tuple[object, ...] = ()
        self._foreign_stale = 0
        self._made: dict[int, tuple[tuple[Mount, ...], tuple[object, ...], Accounts]] = {}
        self._since: dict[tuple[int, int], float] = {}

    def note(self, cycle: CycleReport, *, is_idle: bool) -> CycleReport:
        """Return the cycle with the account; costs the same whatever is mounted.

        A cycle in which an outage ends waits for it: what still shows the dead file system is
        part of that news.  While workers are busy with another outage the last account has to do.
        """
        self._cycle = cycle
        if cycle.incidents_closed and is_idle:
            self._settle(cycle, cycle.finished_at)
        elif self._has_changed(cycle) and self.due_at is None:
            self.due_at = cycle.finished_at + REST_SECONDS
        return replace(cycle, accounts=self.accounts)

    def _has_changed(self, cycle: CycleReport) -> bool:
        if not self._seen or cycle.changes or cycle.foreign_stale != self._foreign_stale:
            return True
        pairs = zip(_state_of(cycle), self._seen, strict=True)
        return any(one is not other for one, other in pairs)

    def turn(self, now: float, *, is_idle: bool) -> bool:
        """Make the account of the last cycle, unless workers are busy; True: it is another one."""
        if self._cycle is None or not is_idle:
            self.due_at = now + REST_SECONDS
            return False
        return self._settle(self._cycle, now)

    def _settle(self, cycle: CycleReport, now: float) -> bool:
        before, self.due_at = self.accounts, None
        self._seen, self._foreign_stale = _state_of(cycle), cycle.foreign_stale
        made = self._account(cycle)
        waiting = self._unsettled(made, now)
        if waiting:
            self.due_at = now + SETTLED_SECONDS
            settled = tuple(one for one in made.unexplained if _key(one) not in waiting)
            made = replace(made, unexplained=settled)
        self.accounts = made
        return made != before

    def at_once(self, cycle: CycleReport) -> CycleReport:
        """Return the cycle with its account, for a process that looks once."""
        return replace(cycle, accounts=self._account(cycle))

    def _account(self, cycle: CycleReport) -> Accounts:
        snapshot = cycle.snapshot
        refused = (one.owner for one in cycle.over_quota)
        over = {one.owner.uid for one in refused if one.resource is Resource.BINDS}
        accountant = Accountant(snapshot, cycle.findings, cycle.ledger, self.ignored_fs_types, over)
        parts = [account_of(accountant.of_host())]
        made: dict[int, tuple[tuple[Mount, ...], tuple[object, ...], Accounts]] = {}
        for namespace in snapshot.namespaces:
            made[namespace.inode] = self._part(namespace, accountant)
            parts.append(made[namespace.inode][2])
        self._made = made
        return add_up(parts)

    def _part(
        self, namespace: MountNamespace, accountant: Accountant
    ) -> tuple[tuple[Mount, ...], tuple[object, ...], Accounts]:
        signature = accountant.signature(namespace)
        known = self._made.get(namespace.inode)
        if known is not None and known[0] is namespace.mounts and known[1] == signature:
            return known
        return namespace.mounts, signature, account_of(accountant.of_namespace(namespace))

    def _unsettled(self, made: Accounts, now: float) -> set[tuple[int, int]]:
        """Return the mounts that have not been unexplained for long enough."""
        keys = [_key(one) for one in made.unexplained]
        self._since = {key: self._since.get(key, now) for key in keys}
        return {key for key, since in self._since.items() if now - since < SETTLED_SECONDS}


def _state_of(cycle: CycleReport) -> tuple[object, ...]:
    """Return what is another object whenever it changed."""
    snapshot = cycle.snapshot
    return snapshot.table, snapshot.namespaces, snapshot.pods, snapshot.kubelet


def _key(one: Account) -> tuple[int, int]:
    return one.namespace, one.mount.mount_id
