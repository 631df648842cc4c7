"""What the log says of actions that have ended, and of connections that are aborted."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from fusewatchd.log import Level, Log, Value
from fusewatchd.model.actions import (
    AbortConnection,
    DetachOrphan,
    Outcome,
    OutcomeStatus,
    ReplaceMount,
)
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.findings import Finding
from fusewatchd.model.mounts import Device, TargetKey
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.report.log.fields import bind_fields, grouped, milliseconds, whose, why
from fusewatchd.report.reporter import NewsMemory, unwell_keys
from fusewatchd.text import counted

_ENDINGS: dict[OutcomeStatus, tuple[Level, str]] = {
    OutcomeStatus.FAILED: (Level.WARNING, "could not be replaced"),
    OutcomeStatus.REFUSED: (Level.WARNING, "refused"),
    OutcomeStatus.SKIPPED: (Level.INFO, "left alone: changed in the meantime"),
    OutcomeStatus.DETACHED: (Level.INFO, "freed of a mount of ours"),
}


MAX_PAIRS = 256


class OutcomeLog:
    """A part of the log's reporter."""

    def __init__(self, log: Log) -> None:
        """Tell everything to ``log``."""
        self._log = log
        self._ended = NewsMemory()
        self._types: deque[tuple[Device, Device | None]] = deque(maxlen=MAX_PAIRS)

    def report(self, cycle: CycleReport) -> None:
        """Say what was done, and what could not be done."""
        findings = {finding.bind.key: finding for finding in cycle.findings}
        for outcome in cycle.outcomes:
            self._tell_outcome(outcome, findings.get(outcome.action.key), cycle.snapshot)
        done, other = [], []
        for outcome in cycle.outcomes:
            if isinstance(outcome.action, AbortConnection):
                continue
            word = (outcome.status, outcome.reason, outcome.errno)
            is_news = self._ended.is_news(outcome.action.key, word)
            if outcome.status is OutcomeStatus.RECOVERED:
                done.append(outcome)
            elif outcome.status is OutcomeStatus.DETACHED and isinstance(
                outcome.action, DetachOrphan
            ):
                self._tell_detached(outcome)
            elif is_news:
                other.append(outcome)
        over = [outcome for outcome in done if _is_over(outcome)]
        for outcomes in grouped(over, _device_pair).values():
            self._tell_covered(outcomes, _of(outcomes, findings), cycle.snapshot)
        replaced = [outcome for outcome in done if not _is_over(outcome)]
        for outcomes in grouped(replaced, _device_pair).values():
            self._tell_replaced(outcomes, _of(outcomes, findings), cycle.snapshot)
        for outcomes in grouped(other, lambda o: (o.status, o.reason, o.errno)).values():
            self._tell_not_replaced(outcomes, _of(outcomes, findings), cycle.snapshot)
        self._ended.keep_only(unwell_keys(cycle))

    def _tell_replaced(
        self, outcomes: Sequence[Outcome], hit: Sequence[Finding], seen: Snapshot
    ) -> None:
        first = outcomes[0]
        took = max(o.finished_at for o in outcomes) - min(o.started_at for o in outcomes)
        containers = sum(not outcome.action.key.is_host for outcome in outcomes)
        hosts = len(outcomes) - containers
        self._log.info(
            f"replaced {counted(hosts, 'mount')} on the host and {containers} in containers",
            event="replaced",
            device=str(first.action.expect.device),
            new_device=str(first.mount.device) if first.mount is not None else None,
            binds=len(outcomes),
            containers=containers,
            **whose(hit, seen),
            took_ms=milliseconds(took),
        )
        for narrower, those in grouped(outcomes, lambda o: o.narrower).items():
            if narrower:
                self._tell_difference("less", "narrower", narrower, those)
        for wider, those in grouped(outcomes, lambda o: o.wider).items():
            if wider:
                self._tell_difference("more", "wider", wider, those)
        self._tell_type(first)

    def _tell_covered(
        self, outcomes: Sequence[Outcome], hit: Sequence[Finding], seen: Snapshot
    ) -> None:
        count = counted(len(outcomes), "container")
        self._log.warning(
            f"mounted a volume over the node's directory that {count} had instead",
            event="covered",
            new_device=str(outcomes[0].mount.device) if outcomes[0].mount is not None else None,
            containers=len(outcomes),
            mount_point=outcomes[0].action.key.mount_point,
            directory=outcomes[0].action.expect.root,
            **whose(hit, seen),
        )

    def _tell_difference(self, how: str, event: str, detail: str, those: Sequence[Outcome]) -> None:
        self._log.warning(
            f"the new file system allows {how} than the old one",
            event=event,
            detail=detail,
            mount_point=those[0].action.key.mount_point,
            binds=len(those),
        )

    def _tell_type(self, outcome: Outcome) -> None:
        """Say it once of two file systems, however many binds go from the one to the other."""
        pair, action = _device_pair(outcome), outcome.action
        if not isinstance(action, ReplaceMount) or not action.type_change or pair in self._types:
            return
        self._types.append(pair)
        self._log.warning(
            f"type changed {action.type_change}",
            event="type_changed",
            device=str(pair[0]),
            new_device=str(pair[1]) if pair[1] is not None else None,
            source=action.origin.mount_point,
            detail=action.type_change,
        )

    def _tell_detached(self, outcome: Outcome) -> None:
        expect = outcome.action.expect
        self._log.info(
            "detached a dead mount of a deleted pod",
            event="orphan_detached",
            mount_point=expect.mount_point,
            mount_id=expect.mount_id,
            device=str(expect.device),
        )

    def _tell_not_replaced(
        self, outcomes: Sequence[Outcome], hit: Sequence[Finding], seen: Snapshot
    ) -> None:
        first = outcomes[0]
        fields: dict[str, Value] = {
            "event": first.status.value,
            **why(first),
            "mount_point": first.action.key.mount_point,
            "mount_namespace": first.action.key.namespace or None,
            **whose(hit, seen),
            "device": str(first.action.expect.device),
            "binds": len(outcomes),
        }
        level, saying = _ENDINGS[first.status]
        self._log.write(level, f"{counted(len(outcomes), 'mount')} {saying}", fields)

    def _tell_outcome(self, outcome: Outcome, finding: Finding | None, seen: Snapshot) -> None:
        if self._log.is_enabled(Level.DEBUG):
            known = bind_fields(finding, seen) if finding is not None else {}
            fields: dict[str, Value] = {
                "event": "outcome",
                "status": outcome.status.value,
                **why(outcome),
                "took_ms": milliseconds(outcome.finished_at - outcome.started_at),
                "depth": outcome.depth,
                **known,
            }
            self._log.write(Level.DEBUG, outcome.action.describe(), fields)


def _is_over(outcome: Outcome) -> bool:
    return isinstance(outcome.action, ReplaceMount) and bool(outcome.action.over)


def _device_pair(outcome: Outcome) -> tuple[Device, Device | None]:
    new = outcome.mount.device if outcome.mount is not None else None
    return outcome.action.expect.device, new


def _of(outcomes: Iterable[Outcome], findings: Mapping[TargetKey, Finding]) -> list[Finding]:
    keys = [outcome.action.key for outcome in outcomes]
    return [findings[key] for key in keys if key in findings]


class AbortLog:
    """A part of the log's reporter."""

    def __init__(self, log: Log) -> None:
        """Tell everything to ``log``."""
        self._log = log
        self._unproven: set[Device] = set()

    def report(self, cycle: CycleReport) -> None:
        """Say what this cycle brought, in the order in which it happened."""
        for outcome in cycle.outcomes:
            if isinstance(outcome.action, AbortConnection):
                self._tell_outcome(outcome, outcome.action)
        self._tell_proven(cycle)
        for action in cycle.plan.actions:
            if isinstance(action, AbortConnection):
                self._log.warning(
                    "aborting a hung FUSE connection",
                    event="aborting",
                    **_fields(action),
                    **_hit(action.expect.device, cycle),
                    confirmations=action.confirmations,
                )

    def _tell_outcome(self, outcome: Outcome, action: AbortConnection) -> None:
        if outcome.status is OutcomeStatus.ABORTED:
            self._unproven.add(action.expect.device)
            self._log.warning("hung FUSE connection aborted", event="aborted", **_fields(action))
            return
        self._log.warning(
            "hung FUSE connection not aborted",
            event=f"abort_{outcome.status.value}",
            **_fields(action),
            **why(outcome),
        )

    def _tell_proven(self, cycle: CycleReport) -> None:
        connections = cycle.snapshot.connections
        self._unproven &= connections.keys()
        for device in sorted(self._unproven):
            if connections[device].is_dead:
                self._unproven.discard(device)
                self._log.info(
                    "the aborted connection is dead: it waits for a new server now",
                    event="abort_proven",
                    device=str(device),
                    errno=connections[device].errno,
                )


def _fields(action: AbortConnection) -> dict[str, Value]:
    return {"device": str(action.expect.device), "mount_point": action.expect.mount_point}


def _hit(device: Device, cycle: CycleReport) -> dict[str, Value]:
    hit = [f.bind for f in cycle.findings if f.bind.mount and f.bind.mount.device == device]
    return {
        "binds": len(hit),
        "pods": len({bind.path.pod_uid for bind in hit}),
        "waiting": cycle.snapshot.connections[device].waiting,
    }
