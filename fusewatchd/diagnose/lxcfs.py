"""Files of lxcfs over ``/proc`` and ``/sys`` in pods' containers; pure.

Hooks of the runtime, webhooks and scripts put them there, so the pod's spec need not have them.
Each lxcfs shows the same: what the cgroup of the reader allows.  Only one that root has mounted
on the host is taken.  Those of LXC's and Incus' own containers are in no pod.
"""

from __future__ import annotations

from collections.abc import Iterable

from fusewatchd.diagnose.lineage import plain_root
from fusewatchd.model.findings import Bind, SourceAnswer, SourcePath
from fusewatchd.model.ledger import Ledger
from fusewatchd.model.mounts import Mount, MountNamespace, NamespaceKind, TargetKey
from fusewatchd.model.pods import BindKind, BindPath
from fusewatchd.model.servers import FuseServer
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.parse.kubelet_paths import is_in_a_pod

FS_TYPE = "fuse.lxcfs"
RULE = "lxcfs"
_SHOWN = "it was mounted there while it worked"
_USUAL = "/var/lib/lxcfs"
"""lxcfs, config/init/systemd/lxcfs.service.in."""


class LxcfsFiles:
    """Knows where lxcfs is mounted on the host, once that is asked for."""

    def __init__(self, snapshot: Snapshot, ledger: Ledger) -> None:
        """Look at nothing yet."""
        self._snapshot = snapshot
        self._ledger = ledger
        self._places: tuple[str, ...] | None = None

    def bind(self, namespace: MountNamespace, mount: Mount) -> Bind | None:
        """Return a file of lxcfs that a container has; None for every other mount."""
        if mount.fs_type != FS_TYPE or not mount.mount_point.startswith(("/proc/", "/sys/")):
            return None
        is_container = namespace.kind is NamespaceKind.CONTAINER and bool(namespace.pid)
        if not (is_container and namespace.is_own and namespace.pod_uid):
            return None
        if any(server.pod_uid == namespace.pod_uid for server in self._servers(mount)):
            return None
        key = TargetKey(namespace.inode, mount.mount_point)
        depth = len(self._snapshot.tables.of(namespace).stack_at(mount.mount_point))
        if depth > 1 and not any(
            layer.is_about(mount) for layer in self._ledger.own_layers.get(key, ())
        ):
            return None
        path = BindPath(
            BindKind.CONTAINER, namespace.pod_uid, RULE, container=namespace.container_id
        )
        source = self._source(namespace, mount)
        return Bind(key, path, mount, depth, mount.subtype, source, namespace)

    def _servers(self, mount: Mount) -> Iterable[FuseServer]:
        return self._snapshot.servers.get(mount.device, ())

    def _source(self, namespace: MountNamespace, mount: Mount) -> SourceAnswer:
        shown = _places(self._snapshot.table.on_device(mount.device))
        if shown:
            return _answer(_SHOWN, shown)
        known = self._ledger.facts_of(namespace, mount.mount_point)
        is_same = known is not None and (known.mount_id, known.device) == (
            mount.mount_id,
            mount.device,
        )
        if is_same and known is not None and known.source and known.source.why == _SHOWN:
            return known.source
        if self._places is None:
            self._places = _places(self._snapshot.table.fuse_mounts())
        return _answer("an lxcfs is mounted there", self._places or (_USUAL,))


def _places(mounts: Iterable[Mount]) -> tuple[str, ...]:
    """Return where root has mounted an lxcfs as a whole, the usual place or the oldest first."""
    found = [
        mount
        for mount in mounts
        if mount.fs_type == FS_TYPE
        and plain_root(mount.root) == "/"
        and mount.user_id == 0
        and not is_in_a_pod(mount.mount_point)
    ]
    found.sort(key=lambda m: (m.mount_point != _USUAL, m.unique_id or m.mount_id))
    return tuple(dict.fromkeys(mount.mount_point for mount in found))


def _answer(why: str, places: tuple[str, ...]) -> SourceAnswer:
    # Not by its place alone: what is mounted there must call itself the same.
    return SourceAnswer(RULE, why, (SourcePath(places[0]),), is_older=True)
