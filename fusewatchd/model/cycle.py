"""One finished cycle as reporters and the status document see it.

It carries the ledger with which the cycle ended: an answer never mixes two moments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from fusewatchd.model.accounts import NO_ACCOUNTS, Accounts
from fusewatchd.model.actions import Outcome
from fusewatchd.model.findings import Bind, DeadRoot, Finding, Gap, Unproven
from fusewatchd.model.ledger import Ledger
from fusewatchd.model.mounts import Mount, MountNamespace, TargetKey
from fusewatchd.model.outages import Change, Incident
from fusewatchd.model.plan import Pause, Plan, RecoveryMode, Refusal, SupersededPolicy
from fusewatchd.model.quota import Refusal as QuotaRefusal
from fusewatchd.model.server_actions import NO_SERVER_ACTIONS, ServerReport
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason


class Trigger(Enum):
    """What woke the cycle (label ``trigger``); never used in a decision."""

    START = "start"
    MOUNTS = "mounts"
    DIRECTORY = "directory"
    SERVER_EXIT = "server_exit"
    SOCKET = "socket"
    PROBE = "probe"
    OUTCOME = "outcome"
    NAMESPACES = "namespaces"
    HOLDERS = "holders"
    HIDDEN_FILES = "hidden_files"
    PODS = "pods"
    KEEPER = "keeper"
    TIMER = "timer"
    RELOAD = "reload"
    ORDER = "order"


@dataclass(frozen=True, slots=True)
class CycleReport:
    """Everything reporters may know about a finished cycle."""

    number: int
    triggers: tuple[Trigger, ...]
    started_at: float
    finished_at: float
    snapshot: Snapshot
    findings: tuple[Finding, ...]
    plan: Plan
    outcomes: tuple[Outcome, ...]
    changes: tuple[Change, ...]
    ledger: Ledger
    """What is remembered after this cycle."""
    mode: RecoveryMode = RecoveryMode.RECOVER
    paused_until: float | None = None
    """In seconds since 1970; None: it is not paused."""
    superseded: SupersededPolicy = SupersededPolicy.REPORT
    incidents_opened: tuple[Incident, ...] = ()
    incidents_closed: tuple[Incident, ...] = ()
    foreign_stale: int = 0
    """Stale FUSE mounts in namespaces that are never entered."""
    pauses: tuple[Pause, ...] = ()
    unproven: tuple[Unproven, ...] = ()
    """Dead mounts in containers that are left alone because nothing tells whose they are."""
    unclaimed: tuple[tuple[MountNamespace, Mount], ...] = ()
    """FUSE mounts in pods' containers that are none of the volumes that are repaired."""
    dead_roots: tuple[DeadRoot, ...] = ()
    """Containers whose image has a dead layer."""
    uncovered: tuple[Bind, ...] = ()
    """Where a volume is not mounted that was, on the host or for a container."""
    dead_layers: Mapping[TargetKey, int] = field(default_factory=dict)
    """How many dead mounts are below those that work; they go when those are dead too."""
    accounts: Accounts = NO_ACCOUNTS
    """Of all FUSE mounts; may be that of a look shortly before."""
    server_actions: ServerReport = NO_SERVER_ACTIONS
    """What is done about servers, next to what is done about binds."""

    def pods_to_restart(self) -> tuple[str, ...]:
        """Return the pods that a new server cannot help, by directory uid."""
        roots = (root.pod_uid for root in self.dead_roots)
        return tuple(dict.fromkeys([*self.snapshot.pods_to_restart(), *roots]))

    @property
    def over_quota(self) -> tuple[QuotaRefusal, ...]:
        """Owners that want more of something than one owner may have."""
        return tuple(self.ledger.refused_owners.values())

    def reason_of(self, refusal: Refusal) -> Reason:
        """Return what a bind waits for: after an attempt, why that one did not succeed."""
        last = self.ledger.state(refusal.finding.bind.key).last_outcome
        if refusal.reason is Reason.BACK_OFF and last is not None:
            return last.reason if last.reason is not Reason.NONE else refusal.reason
        return refusal.reason

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What could not be seen."""
        return self.snapshot.gaps
