"""What is to be done now, and what is left alone for which reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from fusewatchd.model.actions import Action, ReplaceMount
from fusewatchd.model.findings import Finding
from fusewatchd.model.mounts import TargetKey
from fusewatchd.model.verdicts import Reason


class RecoveryMode(Enum):
    """Act, or only say what would be done."""

    RECOVER = "recover"
    REPORT = "report"
    PAUSED = "paused"
    """As ``REPORT``, for a while: ``fusewatchd pause``.  Not for a configuration file."""

    @classmethod
    def configurable(cls) -> tuple[RecoveryMode, ...]:
        """Return those that a configuration file may name."""
        return cls.RECOVER, cls.REPORT

    @property
    def withholds(self) -> Reason:
        """Why nothing is changed on the node; ``NONE``: it is."""
        return _WITHHELD[self]


_WITHHELD = {
    RecoveryMode.RECOVER: Reason.NONE,
    RecoveryMode.REPORT: Reason.REPORT_ONLY,
    RecoveryMode.PAUSED: Reason.PAUSED,
}


class SupersededPolicy(Enum):
    """What to do with a bind whose old server still answers while a new one is mounted."""

    REPORT = "report"
    REBIND = "rebind"


class OnDiskPolicy(Enum):
    """What to do with a container that has the node's directory instead of its volume."""

    REPORT = "report"
    REPLACE = "replace"


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
    unused_mounts: int
    """Mounts of late that were of no use to anybody."""
    stable_seconds: float
