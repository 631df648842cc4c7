"""The parts of the status document that tell of servers, and of who holds files of dead mounts.

Pure.  Every text that others contribute is escaped when it enters the document.
"""

from __future__ import annotations

from collections.abc import Mapping

from fusewatchd.cycle import CycleReport
from fusewatchd.documents import PATH_LIMIT, Clocks, Document, shown
from fusewatchd.liveness import Holder, Holding, ServerEnd, Service
from fusewatchd.model import Device
from fusewatchd.snapshot import Snapshot
from fusewatchd.surroundings import pod_document, process_document

MAX_SERVERS = 1000
MAX_HOLDERS = 100
"""Listed for each dead mount; the count is of all."""


def servers_document(cycle: CycleReport, clocks: Clocks) -> list[Document]:
    """Return who serves each source, and what became of its servers so far."""
    snapshot = cycle.snapshot
    found: list[Document] = []
    for path, device in _sources(cycle).items():
        serving = snapshot.servers.get(device, ()) if device is not None else ()
        service = cycle.ledger.services.get(path, Service())
        end = service.last_end
        lasted = service.last_outage_seconds
        found.append(
            {
                "source": shown(path, PATH_LIMIT),
                "device": str(device) if device is not None else None,
                "processes": [process_document(server, snapshot) for server in serving],
                "outages": service.outages,
                "restarts": service.restarts,
                "oom_kills": service.oom_kills,
                "last_end": end_document(end, snapshot, clocks),
                "last_outage_ms": None if lasted is None else round(lasted * 1000, 3),
            }
        )
    return found[:MAX_SERVERS]


def _sources(cycle: CycleReport) -> Mapping[str, Device | None]:
    """Return the device that each source has now; None where nothing living is mounted."""
    snapshot, devices = cycle.snapshot, dict[str, Device | None]()
    for finding in cycle.findings:
        for place in finding.bind.source.candidates:
            if place.mount_point not in devices:
                top = snapshot.table.top_at(place.mount_point)
                connection = snapshot.connections.get(top.device) if top is not None else None
                is_living = connection is not None and not connection.is_dead
                devices[place.mount_point] = top.device if top is not None and is_living else None
    return devices


def end_document(end: ServerEnd | None, snapshot: Snapshot, clocks: Clocks) -> Document | None:
    """Return the evidence of how a server ended."""
    if end is None:
        return None
    return {
        "seen_at": clocks.date(end.seen_at),
        "how": end.describe(),
        "process": process_document(end.server, snapshot) if end.server is not None else None,
        "oom_kill": end.oom.value,
        "oom_evidence": end.why or None,
        "wait_status": end.status,
        "socket": shown(end.socket, PATH_LIMIT) or None,
    }


def holders_document(snapshot: Snapshot, clocks: Clocks) -> list[Document]:
    """Return which processes still hold files of dead mounts that have been replaced."""
    return [_holding(holding, snapshot, clocks) for holding in snapshot.holdings]


def _holding(holding: Holding, snapshot: Snapshot, clocks: Clocks) -> Document:
    return {
        "device": str(holding.device),
        "source": shown(holding.source_path, PATH_LIMIT) or None,
        "driver": shown(holding.driver) or None,
        "looked_at": clocks.date(holding.looked_at),
        "processes": holding.count,
        "not_looked_at": holding.unseen,
        "holders": [_holder(holder, snapshot) for holder in holding.holders[:MAX_HOLDERS]],
    }


def _holder(holder: Holder, snapshot: Snapshot) -> Document:
    return {
        "pid": holder.pid,
        "name": shown(holder.name),
        "pod": pod_document(holder.pod_uid, snapshot) if holder.pod_uid else None,
        "container": holder.container_id or None,
        "unit": shown(holder.unit) or None,
        "open_files": holder.files,
        "mapped_areas": holder.mapped,
        "directory": holder.has_directory,
    }
