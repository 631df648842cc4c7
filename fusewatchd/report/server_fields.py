"""What log entries say of a FUSE server and of its end.

Names of processes, units and pods are others' to choose: the log escapes and bounds them.
"""

from __future__ import annotations

from fusewatchd.log import Value
from fusewatchd.model.pods import Pod
from fusewatchd.model.servers import FuseServer, ServerEnd
from fusewatchd.model.snapshot import Snapshot


def server_name(server: FuseServer) -> str:
    """Return what a person knows the process by: never its arguments, which may hold secrets."""
    return server.name or "a process"


def server_text(end: ServerEnd) -> str:
    """Return ``python3 (pid 1234), killed by SIGKILL``."""
    if end.server is None:
        return end.describe()
    return f"{server_name(end.server)} (pid {end.server.pid}), {end.describe()}"


def pod_of_server(server: FuseServer, snapshot: Snapshot) -> Pod | None:
    """Return the pod in which a server runs, or ran; None outside pods, or while not known."""
    return (snapshot.pods or {}).get(server.pod_uid) if server.pod_uid else None


def end_fields(end: ServerEnd | None, snapshot: Snapshot) -> dict[str, Value]:
    """Return the evidence of how a server ended; empty where there is none."""
    if end is None:
        return {}
    fields: dict[str, Value] = {"end": end.describe(), "socket": end.socket or None}
    if end.server is None:
        return fields
    server, pod = end.server, pod_of_server(end.server, snapshot)
    return {
        **fields,
        "oom_kill": end.oom.value,
        "oom_evidence": end.why or None,
        "server": server_name(server),
        "server_pid": server.pid,
        "server_unit": server.unit or None,
        "server_pod": f"{pod.namespace}/{pod.name}" if pod is not None else None,
        "server_pod_uid": server.pod_uid or None,
        "server_container": server.container_id or None,
    }
