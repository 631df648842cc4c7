"""Outages, one for each dead FUSE connection, from its server's end to the last bind healed.

An incident is closed only when a look at every mount namespace that *began* after the last
replacement finds nothing stale of it any more: a container that was started from the stale
bind in between is part of the same outage.  Binds for which recovery is switched off, and those
of pods that are being deleted, open no incident and hold none back.  What became of the servers
of each source is counted from these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from fusewatchd.model.actions import Outcome, OutcomeStatus, ReplaceMount
from fusewatchd.model.findings import Finding
from fusewatchd.model.ledger import TargetState
from fusewatchd.model.mounts import Device, TargetKey
from fusewatchd.model.outages import Incident
from fusewatchd.model.servers import Answer, OomKill, ServerEnd, Service
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason, Verdict

SURVIVED_SECONDS = 60.0
"""A connection that is alive for so long after the end of a process was not served by it alone."""
_NEW = Service()


@dataclass(frozen=True, slots=True)
class IncidentStep:
    """The open incidents after a cycle, and what began and ended in it."""

    open: Mapping[Device, Incident]
    opened: tuple[Incident, ...] = ()
    closed: tuple[Incident, ...] = ()


def follow(
    incidents: Mapping[Device, Incident],
    findings: Iterable[Finding],
    outcomes: Iterable[Outcome],
    states: Mapping[TargetKey, TargetState],
    snapshot: Snapshot,
    now: float,
) -> IncidentStep:
    """Open, continue and close incidents by what this cycle saw."""
    stale = _stale_by_device(findings, snapshot)
    current = _with_outcomes(incidents, outcomes)
    opened: list[Incident] = []
    closed: list[Incident] = []
    after: dict[Device, Incident] = {}
    for device, hit in stale.items():
        if device in current or not any(map(_is_ours_to_heal, hit)):
            continue
        if not _is_shown_for_a_moment(device, hit, current, states, snapshot):
            incident = _opened(device, hit, snapshot, now)
            opened.append(incident)
            current[device] = incident
    for device, incident in current.items():
        hit = stale.get(device, ())
        incident = _continued(incident, hit, states, snapshot)
        # One that was switched off before anything was done may be switched on again.
        is_kept = bool(hit) and not incident.recovered_targets
        if _is_over(incident, snapshot) and not is_kept:
            recovered = incident.last_recovery_at if incident.recovered_targets else None
            closed.append(replace(incident, recovered_at=recovered))
        else:
            after[device] = incident
    return IncidentStep(after, tuple(opened), tuple(closed))


def _stale_by_device(
    findings: Iterable[Finding], snapshot: Snapshot
) -> dict[Device, tuple[Finding, ...]]:
    grouped: dict[Device, list[Finding]] = {}
    for finding in findings:
        mount = finding.bind.mount
        if finding.verdict is not Verdict.STALE or mount is None:
            continue
        if snapshot.is_dead(mount.device):
            grouped.setdefault(mount.device, []).append(finding)
    return {device: tuple(found) for device, found in grouped.items()}


def _is_ours_to_heal(finding: Finding) -> bool:
    return finding.refusal not in (Reason.DISABLED, Reason.POD_ENDING)


def _is_shown_for_a_moment(
    device: Device,
    hit: tuple[Finding, ...],
    open_incidents: Mapping[Device, Incident],
    states: Mapping[TargetKey, TargetState],
    snapshot: Snapshot,
) -> bool:
    """True for layers of an earlier outage, uncovered where a later one is being healed.

    Without ``beneath`` the dead mount that a container began with stays below what replaced it,
    and is on top while the one is taken away and the next is not there yet.
    """
    keys = frozenset(finding.bind.key for finding in hit)
    if _in_flight(keys, states) != keys:
        return False
    died_at = snapshot.connections[device].answered_at
    later = [i for i in open_incidents.values() if i.noticed_at > died_at]
    return all(any(key in incident.targets for incident in later) for key in keys)


def _in_flight(
    keys: frozenset[TargetKey], states: Mapping[TargetKey, TargetState]
) -> frozenset[TargetKey]:
    return frozenset(key for key in keys if key in states and states[key].is_in_flight)


def _opened(device: Device, hit: tuple[Finding, ...], snapshot: Snapshot, now: float) -> Incident:
    first = next((f for f in hit if f.bind.source.candidates), hit[0])
    candidates = first.bind.source.candidates
    connection = snapshot.connections[device]
    return Incident(
        device=device,
        driver=first.bind.driver,
        source_path=candidates[0].mount_point if candidates else "",
        noticed_at=connection.answered_at or now,
        server_gone_at=connection.server_gone_at,
        end=_end_of(device, connection.answered_at or now, snapshot),
    )


def _end_of(device: Device, noticed_at: float, snapshot: Snapshot) -> ServerEnd | None:
    """Return the end that explains a dead connection: not one that it has survived for long."""
    end = snapshot.ends.get(device)
    return end if end is not None and noticed_at - end.seen_at < SURVIVED_SECONDS else None


def _with_outcomes(
    incidents: Mapping[Device, Incident], outcomes: Iterable[Outcome]
) -> dict[Device, Incident]:
    recovered: dict[Device, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.status is OutcomeStatus.RECOVERED and isinstance(outcome.action, ReplaceMount):
            recovered.setdefault(outcome.action.expect.device, []).append(outcome)
    current = dict(incidents)
    for device, done in recovered.items():
        incident = current.get(device)
        if incident is not None:
            last_at = max(outcome.finished_at for outcome in done)
            current[device] = replace(
                incident,
                recovered_targets=incident.recovered_targets.union(o.action.key for o in done),
                last_recovery_at=max(incident.last_recovery_at or 0.0, last_at),
            )
    return current


def _continued(
    incident: Incident,
    hit: tuple[Finding, ...],
    states: Mapping[TargetKey, TargetState],
    snapshot: Snapshot,
) -> Incident:
    stale = frozenset(finding.bind.key for finding in hit)
    waiting = frozenset(finding.bind.key for finding in hit if _is_ours_to_heal(finding))
    source_up = incident.source_up_at
    for finding in hit:
        if source_up is None and finding.source_mount is not None:
            source_up = snapshot.seen_at.get(finding.source_mount.device)
    return replace(
        incident,
        # More is known of it a moment later.
        end=_end_of(incident.device, incident.noticed_at, snapshot) or incident.end,
        targets=incident.targets | waiting,
        open_targets=waiting | _in_flight(incident.targets, states),
        recovered_targets=incident.recovered_targets - stale,
        source_up_at=source_up,
        source_refused=next((f.refusal for f in hit if f.refusal in _REFUSED), None),
    )


_REFUSED = frozenset({Reason.SOURCE_TYPE, Reason.SOURCE_ROOT})


_UNHEARD = (None, Answer.PENDING)


def _is_over(incident: Incident, snapshot: Snapshot) -> bool:
    if incident.open_targets:
        return False
    connection = snapshot.connections.get(incident.device)
    if connection is not None and connection.answer in _UNHEARD:
        return False  # it was opened by an earlier run, and what shows it has not answered this one
    since = incident.last_recovery_at if incident.last_recovery_at else incident.noticed_at
    return snapshot.namespaces_looked_at >= since


def follow_services(
    services: Mapping[str, Service], step: IncidentStep, findings: Iterable[Finding]
) -> dict[str, Service]:
    """Count the outages that began and ended, and forget sources that nothing shows any more."""
    shown = {path.mount_point for f in findings for path in f.bind.source.candidates}
    shown |= {incident.source_path for incident in step.open.values()}
    after = {path: service for path, service in services.items() if path in shown}
    for incident in step.opened:
        service = after.get(incident.source_path, _NEW)
        after[incident.source_path] = replace(service, outages=service.outages + 1)
    for incident in step.closed:
        service = after.get(incident.source_path, _NEW)
        is_oom = incident.end is not None and incident.end.oom is OomKill.YES
        lasted = incident.outage_seconds
        after[incident.source_path] = replace(
            service,
            restarts=service.restarts + (incident.source_up_at is not None),
            oom_kills=service.oom_kills + is_oom,
            last_end=incident.end or service.last_end,
            last_outage_seconds=service.last_outage_seconds if lasted is None else lasted,
        )
    after.pop("", None)
    return after
