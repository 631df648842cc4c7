"""Containers that stand on the node's own directory where their volume is mounted, or was; pure.

A driver may unmount a volume while its pod runs.  A container that starts in that moment gets
the directory below, and keeps it when the volume is mounted again.  It reads and writes the
node's disk, and no call fails (kubernetes/kubernetes#109955).  Its mount table shows that: the
mount has just the directory on which the volume's own mount stands.

A driver that publishes a directory of the node is not meant.  That directory is mounted at the
publish path, or the path never had a FUSE mount.  A mount in an emptyDir is its pod's own.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from fusewatchd.diagnose.lineage import plain_root
from fusewatchd.model.findings import Bind, Finding, SourceAnswer, Underneath
from fusewatchd.model.mount_table import MountTable, below
from fusewatchd.model.mounts import Device, Mount, MountNamespace, NamespaceKind, TargetKey
from fusewatchd.model.pods import BindKind, BindPath
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.stacks import ground_at
from fusewatchd.parse.kubelet_paths import parse_bind_path


@dataclass(frozen=True, slots=True)
class _Directory:
    """What lies below the mount of a volume on the host."""

    device: Device
    root: str
    bind: Bind


def find(
    snapshot: Snapshot, on_host: Iterable[Finding], published: Mapping[str, SourceAnswer]
) -> list[Bind]:
    """Return each container mount that shows the directory below a FUSE volume.

    ``on_host`` are the findings on the host, ``published`` what was seen there earlier.
    """
    concerned = [space for space in snapshot.namespaces if _is_concerned(space)]
    if not concerned:
        return []
    uids = {namespace.pod_uid for namespace in concerned}
    binds = {f.bind.key: f.bind for f in on_host if f.bind.path.pod_uid in uids}
    for path, answer in published.items():
        where = parse_bind_path(snapshot.kubelet.pods, path)
        key = TargetKey(0, path)
        if where is not None and where.pod_uid in uids and key not in binds:
            binds[key] = Bind(key, where, None, 0, "", answer)
    directories: dict[str, list[_Directory]] = {}
    for bind in binds.values():
        directory = _below(bind, snapshot.table)
        if directory is not None:
            directories.setdefault(bind.path.pod_uid, []).append(directory)
    return [
        found
        for namespace in concerned
        for found in _of_namespace(namespace, directories.get(namespace.pod_uid, ()), snapshot)
    ]


def _is_concerned(namespace: MountNamespace) -> bool:
    """False without such mounts, and where a process of the container chose what is mounted."""
    is_container = namespace.kind is NamespaceKind.CONTAINER and bool(namespace.pid)
    return bool(namespace.directories) and is_container and namespace.is_own


def _below(bind: Bind, table: MountTable) -> _Directory | None:
    point, ground = bind.key.mount_point, None
    if bind.path.kind in (BindKind.EMPTY_DIR, BindKind.CONTAINER):
        return None
    if bind.mount is not None or not table.at(point):
        ground = ground_at(point, table)
    inside = below(point, ground.mount_point) if ground is not None else None
    if ground is None or not inside or ground.is_fuse:
        return None
    root = posixpath.normpath(posixpath.join(plain_root(ground.root), inside))
    return _Directory(ground.device, root, bind)


def _of_namespace(
    namespace: MountNamespace, directories: Iterable[_Directory], snapshot: Snapshot
) -> Iterator[Bind]:
    table = snapshot.tables.of(namespace)
    directories = tuple(directories)
    for number in namespace.directories if directories else ():
        mount = table.by_id(number)
        if mount is None or not _is_seen(mount, table):
            continue
        for directory in directories:
            inside = below(plain_root(mount.root), directory.root)
            if mount.device != directory.device or inside is None:
                continue
            if not _is_served_by(namespace, directory.bind, snapshot):
                yield _bind(namespace, mount, directory.bind, inside, snapshot)
            break


def _is_seen(mount: Mount, table: MountTable) -> bool:
    """False where something is mounted on it.

    Layers of ours may be known without what they stand on, so any FUSE mount there counts.
    """
    point = mount.mount_point
    return table.top_at(point) == mount and not any(other.is_fuse for other in table.at(point))


def _is_served_by(namespace: MountNamespace, bind: Bind, snapshot: Snapshot) -> bool:
    """True for the container that serves the volume: it may need what is below."""
    servers = snapshot.servers.get(bind.mount.device, ()) if bind.mount is not None else ()
    own = namespace.container_id
    return bool(own) and any(server.container_id == own for server in servers)


def _bind(
    namespace: MountNamespace, mount: Mount, origin: Bind, inside: str, snapshot: Snapshot
) -> Bind:
    path = BindPath(
        BindKind.CONTAINER,
        namespace.pod_uid,
        origin.path.volume,
        origin.path.plugin,
        namespace.container_id,
    )
    point = origin.key.mount_point
    host_path = f"{point}/{inside}" if inside else point
    source = SourceAnswer(
        origin.source.rule, f"the pod's own bind {point}", origin.source.candidates
    )
    data = snapshot.volume_data.get((path.pod_uid, path.volume))
    driver = origin.driver or (data.driver if data is not None else "")
    key = TargetKey(namespace.inode, mount.mount_point)
    underneath = Underneath(mount, host_path, inside)
    return Bind(key, path, None, 0, driver, source, namespace, origin.key, underneath=underneath)
