"""Flap detection: sources that remount before their binds could be used.

To put a new file system under a bind costs little, and to wait is an outage, so a server may
crash as often as it likes as long as its mounts are of use to someone.  Only a mount that died
before its binds were on it, or a moment after, was recovered in vain; a source that does so
again and again has to stay mounted for some time, longer each time, before it is believed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from fusewatchd.model.actions import Outcome, OutcomeStatus, ReplaceMount
from fusewatchd.model.findings import Finding
from fusewatchd.model.ledger import SourceLife
from fusewatchd.model.mounts import Device, TargetKey
from fusewatchd.model.plan import Pause, Plan, Refusal
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason
from fusewatchd.plan.back_off import BackOff
from fusewatchd.plan.budget import source_of

INITIAL_SECONDS = 0.25
MOST_STEPS = 8
"""Mounts in vain beyond the limit that are remembered; by then the pause is the longest."""

Lives = Mapping[str, SourceLife]


@dataclass(frozen=True, slots=True)
class FlapRule:
    """When a source is left alone; times in seconds."""

    limit: int = 5
    """So many mounts in vain within ``window`` are borne."""
    window: float = 60.0
    life: float = 0.1
    """A mount that served its binds for less than this was recovered in vain."""
    pause_max: float = 3.0

    def stable_seconds(self, path: str, life: SourceLife) -> float:
        """Return for how long the source has to stay mounted; 0: it is trusted."""
        steps = len(life.unused_mounts) - self.limit
        if steps <= 0:
            return 0.0
        back_off = BackOff(min(INITIAL_SECONDS, self.pause_max), self.pause_max)
        return back_off.delay(TargetKey(0, path), steps)


def follow_sources(
    lives: Lives,
    findings: Iterable[Finding],
    outcomes: Iterable[Outcome],
    snapshot: Snapshot,
    rule: FlapRule,
    now: float,
) -> dict[str, SourceLife]:
    """Note which sources came and went since the last cycle."""
    served: dict[Device, float] = {}
    for outcome in outcomes:
        action = outcome.action
        if isinstance(action, ReplaceMount) and outcome.status is OutcomeStatus.RECOVERED:
            device = action.origin.device
            served[device] = max(served.get(device, 0.0), outcome.finished_at)
    paths = {source_of(finding) for finding in findings} - {""}
    return {path: _followed(path, lives.get(path), served, snapshot, rule, now) for path in paths}


def _followed(
    path: str,
    life: SourceLife | None,
    served: Mapping[Device, float],
    snapshot: Snapshot,
    rule: FlapRule,
    now: float,
) -> SourceLife:
    top = snapshot.table.top_at(path)
    device = top.device if top is not None else None
    connection = snapshot.connections.get(device) if device is not None else None
    lives_on = None if connection is not None and connection.is_dead else device
    if life is None:
        # Nobody knows how long it has been there, or its binds on it.
        return SourceLife(lives_on, served_at=float("-inf"))
    if life.device is not None and life.device in served:
        life = replace(life, served_at=max(life.served_at or 0.0, served[life.device]))
    if life.device is not None and life.device != lives_on:
        died_at = connection.answered_at if connection and device == life.device else now
        life = _ended(life, died_at, rule)
    if life.device is None and lives_on is not None:
        up_at = snapshot.seen_at.get(lives_on, now)
        life = SourceLife(lives_on, up_at, unused_mounts=life.unused_mounts)
    recent = tuple(moment for moment in life.unused_mounts if moment > now - rule.window)
    return replace(life, unused_mounts=recent) if recent != life.unused_mounts else life


def _ended(life: SourceLife, died_at: float, rule: FlapRule) -> SourceLife:
    unused_mounts = life.unused_mounts
    if life.served_at is None or died_at - life.served_at < rule.life:
        unused_mounts = (*unused_mounts, died_at)[-(rule.limit + MOST_STEPS) :]
    return SourceLife(None, unused_mounts=unused_mounts)


def pauses(lives: Lives, rule: FlapRule) -> tuple[Pause, ...]:
    """Return the sources that are not trusted now."""
    found = []
    for path, life in sorted(lives.items()):
        seconds = rule.stable_seconds(path, life)
        if seconds:
            found.append(Pause(path, len(life.unused_mounts), seconds))
    return tuple(found)


def hold_back(
    todo: Plan, findings: Iterable[Finding], lives: Lives, rule: FlapRule, now: float
) -> Plan:
    """Refuse what would be cloned from a source that has not stayed for long enough."""
    until = {
        path: life.up_at + seconds
        for path, life in lives.items()
        if (seconds := rule.stable_seconds(path, life)) and now < life.up_at + seconds
    }
    if not until:
        return todo
    targets = {action.key for action in todo.actions if isinstance(action, ReplaceMount)}
    return todo.without(
        Refusal(finding, Reason.SOURCE_FLAPPING, until[source_of(finding)])
        for finding in findings
        if finding.bind.key in targets and source_of(finding) in until
    )
