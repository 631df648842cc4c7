"""The parts of the status document that tell of servers, and of who holds files of dead mounts.

Pure.  Every text that others contribute is escaped when it enters the document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from fusewatchd.decision import CycleReport
from fusewatchd.liveness import Holder, Holding, ServerEnd, Service
from fusewatchd.model import Answer, Device, FuseServer
from fusewatchd.printable import PATH_LIMIT, printable
from fusewatchd.snapshot import Snapshot

Document = dict[str, Any]

MAX_SERVERS = 1000
MAX_HOLDERS = 100
"""Listed for each dead mount; the count is of all."""


class Dates(Protocol):
    """Turns times of the monotonic clock into dates."""

    def date(self, monotonic: float | None) -> str | None:
        """Return a time as RFC 3339 in UTC."""


def servers_document(cycle: CycleReport, dates: Dates) -> list[Document]:
    """Return who serves each source, and what became of its servers so far."""
    snapshot = cycle.snapshot
    found: list[Document] = []
    for path, device in _sources(cycle).items():
        serving = snapshot.servers.get(device, ()) if device is not None else ()
        service = cycle.services.get(path, Service())
        end = service.last_end
        lasted = service.last_outage_seconds
        found.append(
            {
                "source": printable(path, PATH_LIMIT),
                "device": str(device) if device is not None else None,
                "processes": [_process(server, snapshot) for server in serving],
                "outages": service.outages,
                "restarts": service.restarts,
                "oom_kills": service.oom_kills,
                "last_end": end_document(end, snapshot, dates),
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
                is_dead = connection is None or connection.answer is Answer.DISCONNECTED
                devices[place.mount_point] = None if top is None or is_dead else top.device
    return devices


def end_document(end: ServerEnd | None, snapshot: Snapshot, dates: Dates) -> Document | None:
    """Return the evidence of how a server ended."""
    if end is None:
        return None
    return {
        "seen_at": dates.date(end.seen_at),
        "how": end.describe(),
        "process": _process(end.server, snapshot) if end.server is not None else None,
        "oom_kill": end.oom.value,
        "oom_evidence": end.why or None,
        "wait_status": end.status,
        "socket": printable(end.socket, PATH_LIMIT) or None,
    }


def _process(server: FuseServer, snapshot: Snapshot) -> Document:
    return {
        "pid": server.pid,
        "name": printable(server.name) or None,
        "command": printable(server.command) or None,
        "unit": printable(server.unit) or None,
        "pod": _pod(server.pod_uid, snapshot),
        "container": server.container_id or None,
    }


def _pod(uid: str, snapshot: Snapshot) -> Document | None:
    if not uid:
        return None
    pod = (snapshot.pods or {}).get(uid)
    return {
        "namespace": printable(pod.namespace) if pod is not None else None,
        "name": printable(pod.name) if pod is not None else None,
        "uid": printable(pod.uid if pod is not None else uid),
    }


def holders_document(snapshot: Snapshot, dates: Dates) -> list[Document]:
    """Return which processes still hold files of dead mounts that have been replaced."""
    return [_holding(holding, snapshot, dates) for holding in snapshot.holdings]


def _holding(holding: Holding, snapshot: Snapshot, dates: Dates) -> Document:
    return {
        "device": str(holding.device),
        "source": printable(holding.source_path, PATH_LIMIT) or None,
        "driver": printable(holding.driver) or None,
        "looked_at": dates.date(holding.looked_at),
        "processes": holding.count,
        "not_looked_at": holding.unseen,
        "holders": [_holder(holder, snapshot) for holder in holding.holders[:MAX_HOLDERS]],
    }


def _holder(holder: Holder, snapshot: Snapshot) -> Document:
    return {
        "pid": holder.pid,
        "name": printable(holder.name),
        "pod": _pod(holder.pod_uid, snapshot),
        "container": holder.container_id or None,
        "unit": printable(holder.unit) or None,
        "open_files": holder.files,
        "mapped_areas": holder.mapped,
        "directory": holder.has_directory,
    }
