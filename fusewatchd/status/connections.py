"""The parts of the status document on pods, connections, sources and servers; pure.

Also on who holds files of dead mounts, and on mounts that are not ours.  Every text that others
contribute is escaped when it enters the document.
"""

from __future__ import annotations

from collections.abc import Mapping

from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.mounts import Device, Mount, MountNamespace
from fusewatchd.model.server_actions import DeadSource, Trouble
from fusewatchd.model.servers import Answer, FuseServer, Holder, ServerEnd, Service
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.status.values import PATH_LIMIT, Clocks, Document, shown

MAX_PROCESSES = 8
"""Processes of one connection."""
MAX_UNCLAIMED = 200
"""Mounts in containers that are none of ours, listed one by one."""
MAX_SERVERS = 1000
MAX_HOLDERS = 100
"""Listed for each dead mount; the count is of all."""


def connections_document(cycle: CycleReport, clocks: Clocks) -> Document:
    """Return what is known of the file systems of all binds and of their sources, by device."""
    snapshot = cycle.snapshot
    mounts = [m for f in cycle.findings for m in (f.bind.mount, f.source_mount) if m is not None]
    mounts += [mount for _, mount in cycle.unclaimed[:MAX_UNCLAIMED]]
    devices = {mount.device for mount in mounts} & snapshot.connections.keys()
    return {str(device): _connection(device, snapshot, clocks) for device in sorted(devices)}


def _connection(device: Device, snapshot: Snapshot, clocks: Clocks) -> Document:
    connection = snapshot.connections[device]
    return {
        "answer": connection.answer.value if connection.answer is not None else None,
        "errno": connection.errno or None,
        "asked_at": clocks.date(connection.asked_at or None),
        "answered_at": clocks.date(connection.answered_at or None),
        "waiting": connection.waiting,
        "is_overdue": connection.is_overdue,
        "is_hung": connection.is_hung,
        "obstacle": connection.obstacle.describe() if connection.obstacle is not None else None,
        "root_errno": connection.root.errno or None,
        "serves_root": not (connection.root.fails or connection.root.is_slow),
        "server_gone_at": clocks.date(connection.server_gone_at),
        "waited_seconds": round(connection.waited_seconds, 3),
        "servers": [
            process_document(server, snapshot)
            for server in snapshot.servers.get(device, ())[:MAX_PROCESSES]
        ],
    }


def process_document(server: FuseServer, snapshot: Snapshot) -> Document:
    """Return who a server is; without its arguments: drivers put passwords there."""
    program = server.command.partition(" ")[0].rpartition("/")[2]
    return {
        "pid": server.pid,
        "name": shown(server.name or program) or None,
        "unit": shown(server.unit) or None,
        "pod": pod_document(server.pod_uid, snapshot) if server.pod_uid else None,
        "container": shown(server.container_id) or None,
    }


def sources_document(cycle: CycleReport) -> Document:
    """Return what is mounted at each place that may be a source now, by path."""
    table = cycle.snapshot.table
    places = {path.mount_point for f in cycle.findings for path in f.bind.source.candidates}
    tops = {shown(place, PATH_LIMIT): table.top_at(place) for place in sorted(places)}
    return {
        place: {"device": str(top.device), "fs_type": shown(top.fs_type), "root": shown(top.root)}
        for place, top in tops.items()
        if top is not None
    }


def unclaimed_document(namespace: MountNamespace, mount: Mount, snapshot: Snapshot) -> Document:
    """Return what is known of a FUSE mount in a container that is none of our binds."""
    connection = snapshot.connections.get(mount.device)
    answer = connection.answer if connection is not None else None
    return {
        "pod": pod_document(namespace.pod_uid, snapshot),
        "container": shown(namespace.container_id) or None,
        "namespace": namespace.inode,
        "mount_point": shown(mount.mount_point, PATH_LIMIT),
        **mount_document(mount),
        "verdict": _PLAIN_VERDICTS.get(answer, Verdict.UNKNOWN).value,
    }


_PLAIN_VERDICTS: Mapping[Answer | None, Verdict] = {
    Answer.ANSWERED: Verdict.HEALTHY,
    Answer.DISCONNECTED: Verdict.STALE,
}


def mount_document(mount: Mount | None) -> Document:
    """Return what is mounted at a place."""
    return {
        "mount_id": mount.mount_id if mount is not None else None,
        "device": str(mount.device) if mount is not None else None,
        "fs_type": shown(mount.fs_type) if mount is not None else None,
    }


def pod_document(directory_uid: str, snapshot: Snapshot) -> Document:
    """Return who a pod is, as far as the pod list tells."""
    pod = (snapshot.pods or {}).get(directory_uid)
    return {
        "namespace": shown(pod.namespace) if pod is not None else None,
        "name": shown(pod.name) if pod is not None else None,
        "uid": shown(pod.uid if pod is not None else directory_uid),
        "deleting": pod.is_deleting if pod is not None else None,
    }


def servers_document(cycle: CycleReport, clocks: Clocks) -> list[Document]:
    """Return who serves each source, and what became of its servers so far."""
    places = (place for f in cycle.findings for place in f.bind.source.candidates)
    paths = tuple(dict.fromkeys(place.mount_point for place in places))[:MAX_SERVERS]
    return [_server(path, cycle, clocks) for path in paths]


def _server(path: str, cycle: CycleReport, clocks: Clocks) -> Document:
    snapshot, service = cycle.snapshot, cycle.ledger.services.get(path, Service())
    top, lasted = snapshot.table.top_at(path), service.last_outage_seconds
    connection = snapshot.connections.get(top.device) if top is not None else None
    device = connection.device if connection is not None and not connection.is_dead else None
    # A connection that was cut is dead, and its server may live on.
    is_cut = connection is not None and connection.is_dead and connection.server_gone_at is None
    of = connection.device if connection is not None and is_cut else device
    serving = snapshot.servers.get(of, ()) if of is not None else ()
    return {
        "source": shown(path, PATH_LIMIT),
        "device": str(device) if device is not None else None,
        "processes": [process_document(server, snapshot) for server in serving],
        "outages": service.outages,
        "restarts": service.restarts,
        "oom_kills": service.oom_kills,
        "last_end": end_document(service.last_end, snapshot, clocks),
        "last_outage_ms": None if lasted is None else round(lasted * 1000, 3),
    }


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
    return [
        {
            "device": str(holding.device),
            "source": shown(holding.source_path, PATH_LIMIT) or None,
            "driver": shown(holding.driver) or None,
            "looked_at": clocks.date(holding.looked_at),
            "processes": holding.count,
            "not_looked_at": holding.unseen,
            "holders": [_holder(holder, snapshot) for holder in holding.holders[:MAX_HOLDERS]],
        }
        for holding in snapshot.holdings
    ]


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
        "roots": holder.roots,
    }


def dead_source_document(source: DeadSource, clocks: Clocks) -> Document:
    """Return what is known of a dead source."""
    return {
        "source": shown(source.path, PATH_LIMIT),
        "device": str(source.mount.device),
        "mount_id": source.mount.mount_id,
        "driver": shown(source.driver) or None,
        "layers": source.layers,
        "binds": len(source.binds),
        "since": clocks.date(source.since),
        "held_back": source.held_back.value if source.held_back is not Reason.NONE else None,
    }


def trouble_document(trouble: Trouble, clocks: Clocks) -> Document:
    """Return what was tried for a server that is gone, and what comes next."""
    last = trouble.last
    return {
        "place": shown(trouble.place, PATH_LIMIT),
        "driver": shown(trouble.driver) or None,
        "kind": trouble.kind.value,
        "attempts": trouble.attempts,
        "held_back": trouble.held_back.value if trouble.held_back is not Reason.NONE else None,
        "retry_at": clocks.date(trouble.retry_at),
        "last": None
        if last is None
        else {
            "at": clocks.date(last.finished_at),
            "outcome": last.result.value,
            "status": last.status,
            "output": shown(last.detail.strip()),
        },
    }
