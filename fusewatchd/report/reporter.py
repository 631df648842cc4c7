"""What a reporter is, and what several of them need to tell news from what was said before.

A reporter gets finished cycles and has no way back: it may drop what it cannot deliver at
once, it never waits, and it never touches a path of the node.  Whatever a cycle merely
repeats (a bind that is still stale, a refusal that still holds) is no news, so reporters
remember what they said, in memory that is bounded by the number of binds.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass
from typing import Protocol

from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.findings import Finding
from fusewatchd.model.mounts import TargetKey
from fusewatchd.model.plan import Refusal
from fusewatchd.model.pods import Pod
from fusewatchd.model.servers import Connection
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason, Verdict


class Reporter(Protocol):
    """Tells somebody about finished cycles."""

    def report(self, cycle: CycleReport) -> None:
        """Take a finished cycle; return at once."""

    def close(self) -> None:
        """Release what is held; nothing is reported afterwards."""


WAITING = frozenset(
    {
        Reason.SOURCE_MISSING,
        Reason.SOURCE_UNPROVEN,
        Reason.LAYERS_UNPROVEN,
        Reason.HOST_BIND_STALE,
        Reason.BACK_OFF,
        Reason.GRACE,
        Reason.UNCONFIRMED,
        Reason.SOURCE_DEAD,
        Reason.AWAITS_ACTION,
    }
)
"""Refusals that are part of every outage, or of every end of a pod, and pass by themselves."""


@dataclass(frozen=True, slots=True)
class VerdictChange:
    """A bind is judged otherwise than in the cycle before; None: it was not there."""

    finding: Finding
    before: Verdict | None


class VerdictMemory:
    """Finds the binds whose verdict changed.

    A phase covers several verdicts, so the ``changes`` of a cycle do not show how a slow
    bind becomes a hung one.
    """

    def __init__(self) -> None:
        """Begin with no bind known."""
        self._verdicts: dict[TargetKey, Verdict] = {}

    def changes(self, findings: Iterable[Finding]) -> list[VerdictChange]:
        """Return what is new in these findings, and remember them."""
        verdicts: dict[TargetKey, Verdict] = {}
        changed: list[VerdictChange] = []
        for finding in findings:
            key = finding.bind.key
            verdicts[key] = finding.verdict
            before = self._verdicts.get(key)
            if before is not finding.verdict:
                changed.append(VerdictChange(finding, before))
        self._verdicts = verdicts
        return changed


class NewsMemory:
    """Remembers the last thing said about each bind."""

    def __init__(self) -> None:
        """Begin with nothing said."""
        self._said: dict[TargetKey, Hashable] = {}

    def is_news(self, key: TargetKey, word: Hashable) -> bool:
        """Return False when just this was the last thing said about the bind."""
        if self._said.get(key) == word:
            return False
        self._said[key] = word
        return True

    def keep_only(self, keys: Collection[TargetKey]) -> None:
        """Forget all other binds."""
        for key in self._said.keys() - keys:
            del self._said[key]


def unwell_keys(cycle: CycleReport) -> frozenset[TargetKey]:
    """Return the binds about which there may be something left to say."""
    return frozenset(
        finding.bind.key for finding in cycle.findings if finding.verdict is not Verdict.HEALTHY
    )


def new_refusals(cycle: CycleReport, memory: NewsMemory) -> list[Refusal]:
    """Return the refusals whose reason was not the last one said for that bind.

    A back-off is not told: the failure before it was.
    """
    memory.keep_only(unwell_keys(cycle))
    return [
        refusal
        for refusal in cycle.plan.refused
        if refusal.reason is not Reason.BACK_OFF
        and memory.is_news(refusal.finding.bind.key, (refusal.reason, refusal.finding.source_errno))
    ]


def is_waiting(refusal: Refusal) -> bool:
    """Return True for one that is part of every outage; a new server that fails is not."""
    return refusal.reason in WAITING and not refusal.finding.source_errno


def is_about_abort(refusal: Refusal) -> bool:
    """Return True when it is a hung connection that is left alone, and not a dead mount."""
    return refusal.finding.verdict in (Verdict.HUNG, Verdict.UNKNOWN)


def connection_of(finding: Finding, snapshot: Snapshot) -> Connection | None:
    """Return the FUSE connection that a bind shows."""
    mount = finding.bind.mount
    return snapshot.connections.get(mount.device) if mount is not None else None


def is_disconnected(finding: Finding, snapshot: Snapshot) -> bool:
    """Return True for a bind that is stale because its server is gone."""
    mount = finding.bind.mount
    is_dead = mount is not None and snapshot.is_dead(mount.device)
    return is_dead and finding.verdict is Verdict.STALE


def pod_of(finding: Finding, snapshot: Snapshot) -> Pod | None:
    """Return the pod of a bind; None while the pod list does not show it."""
    return (snapshot.pods or {}).get(finding.bind.path.pod_uid)
