"""What is counted of each source: how often its server went away, came back, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from fusewatchd.decision import Finding
from fusewatchd.incidents import IncidentStep
from fusewatchd.liveness import OomKill, Service

_NEW = Service()


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
