"""What the status document says of pods, connections, sources, and of mounts that are not ours.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from fusewatchd.cycle import CycleReport
from fusewatchd.documents import PATH_LIMIT, Clocks, Document, shown
from fusewatchd.model import Answer, Device, FuseServer, Mount, MountNamespace
from fusewatchd.snapshot import Snapshot
from fusewatchd.verdicts import Verdict

MAX_SERVERS = 8
"""Processes of one connection."""
MAX_UNCLAIMED = 200
"""Mounts in containers that are none of ours, listed one by one."""


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
        "root_errno": connection.root.errno or None,
        "serves_root": not (connection.root.fails or connection.root.is_slow),
        "server_gone_at": clocks.date(connection.server_gone_at),
        "servers": [
            process_document(server, snapshot)
            for server in snapshot.servers.get(device, ())[:MAX_SERVERS]
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
        "mount_id": mount.mount_id,
        "device": str(mount.device),
        "fs_type": shown(mount.fs_type),
        "verdict": _PLAIN_VERDICTS.get(answer, Verdict.UNKNOWN).value,
    }


_PLAIN_VERDICTS: Mapping[Answer | None, Verdict] = {
    Answer.ANSWERED: Verdict.HEALTHY,
    Answer.DISCONNECTED: Verdict.STALE,
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
