"""The story of each outage in the log.

Each thing is said once.  An outage of one FUSE connection, with all its binds and all the
cycles that it takes, is a handful of lines: the server is gone, so many binds are stale, the
source is back, so many binds were replaced, recovered after so long.  What happened to each
single bind is there at level ``debug``.  ``event`` names each kind of line for machines.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fusewatchd.decision import (
    AbortConnection,
    CycleReport,
    DetachOrphan,
    Finding,
    Incident,
    Outcome,
    OutcomeStatus,
    Refusal,
)
from fusewatchd.model import Answer, Device, Reason, TargetKey, Verdict
from fusewatchd.reporters.abortstory import AbortStory
from fusewatchd.reporters.base import (
    WAITING,
    NewsMemory,
    VerdictChange,
    VerdictMemory,
    connection_of,
    counted,
    duration_text,
    is_about_abort,
    new_refusals,
    pod_of,
    unwell_keys,
)
from fusewatchd.reporters.foreignstory import ForeignStory
from fusewatchd.reporters.log import Level, Log, Value
from fusewatchd.reporters.restraint import TOLD_ONCE, RestraintStory
from fusewatchd.snapshot import Snapshot

_Item = TypeVar("_Item")
_Key = TypeVar("_Key", bound=Hashable)

_SAYINGS: dict[Verdict, tuple[Level, str]] = {
    Verdict.HEALTHY: (Level.INFO, "answering again"),
    Verdict.SLOW: (Level.INFO, "slow"),
    Verdict.HUNG: (Level.ERROR, "hung"),
    Verdict.STALE: (Level.WARNING, "stale"),
    Verdict.SUPERSEDED: (Level.INFO, "superseded: the source is new, the old server still works"),
    Verdict.BARE: (Level.WARNING, "bare directories now"),
    Verdict.ORPHANED: (Level.INFO, "left over from a pod that is gone"),
    Verdict.HELD: (Level.INFO, "alive without a serving process"),
    Verdict.UNKNOWN: (Level.WARNING, "in an unknown state"),
}


@dataclass(slots=True)
class _Outage:
    """What was told of an open incident."""

    incident: Incident
    told_source: Device | None = None

    @property
    def began_at(self) -> float:
        gone = self.incident.server_gone_at
        return self.incident.noticed_at if gone is None else gone


class LogReporter:
    """Writes what is new in each cycle to the log."""

    def __init__(self, log: Log) -> None:
        """Tell everything to ``log``, which stays its owner's."""
        self._log = log
        self._verdicts = VerdictMemory()
        self._refused = NewsMemory()
        self._ended = NewsMemory()
        self._in_flight: set[TargetKey] = set()
        self._outages: dict[Device, _Outage] = {}
        self._gaps: dict[str, str] = {}
        self._aborts = AbortStory(log)
        self._restraint = RestraintStory(log)
        self._foreign = ForeignStory(log)

    def report(self, cycle: CycleReport) -> None:
        """Say what this cycle brought, in the order in which it happened."""
        self._tell_gaps(cycle)
        self._aborts.report(cycle)
        for incident in cycle.incidents_opened:
            self._tell_opened(incident)
        self._tell_verdicts(cycle)
        self._tell_refusals(cycle)
        self._restraint.report(cycle)
        self._tell_sources(cycle)
        self._tell_outcomes(cycle)
        for incident in cycle.incidents_closed:
            self._tell_closed(incident)
        self._foreign.report(cycle)

    def close(self) -> None:
        """Keep the log open: the daemon says good-bye in it."""

    # ---------------------------------------------------------------------- the node

    def _tell_gaps(self, cycle: CycleReport) -> None:
        gaps = {gap.source: gap.reason for gap in cycle.gaps}
        for source, reason in gaps.items():
            if source not in self._gaps:
                self._log.warning(
                    f"cannot see: {source}", event="gap_opened", gap=source, detail=reason
                )
        for source in self._gaps.keys() - gaps.keys():
            self._log.info(f"can see again: {source}", event="gap_closed", gap=source)
        self._gaps = gaps

    # --------------------------------------------------------------------- incidents

    def _tell_opened(self, incident: Incident) -> None:
        self._outages[incident.device] = _Outage(incident)
        gone = incident.server_gone_at
        self._log.warning(
            "FUSE server is gone",
            event="server_gone",
            device=str(incident.device),
            driver=incident.driver,
            source=incident.source_path or None,
            noticed_after_ms=None if gone is None else _ms(incident.noticed_at - gone),
        )

    def _tell_sources(self, cycle: CycleReport) -> None:
        """A source may come back several times before its binds are on it."""
        for finding in cycle.findings:
            mount, source = finding.bind.mount, finding.source_mount
            outage = self._outages.get(mount.device) if mount is not None else None
            if outage is None or source is None or not finding.bind.key.is_host:
                continue
            if finding.verdict is not Verdict.STALE or outage.told_source == source.device:
                continue
            outage.told_source = source.device
            up_at = cycle.snapshot.seen_at.get(source.device, cycle.started_at)
            self._log.info(
                f"source is back after {duration_text(max(0.0, up_at - outage.began_at))}",
                event="source_back",
                device=str(outage.incident.device),
                driver=outage.incident.driver,
                source=source.mount_point,
                new_device=str(source.device),
            )

    def _tell_closed(self, incident: Incident) -> None:
        outage = self._outages.pop(incident.device, _Outage(incident))
        fields: dict[str, Value] = {
            "device": str(incident.device),
            "driver": incident.driver,
            "source": incident.source_path or None,
        }
        recovered_at = incident.recovered_at
        if recovered_at is None:
            why = "unmounted, mounted anew by others, or switched off"
            text = f"outage is over, nothing was replaced: {why}"
            self._log.info(text, event="outage_over", **fields)
            return
        lasted = max(0.0, recovered_at - outage.began_at)
        took, words = None, ""
        if incident.source_up_at is not None:
            took = max(0.0, recovered_at - incident.source_up_at)
            words = f" in {duration_text(took)}"
        binds = len(incident.recovered_targets)
        self._log.info(
            f"recovered {counted(binds, 'bind')}{words}, outage {duration_text(lasted)}",
            event="recovered",
            **fields,
            binds=binds,
            recovery_ms=None if took is None else _ms(took),
            outage_ms=_ms(lasted),
        )

    # ------------------------------------------------------------------------- binds

    def _tell_verdicts(self, cycle: CycleReport) -> None:
        ours = self._in_flight | {outcome.action.key for outcome in cycle.outcomes}
        notable: list[Finding] = []
        for change in self._verdicts.changes(cycle.findings):
            self._tell_bind(change, cycle.snapshot)
            # The mount table may show a replacement before its outcome has arrived.
            is_ours = change.finding.bind.key in ours and change.before is Verdict.STALE
            if _is_notable(change, cycle.snapshot) and not is_ours:
                notable.append(change.finding)
        groups = _grouped(notable, lambda f: (_device(f), f.verdict))
        for (_, verdict), findings in groups.items():
            level, saying = _SAYINGS[verdict]
            self._tell_group(level, saying, findings, cycle.snapshot)

    def _tell_group(
        self, level: Level, saying: str, findings: Sequence[Finding], snapshot: Snapshot
    ) -> None:
        first = findings[0]
        binds = [finding.bind for finding in findings]
        pods = {bind.path.pod_uid for bind in binds}
        verb = "is" if len(binds) == 1 else "are"
        of_pods = f" of {counted(len(pods), 'pod')}" if len(pods) > 1 else ""
        text = f"{counted(len(binds), 'bind')}{of_pods} {verb} {saying}"
        fields: dict[str, Value] = {
            "event": first.verdict.value,
            **_bind_fields(first, snapshot),
            "binds": len(binds),
            "pods": len(pods),
            "containers": sum(not bind.key.is_host for bind in binds),
            "evidence": first.evidence,
        }
        self._log.write(level, text, fields)

    def _tell_bind(self, change: VerdictChange, snapshot: Snapshot) -> None:
        if self._log.is_enabled(Level.DEBUG):
            before = change.before.value if change.before is not None else None
            self._log.debug(
                f"bind is {change.finding.verdict.value}",
                event="bind",
                before=before,
                **_bind_fields(change.finding, snapshot),
                evidence=change.finding.evidence,
            )

    # ----------------------------------------------------------------------- actions

    def _tell_refusals(self, cycle: CycleReport) -> None:
        news = [r for r in new_refusals(cycle, self._refused) if r.reason not in TOLD_ONCE]
        groups = _grouped(news, lambda r: (*_refusal_group(r), is_about_abort(r)))
        for (_, reason, _, is_hung), refusals in groups.items():
            first = refusals[0].finding
            fields: dict[str, Value] = {
                "event": "refused",
                "reason": reason.value,
                **_bind_fields(first, cycle.snapshot),
                "binds": len(refusals),
                "evidence": first.evidence,
                "detail": refusals[0].detail or None,
            }
            level = Level.DEBUG if reason in WAITING else Level.WARNING
            if reason is Reason.DISABLED:
                level = Level.INFO
            text = f"{counted(len(refusals), 'bind')} not replaced"
            self._log.write(level, "hung connection not aborted" if is_hung else text, fields)

    def _tell_outcomes(self, cycle: CycleReport) -> None:
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
        for outcomes in _grouped(done, _device_pair).values():
            self._tell_replaced(outcomes)
        for outcomes in _grouped(other, lambda o: (o.status, o.reason, o.errno)).values():
            self._tell_not_replaced(outcomes)
        self._ended.keep_only(unwell_keys(cycle))
        self._in_flight -= {outcome.action.key for outcome in cycle.outcomes}
        self._in_flight |= {action.key for action in cycle.plan.actions}

    def _tell_replaced(self, outcomes: Sequence[Outcome]) -> None:
        first = outcomes[0]
        took = max(o.finished_at for o in outcomes) - min(o.started_at for o in outcomes)
        containers = sum(not outcome.action.key.is_host for outcome in outcomes)
        hosts = len(outcomes) - containers
        self._log.info(
            f"replaced {counted(hosts, 'bind')} on the host and {containers} in containers",
            event="replaced",
            device=str(first.action.expect.device),
            new_device=str(first.mount.device) if first.mount is not None else None,
            binds=len(outcomes),
            containers=containers,
            took_ms=_ms(took),
        )
        for narrower, hit in _grouped(outcomes, lambda o: o.narrower).items():
            if narrower:
                self._log.warning(
                    "the new file system allows less than the old one",
                    event="narrower",
                    detail=narrower,
                    mount_point=hit[0].action.key.mount_point,
                    binds=len(hit),
                )

    def _tell_detached(self, outcome: Outcome) -> None:
        expect = outcome.action.expect
        self._log.info(
            "a dead layer of a pod that is over was detached",
            event="orphan_detached",
            mount_point=expect.mount_point,
            mount_id=expect.mount_id,
            device=str(expect.device),
        )

    def _tell_not_replaced(self, outcomes: Sequence[Outcome]) -> None:
        first = outcomes[0]
        fields: dict[str, Value] = {
            "event": first.status.value,
            "reason": first.reason.value,
            "errno": first.errno or None,
            "detail": first.detail or None,
            "mount_point": first.action.key.mount_point,
            "namespace": first.action.key.namespace or None,
            "device": str(first.action.expect.device),
            "binds": len(outcomes),
        }
        level, saying = _ENDINGS[first.status]
        self._log.write(level, f"{counted(len(outcomes), 'bind')} {saying}", fields)

    def _tell_outcome(self, outcome: Outcome, finding: Finding | None, seen: Snapshot) -> None:
        if self._log.is_enabled(Level.DEBUG):
            known = _bind_fields(finding, seen) if finding is not None else {}
            fields: dict[str, Value] = {
                "event": "outcome",
                "status": outcome.status.value,
                "reason": outcome.reason.value,
                "errno": outcome.errno or None,
                "detail": outcome.detail or None,
                "took_ms": _ms(outcome.finished_at - outcome.started_at),
                "depth": outcome.depth,
                **known,
            }
            self._log.write(Level.DEBUG, outcome.action.describe(), fields)


_ENDINGS: dict[OutcomeStatus, tuple[Level, str]] = {
    OutcomeStatus.FAILED: (Level.WARNING, "could not be replaced"),
    OutcomeStatus.REFUSED: (Level.WARNING, "must not be replaced"),
    OutcomeStatus.SKIPPED: (Level.INFO, "left alone, changed by others meanwhile"),
    OutcomeStatus.DETACHED: (Level.INFO, "freed of a layer of ours"),
}


def _is_notable(change: VerdictChange, snapshot: Snapshot) -> bool:
    """A bind that is only being got to know is no news."""
    verdict = change.finding.verdict
    if verdict is Verdict.HEALTHY:
        return change.before not in (None, Verdict.UNKNOWN)
    if verdict is not Verdict.UNKNOWN:
        return True
    connection = connection_of(change.finding, snapshot)
    return connection is not None and connection.answer not in (None, Answer.PENDING)


def _bind_fields(finding: Finding, snapshot: Snapshot) -> dict[str, Value]:
    bind = finding.bind
    pod = pod_of(finding, snapshot)
    return {
        "verdict": finding.verdict.value,
        "device": str(bind.mount.device) if bind.mount is not None else None,
        "driver": bind.driver or None,
        "kind": bind.path.kind.value,
        "pod": f"{pod.namespace}/{pod.name}" if pod is not None else None,
        "pod_uid": bind.path.pod_uid,
        "volume": bind.path.volume,
        "container": bind.path.container or None,
        "mount_point": bind.key.mount_point,
        "namespace": bind.key.namespace or None,
    }


def _grouped(items: Iterable[_Item], key: Callable[[_Item], _Key]) -> dict[_Key, list[_Item]]:
    groups: dict[_Key, list[_Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _device(finding: Finding) -> Device | None:
    return finding.bind.mount.device if finding.bind.mount is not None else None


def _refusal_group(refusal: Refusal) -> tuple[Device | None, Reason, str]:
    """Binds that different switches turn off are told apart; the switch is named last."""
    is_off = refusal.reason is Reason.DISABLED
    which = refusal.finding.evidence.rpartition("; ")[2] if is_off else ""
    return _device(refusal.finding), refusal.reason, which


def _device_pair(outcome: Outcome) -> tuple[Device, Device | None]:
    new = outcome.mount.device if outcome.mount is not None else None
    return outcome.action.expect.device, new


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 3)
