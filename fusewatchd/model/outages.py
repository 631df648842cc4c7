"""What becomes of binds: their phases, and outages from the first bind to the last."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fusewatchd.model.actions import Outcome
from fusewatchd.model.findings import Finding
from fusewatchd.model.mounts import Device, TargetKey
from fusewatchd.model.servers import ServerEnd
from fusewatchd.model.verdicts import Reason


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
