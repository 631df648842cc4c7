"""The values of one cycle after observation: findings, plan, outages; what is done: ``actions``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from fusewatchd.actions import (
    Action,
    Outcome,
    ReplaceMount,
)
from fusewatchd.liveness import ServerEnd
from fusewatchd.model import BindPath, Device, Mount, MountNamespace, SourceAnswer, TargetKey
from fusewatchd.verdicts import Reason, Verdict

# ------------------------------------------------------------------------ diagnosis


@dataclass(frozen=True, slots=True)
class Bind:
    """One place where a pod sees a FUSE file system, on the host or in a container."""

    key: TargetKey
    path: BindPath
    mount: Mount | None
    """The topmost mount there; None when a remembered bind shows its bare directory."""
    depth: int
    """How many mounts are stacked at this path."""
    driver: str
    """CSI driver name, or the FUSE subtype; a metric label after capping."""
    source: SourceAnswer
    namespace: MountNamespace | None = None
    """The container's namespace; None on the host."""
    origin: TargetKey | None = None
    """For a container mount: its pod's bind on the host."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict on one bind and what it rests on."""

    bind: Bind
    verdict: Verdict
    evidence: str
    source_mount: Mount | None = None
    """The live mount that the bind should show; None while there is none."""
    refusal: Reason = Reason.NONE
    """Why a bind that is not healthy cannot be replaced, as far as diagnosis can tell."""
    source_errno: int = 0
    """With what its new source answers, where that is why."""


@dataclass(frozen=True, slots=True)
class Unproven:
    """A dead mount in a pod's container that nothing proves to be a copy of one of its binds."""

    pod_uid: str
    key: TargetKey
    device: Device


# ----------------------------------------------------------------------------- plan


class RecoveryMode(Enum):
    """Act, or only say what would be done."""

    RECOVER = "recover"
    REPORT = "report"


class SupersededPolicy(Enum):
    """What to do with a bind whose old server still answers while a new one is mounted."""

    REPORT = "report"
    REBIND = "rebind"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that is broken and is left alone, with the reason: silence is no decision."""

    finding: Finding
    reason: Reason
    retry_at: float | None = None
    """When the same target is looked at again; None: when the node changes."""
    detail: str = ""
    """What would have been done, where that is more than a replacement."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, in order, and what not to do."""

    actions: tuple[Action, ...] = ()
    refused: tuple[Refusal, ...] = ()

    def without(self, refusals: Iterable[Refusal]) -> Plan:
        """Return the plan with these refused, and without the replacements they refuse."""
        more = tuple(refusals)
        keys = {refusal.finding.bind.key for refusal in more}
        kept = [a for a in self.actions if a.key not in keys or not isinstance(a, ReplaceMount)]
        return Plan(tuple(kept), self.refused + more)

    def explained(self, reasons: Mapping[TargetKey, Reason]) -> Plan:
        """Return the plan with a better reason for what waits for its server to come back.

        ``reasons`` are of binds on the host; containers wait for the same thing as theirs.
        """
        if not reasons:
            return self
        refused = []
        for refusal in self.refused:
            bind = refusal.finding.bind
            better = reasons.get(bind.origin or bind.key)
            if better is not None and refusal.reason in _WITHOUT_SERVER:
                refusal = replace(refusal, reason=better)
            refused.append(refusal)
        return Plan(self.actions, tuple(refused))


_WITHOUT_SERVER = frozenset(
    {
        Reason.NO_SOURCE,
        Reason.DIRECT_MOUNT,
        Reason.SOURCE_MISSING,
        Reason.SOURCE_UNPROVEN,
        Reason.HOST_BIND_STALE,
    }
)


@dataclass(frozen=True, slots=True)
class Pause:
    """A source that comes and goes, and is not believed before it has stayed for a while."""

    source_path: str
    in_vain: int
    """Mounts of late that were of no use to anybody."""
    stable_seconds: float


# --------------------------------------------------------------------------- report


class Phase(Enum):
    """Where a bind is in its life; the table of transitions is in ``lifecycle``."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    """Slow, hung or superseded: watched, nothing to replace it with or no reason to."""
    STALE = "stale"
    RECOVERING = "recovering"
    COOLDOWN = "cooldown"
    """The last attempt failed and its back-off runs."""
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Change:
    """One bind passed from one phase to another in this cycle."""

    finding: Finding
    before: Phase
    after: Phase
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Incident:
    """One outage of one FUSE connection, from its server's death to the last pod healed."""

    device: Device
    """Device of the dead superblock."""
    driver: str
    source_path: str
    noticed_at: float
    server_gone_at: float | None = None
    source_up_at: float | None = None
    recovered_at: float | None = None
    targets: frozenset[TargetKey] = frozenset()
    """Binds that were hit."""
    open_targets: frozenset[TargetKey] = frozenset()
    """Binds not yet verified; recovered when this is empty."""
    recovered_targets: frozenset[TargetKey] = frozenset()
    last_recovery_at: float | None = None
    """When the latest of them was read back; ``recovered_at`` once nothing is open."""
    end: ServerEnd | None = None
    """What is known of the end of its server."""
    source_refused: Reason | None = None
    """Why what is mounted at the source by now is not taken for it."""

    @property
    def began_at(self) -> float:
        """When the outage began, as far as that was seen."""
        return self.noticed_at if self.server_gone_at is None else self.server_gone_at

    @property
    def outage_seconds(self) -> float | None:
        """From the end of the server to the last bind; None while, or where, that is not so."""
        return None if self.recovered_at is None else max(0.0, self.recovered_at - self.began_at)

    @property
    def recovery_seconds(self) -> float | None:
        """How long it took once there was something to bind to, and a need for it."""
        return _recovery_seconds(self)


@dataclass(frozen=True, slots=True)
class Outage:
    """What became of an incident.  Times are of the monotonic clock, which lasts as long as
    the boot, so they mean the same to a later run."""

    device: Device
    """Of the superblock that died."""
    source_path: str
    noticed_at: float
    ended_at: float
    server_gone_at: float | None = None
    source_up_at: float | None = None
    recovered_at: float | None = None
    """None: nothing was replaced; unmounted, mounted anew by others, or switched off."""
    binds: int = 0
    recovered: int = 0

    @property
    def began_at(self) -> float:
        """When the server was gone, as far as that was seen."""
        return self.noticed_at if self.server_gone_at is None else self.server_gone_at

    @property
    def recovery_seconds(self) -> float | None:
        """As that of the incident."""
        return _recovery_seconds(self)


def _recovery_seconds(outage: Incident | Outage) -> float | None:
    """Count from the later of two moments: the source is visible, the old server is gone.

    While both servers live nobody lacks anything, however long a drain takes.
    """
    if outage.source_up_at is None or outage.recovered_at is None:
        return None
    return max(0.0, outage.recovered_at - max(outage.source_up_at, outage.began_at))
