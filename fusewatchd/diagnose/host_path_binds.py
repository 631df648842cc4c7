"""Container mounts of hostPath volumes that lead to a FUSE file system of the node; pure.

The kubelet binds no hostPath: the runtime takes the path itself, so there is nothing below the
pods directory, and the host's side is its driver's business.  What a container shows is found
by its own entries in the pod's spec, and put in order from what the path leads to now, as a
restarted container would get it.

Ours is only what the spec leaves no choice about: one volumeMount at just this path, of a
hostPath, without a subPath (that has a bind of the kubelet's).  One with Bidirectional is left
alone: its container may be the one that mounts there, for the host to see.  So is a mount on top
of another one that we did not make: the container has put it there itself.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from fusewatchd.diagnose.lineage import plain_root
from fusewatchd.diagnose.lxcfs import LxcfsFiles
from fusewatchd.diagnose.spec_entries import entries_at
from fusewatchd.model.findings import Bind, SourceAnswer, SourcePath
from fusewatchd.model.ledger import Ledger
from fusewatchd.model.mount_table import MountTable, below
from fusewatchd.model.mounts import Mount, MountNamespace, NamespaceKind, TargetKey
from fusewatchd.model.pods import BindKind, BindPath, Pod, Volume
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason
from fusewatchd.parse.cgroups import may_be_pod

RULE = "host-path"
_PLUGIN = "kubernetes.io~host-path"

Places = tuple[tuple[MountNamespace, Mount], ...]


def find(
    snapshot: Snapshot, foreign: Places, ledger: Ledger, ignored_fs_types: frozenset[str]
) -> tuple[list[Bind], Places]:
    """Take the mounts of hostPath volumes out of those that are nobody's."""
    found: list[Bind] = []
    left: list[tuple[MountNamespace, Mount]] = []
    lxcfs = LxcfsFiles(snapshot, ledger)
    for namespace, mount in foreign:
        bind = None
        if mount.fs_type not in ignored_fs_types:
            bind = _bind(namespace, mount, snapshot, ledger) or lxcfs.bind(namespace, mount)
        if bind is None:
            left.append((namespace, mount))
        else:
            found.append(bind)
    return found, tuple(left)


def _bind(
    namespace: MountNamespace, mount: Mount, snapshot: Snapshot, ledger: Ledger
) -> Bind | None:
    pod = (snapshot.pods or {}).get(namespace.pod_uid)
    if pod is None or namespace.kind is not NamespaceKind.CONTAINER or not namespace.pid:
        return None
    servers = snapshot.servers.get(mount.device, ())
    if any(may_be_pod(server.pod_uid, pod.directory_uid) for server in servers):
        return None
    volume = _volume_at(pod, namespace, mount.mount_point)
    if volume is None:
        return None
    source = _source(volume.path, mount, snapshot)
    key = TargetKey(namespace.inode, mount.mount_point)
    is_proven = namespace.is_own and namespace.container_name
    if not is_proven and not _was_shown(volume.path, namespace, mount, snapshot, ledger):
        return None
    depth = len(snapshot.tables.of(namespace).stack_at(mount.mount_point))
    if source is None or not _is_ours(depth, mount, key, ledger):
        return None
    path = BindPath(
        BindKind.CONTAINER, pod.directory_uid, volume.name, _PLUGIN, namespace.container_id
    )
    return Bind(key, path, mount, depth, mount.subtype, source, namespace)


def _was_shown(
    host_path: str,
    namespace: MountNamespace,
    mount: Mount,
    snapshot: Snapshot,
    ledger: Ledger,
) -> bool:
    """True for a mount that shows what the path leads to, or is known to have shown it."""
    top = _led_to(_normal(host_path), snapshot.table)
    if top is not None and top.device == mount.device:
        return True
    known = ledger.facts_of(namespace, mount.mount_point)
    return known is not None and (known.mount_id, known.device) == (mount.mount_id, mount.device)


def _is_ours(layers: int, mount: Mount, key: TargetKey, ledger: Ledger) -> bool:
    """False when the container may have mounted something of its own on the volume."""
    return layers <= 1 or any(own.is_about(mount) for own in ledger.own_layers.get(key, ()))


def _volume_at(pod: Pod, namespace: MountNamespace, mount_point: str) -> Volume | None:
    """Return the hostPath that a container has at a path, if it can only be one."""
    entries = entries_at(pod, namespace, mount_point)
    by_name: Mapping[str, Volume] = {volume.name: volume for volume in pod.volumes}
    if len({entry.volume for entry in entries}) != 1:
        return None
    volume = by_name.get(entries[0].volume)
    if volume is None or volume.kind != "hostPath" or not volume.path.startswith("/"):
        return None
    if any(entry.sub_path or entry.propagation == "Bidirectional" for entry in entries):
        return None
    return volume


def _source(host_path: str, mount: Mount, snapshot: Snapshot) -> SourceAnswer | None:
    """Return what the path leads to now; None where that is a bind of the kubelet's."""
    host_path = _normal(host_path)
    why = f"the pod's hostPath {host_path}"
    top = _led_to(host_path, snapshot.table)
    if top is None or not top.is_fuse:
        if plain_root(mount.root) == "/" and not snapshot.table.at(host_path):
            return SourceAnswer(RULE, why, (SourcePath(host_path),))
        return SourceAnswer(RULE, f"{why} leads to no FUSE file system")
    if below(top.mount_point, snapshot.kubelet.pods) is not None:
        return None
    inside = below(host_path, top.mount_point) or ""
    if plain_root(mount.root) != posixpath.normpath(posixpath.join(top.root, inside)):
        changed = f"{why} leads to another part of a file system now"
        return SourceAnswer(RULE, changed, refusal=Reason.SOURCE_ROOT)
    return SourceAnswer(RULE, why, (SourcePath(top.mount_point, top.root),))


def _normal(host_path: str) -> str:
    return posixpath.normpath("/" + host_path.lstrip("/"))


def _led_to(path: str, table: MountTable) -> Mount | None:
    """Return the mount that a path is on, without what others cover."""
    found = table.top_at("/")
    for end in (i for i in range(1, len(path) + 1) if i == len(path) or path[i] == "/"):
        stack = table.stack_at(path[:end])
        if stack and (found is None or stack[0].parent_id == found.mount_id):
            found = stack[-1]
    return found
