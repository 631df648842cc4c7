"""Which mounts inside other mount namespaces are ours to repair, and from which host bind.

A container mount is ours only if its namespace belongs to a pod and the mount shows
what one of *that pod's own* binds on the host shows, or showed.  Copies of the kubelet's
directory (CSI plugins, node agents, log collectors) show other pods' volumes, so they never
match; a copy that hangs on a peer or slave of a host mount gets the host's replacement by
propagation; and a pod that serves a connection never has it replaced under its feet.

That a pod has only one bind proves nothing: a container can have a hostPath of another FUSE
file system beside it.  Without a moment in which both showed the same thing, or a pod's spec
that leaves no choice, a container mount belongs to nobody.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from fusewatchd.diagnose.bind_quota import within_quota
from fusewatchd.diagnose.lineage import plain_root
from fusewatchd.diagnose.own_layers import layers_of
from fusewatchd.diagnose.spec_entries import entries_at
from fusewatchd.model.findings import Bind, SourceAnswer
from fusewatchd.model.ledger import ContainerFacts, Former, Ledger
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount, MountNamespace, NamespaceKind, TargetKey
from fusewatchd.model.pods import BindKind, BindPath, Pod, VolumeMount
from fusewatchd.model.quota import RefusedOwner
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.stacks import ground_of
from fusewatchd.parse.cgroups import may_be_pod
from fusewatchd.parse.kubelet_paths import parse_bind_path

_KUBELET_TREE = re.compile(r"/pods/[^/]+/volume(s|-subpaths)/")


@dataclass(frozen=True, slots=True)
class ContainerLook:
    """The container mounts that are ours, and all other FUSE mounts of other namespaces."""

    binds: tuple[Bind, ...]
    foreign: tuple[tuple[MountNamespace, Mount], ...]
    unproven: tuple[tuple[MountNamespace, Mount], ...]
    """Those of the foreign ones that may be copies of a bind, and of which nothing tells that."""
    refused_owners: tuple[RefusedOwner, ...] = ()
    """Pods with more that would be ours than one pod may have."""


def find_container_binds(
    snapshot: Snapshot, host_binds: Iterable[Bind], ledger: Ledger
) -> ContainerLook:
    """Sort every FUSE mount of every other namespace into ours and foreign."""
    index = _HostIndex(snapshot, tuple(host_binds), ledger)
    ours: dict[tuple[str, str], list[Bind]] = {}
    foreign: list[tuple[MountNamespace, Mount]] = []
    unproven: list[tuple[MountNamespace, Mount]] = []
    for namespace in snapshot.namespaces:
        for mount, depth in _tops(snapshot.tables.of(namespace)):
            may_be_ours = index.may_be_ours(namespace, mount)
            bind = index.bind_of(namespace, mount, depth) if may_be_ours else None
            if bind is not None:
                whose = namespace.pod_uid, namespace.container_id
                ours.setdefault(whose, []).append(bind)
                continue
            foreign.append((namespace, mount))
            if may_be_ours and index.has_binds(namespace.pod_uid):
                unproven.append((namespace, mount))
    binds, refused = within_quota(ours, index.by_pod, snapshot, ledger)
    return ContainerLook(binds, tuple(foreign), tuple(unproven), refused)


def _tops(table: MountTable) -> Iterable[tuple[Mount, int]]:
    """Yield the topmost FUSE mount that each path leads to with the number of layers there."""
    stacks: dict[str, list[Mount]] = {}
    for mount in table.fuse_mounts():
        stacks.setdefault(mount.mount_point, []).append(mount)
    for point, stack in stacks.items():
        if len(stack) > 1:
            # Behind a layer of the volume above, what was mounted inside the old one may still
            # be at the same path: only what the path leads to counts.
            seen = table.stack_at(point)
            stack = [mount for mount in seen if mount.is_fuse] or stack
        yield stack[-1], len(stack)


def _container_bind(namespace: MountNamespace, mount: Mount, depth: int, origin: Bind) -> Bind:
    path = BindPath(
        BindKind.CONTAINER,
        namespace.pod_uid,
        origin.path.volume,
        origin.path.plugin,
        container=namespace.container_id,
    )
    why = f"the pod's own bind {origin.key.mount_point}"
    source = SourceAnswer(origin.source.rule, why, origin.source.candidates)
    key = TargetKey(namespace.inode, mount.mount_point)
    return Bind(key, path, mount, depth, origin.driver, source, namespace, origin.key)


_NO_PATH = BindPath(BindKind.PUBLISH, "", "")
"""Below a directory that is the kubelet's no more."""


def _place(namespace: MountNamespace, mount: Mount) -> tuple[str, Device, str]:
    return namespace.pod_uid, mount.device, plain_root(mount.root)


class _HostIndex:
    """The host's binds, ready to be asked for the one that a container mount came from."""

    def __init__(self, snapshot: Snapshot, binds: tuple[Bind, ...], ledger: Ledger) -> None:
        self._snapshot = snapshot
        self._ledger = ledger
        self._by_key = {bind.key: bind for bind in binds}
        self.by_pod: dict[str, list[Bind]] = {}
        for bind in binds:
            self.by_pod.setdefault(bind.path.pod_uid, []).append(bind)
        self._target_groups = frozenset(self._groups_of_parents(binds))

    def _groups_of_parents(self, binds: tuple[Bind, ...]) -> Iterable[int]:
        for bind in binds:
            parent = bind.mount and ground_of(bind.mount, self._snapshot.table)
            if parent and parent.peer_group:
                yield parent.peer_group

    def has_binds(self, pod_uid: str) -> bool:
        """True for a pod with FUSE volumes; one without looks at others' through a hostPath."""
        return pod_uid in self.by_pod

    def may_be_ours(self, namespace: MountNamespace, mount: Mount) -> bool:
        """False where nothing may be done, whatever the mount is a copy of."""
        if namespace.kind is not NamespaceKind.CONTAINER or not namespace.pid:
            return False
        if _KUBELET_TREE.search(mount.mount_point):
            return False
        is_served_here = self._serves(namespace, mount.device)
        return not (is_served_here or self._receives_from_host(namespace, mount))

    def _receives_from_host(self, namespace: MountNamespace, mount: Mount) -> bool:
        parent = ground_of(mount, self._snapshot.tables.of(namespace))
        if parent is None:
            return False
        return bool(self._target_groups & {parent.peer_group, parent.master})

    def _serves(self, namespace: MountNamespace, device: Device) -> bool:
        servers = self._snapshot.servers.get(device, ())
        return any(may_be_pod(server.pod_uid, namespace.pod_uid) for server in servers)

    def bind_of(self, namespace: MountNamespace, mount: Mount, depth: int) -> Bind | None:
        """Return what this mount is of its pod, if it is or was a copy of one on the host.

        Once recognised, a mount stays that for its life, also when the host's side is unmounted.
        """
        origin = self.origin_of(namespace, mount)
        if origin is not None:
            return _container_bind(namespace, mount, depth, origin)
        known = self._known(namespace, mount)
        if known is not None and known.source is not None:
            place, driver, source = known.origin, known.driver, known.source
        else:
            former = self._ledger.former.get(_place(namespace, mount))
            if former is None or not self._is_meant(namespace, mount, former):
                return None
            place, driver, source = former.key.mount_point, former.driver, former.source
        path = parse_bind_path(self._snapshot.kubelet.pods, place) or _NO_PATH
        origin = Bind(TargetKey(0, place), path, None, 0, driver, source)
        return _container_bind(namespace, mount, depth, origin)

    def _is_meant(self, namespace: MountNamespace, mount: Mount, former: Former) -> bool:
        """True while the device number cannot mean another file system."""
        if former.key in self._by_key or is_used_again(mount.device, former, self._snapshot):
            return False
        return namespace.is_own or not self._snapshot.is_dead(mount.device)

    def origin_of(self, namespace: MountNamespace, mount: Mount) -> Bind | None:
        """Return the host bind that this mount is proven to be a copy of."""
        pod_uid, root = namespace.pod_uid, plain_root(mount.root)
        binds = [bind for bind in self.by_pod.get(pod_uid, []) if root_of(bind) == root]
        for bind in binds:
            if bind.mount and bind.mount.device == mount.device:
                return bind
        for bind in binds:
            # A repair that was cut short may have left there what both of them showed.
            layers = layers_of(bind, self._snapshot)
            if any(m.device == mount.device and plain_root(m.root) == root for m in layers):
                return bind
        earlier = self._ledger.former.get(_place(namespace, mount))
        if earlier and not is_used_again(mount.device, earlier, self._snapshot):
            # Its bind may be gone: that makes it no copy of the pod's other volume.
            return self._by_number(namespace, mount, earlier)
        return self._remembered(namespace, mount, binds) or self._by_spec(namespace, mount, binds)

    def _by_number(self, namespace: MountNamespace, mount: Mount, earlier: Former) -> Bind | None:
        """Return the bind that showed this device number earlier.

        The number may be another's by now.  A dead mount in a namespace that a process of the
        container made is believed only if this very mount was known before.
        """
        bind = self._by_key.get(earlier.key)
        if namespace.is_own or not self._snapshot.is_dead(mount.device):
            return bind
        return self._remembered(namespace, mount, [bind]) if bind is not None else None

    def _remembered(
        self, namespace: MountNamespace, mount: Mount, binds: list[Bind]
    ) -> Bind | None:
        """After a restart: the bind that an earlier run saw this very mount to be a copy of."""
        known = self._known(namespace, mount)
        if known is None:
            return None
        return next((bind for bind in binds if bind.key.mount_point == known.origin), None)

    def _known(self, namespace: MountNamespace, mount: Mount) -> ContainerFacts | None:
        """Return what is known of this very mount, if it was proven to be a copy."""
        known = self._ledger.facts_of(namespace, mount.mount_point)
        if known is None or (known.mount_id, known.device) != (mount.mount_id, mount.device):
            return None
        return known if known.origin else None

    def _by_spec(self, namespace: MountNamespace, mount: Mount, binds: list[Bind]) -> Bind | None:
        """After a restart: the bind that the pod's spec puts there, if it can only be one.

        Only in the container's own namespace: in one that its processes made, they choose what
        is at which path.
        """
        pod = (self._snapshot.pods or {}).get(namespace.pod_uid)
        if pod is None or not namespace.container_name or not namespace.is_own:
            return None
        entries = entries_at(pod, namespace, mount.mount_point)
        if len({(entry.volume, entry.sub_path) for entry in entries}) != 1:
            return None
        named = [b for b in binds if any(_is_volume_of(pod, entry, b.path) for entry in entries)]
        return named[0] if len(named) == 1 else None


def root_of(bind: Bind) -> str:
    return plain_root(bind.mount.root) if bind.mount else ""


_OWN_NAME = frozenset({"csi", "flexVolume"})
"""Volumes whose directory has the name that they have in the pod's spec."""
_CLAIMS = frozenset({"persistentVolumeClaim", "ephemeral"})
"""Volumes whose directory has the name of a PersistentVolume, which the pod does not know."""


def _is_volume_of(pod: Pod, entry: VolumeMount, path: BindPath) -> bool:
    """True when a bind can only be that of the volume of an entry."""
    if path.kind is BindKind.EMPTY_DIR:
        # What a container mounts inside one is no volume that the spec has anywhere.
        return False
    if bool(entry.sub_path) != (path.kind is BindKind.SUBPATH):
        return False
    if path.kind is BindKind.SUBPATH and path.container != entry.container:
        return False
    kinds = {volume.name: volume.kind for volume in pod.volumes}
    kind = kinds.get(entry.volume)
    if kind in _OWN_NAME:
        return path.volume == entry.volume
    is_only_claim = sum(k in _CLAIMS for k in kinds.values()) == 1
    return kind in _CLAIMS and is_only_claim and kinds.get(path.volume) not in _OWN_NAME


def _came_to_light(mount: Mount, known: ContainerFacts, snapshot: Snapshot) -> bool:
    """True for a dead layer that another one hid: what is inside of it nobody has seen or misses.

    Nobody mounts anything in a dead file system.
    """
    is_another = (known.mount_id, known.device) != (mount.mount_id, mount.device)
    return bool(known.mount_id) and is_another and snapshot.is_dead(mount.device)


def is_used_again(device: Device, known: Former, snapshot: Snapshot) -> bool:
    """True when another file system with this number was mounted after the bind had left it."""
    return snapshot.seen_at.get(device, 0.0) > known.seen_at
