"""Finding out about the node, by trying it."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from fusewatchd.config.settings import Settings
from fusewatchd.daemon.front.user import front_user
from fusewatchd.daemon.placement import take_place
from fusewatchd.doctor.node_checks import NodeFacts
from fusewatchd.errors import FusewatchError
from fusewatchd.linux import fusectl, procfs
from fusewatchd.linux.features import probe_features
from fusewatchd.linux.inotify import PodsDirectoryWatch
from fusewatchd.linux.limits import Limit, why_not
from fusewatchd.model.mount_table import parse_mount_table
from fusewatchd.observe.kubelet.directory import pods_elsewhere
from fusewatchd.observe.kubelet.place import FIRST_PID, is_hidden_from_first
from fusewatchd.observe.kubelet.pods_directory import unwatched_text
from fusewatchd.observe.kubelet.processes import find_kubelet
from fusewatchd.serve.status_socket import NAME, peer_of

MAX_COMMAND = 8192


def examine_node(settings: Settings) -> NodeFacts:
    """Find everything out; to be called before any thread exists.

    Raises:
        OSError: /proc cannot be read.
    """
    place = take_place(settings.kubelet.root)
    way, way_problem, namespace_shortage = _way()
    pid = daemon_pid(settings.runtime_dir)
    subject = pid or os.getpid()
    with open(f"{procfs.PROC}/self/mountinfo", "rb", 0) as file:
        table = parse_mount_table(file.read())
    kubelet = find_kubelet(settings.kubelet.root, table)
    # One that runs has a watch of its own, and says in its status when it has none.
    is_watched = not pid and kubelet.is_found
    watched, unwatched, watch_problem = _watch(kubelet.pods) if is_watched else (0, "", "")
    return NodeFacts(
        release=os.uname().release,
        way=way,
        way_problem=way_problem,
        namespace_shortage=namespace_shortage,
        daemon_pid=pid,
        capabilities=_capabilities(pid, "CapBnd") if pid else _capabilities(os.getpid(), "CapEff"),
        own_namespace=procfs.ns_inode(subject, "mnt") or 0,
        kubelet_namespace=_kubelet_namespace(settings.kubelet.root),
        place_problem=place.problem,
        kubelet=kubelet,
        pods_elsewhere=pods_elsewhere(table, kubelet),
        table=table,
        mount_max=procfs.read_mount_max(),
        max_table_entries=settings.recovery.max_table_entries,
        watched=watched,
        unwatched=unwatched,
        watch_problem=watch_problem,
        has_fusectl=fusectl.is_available(),
        front_remark=front_user().remark,
        request_timeouts=_request_timeouts(),
        commands=_commands(),
    )


def daemon_pid(runtime_dir: str) -> int:
    """Return who listens on the status socket; 0: nobody."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(f"{runtime_dir}/{NAME}")
        except OSError:
            return 0
        return peer_of(client)[0]


def _way() -> tuple[str, str, str]:
    try:
        features = probe_features()
        return features.best_way.value, "", features.namespace_shortage
    except FusewatchError as exc:
        return "", str(exc), ""


def _capabilities(pid: int, which: str) -> int:
    """Return a set of a process.

    The daemon gives up what its fork server keeps; the bounding set says what both were given.
    """
    with procfs.open_process(pid) as process:
        status = process.read("status").decode("ascii", "replace")
    found = [line.split()[1] for line in status.splitlines() if line.startswith(f"{which}:")]
    return int(found[0], 16) if found else 0


def _kubelet_namespace(configured: str) -> int:
    """Return our own, where we were brought or where alone pods' mounts are; else the host's."""
    with suppress(PermissionError):
        went = procfs.ns_inode(os.getpid(), "mnt") or 0
        return went if is_hidden_from_first(configured) else procfs.ns_inode(FIRST_PID, "mnt") or 0
    return 0


def _watch(pods: str) -> tuple[int, str, str]:
    try:
        watch = PodsDirectoryWatch(pods)
    except ImportError as exc:
        return 0, "", str(exc)
    except OSError as exc:
        return 0, "", why_not(exc, Limit.INOTIFY_INSTANCES)
    try:
        return len(watch.watched), unwatched_text(watch), ""
    finally:
        watch.close()


def _request_timeouts() -> dict[str, int]:
    found: dict[str, int] = {}
    for name in ("default_request_timeout", "max_request_timeout"):
        with suppress(OSError, ValueError), open(f"/proc/sys/fs/fuse/{name}") as file:
            found[name] = int(file.read())
    return found


def _commands() -> tuple[tuple[int, str], ...]:
    found = []
    for pid in procfs.list_pids():
        with (
            suppress(FileNotFoundError, ProcessLookupError, PermissionError),
            procfs.open_process(pid) as process,
        ):
            found.append((pid, process.command(MAX_COMMAND)))
    return tuple(found)
