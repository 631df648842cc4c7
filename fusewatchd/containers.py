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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from fusewatchd.actions import Propagation
from fusewatchd.children import known_inside, mounts_inside, received_inside
from fusewatchd.decision import Bind
from fusewatchd.ledger import ContainerFacts, Former, Ledger
from fusewatchd.lineage import plain_root
from fusewatchd.model import (
    BindKind,
    BindPath,
    Device,
    Mount,
    MountNamespace,
    NamespaceKind,
    Pod,
    SourceAnswer,
    TargetKey,
    VolumeMount,
)
from fusewatchd.mountinfo import MountTable
from fusewatchd.ownlayers import layers_of
from fusewatchd.rights import rights_after
from fusewatchd.snapshot import Snapshot
from fusewatchd.stacks import ground_of

BIRTH_SECONDS = 5.0
"""How long a container that is being made may hold what no mount table shows yet."""
_KUBELET_TREE = re.compile(r"/pods/[0-9a-f-]{32,36}/volume(s|-subpaths)/")


@dataclass(frozen=True, slots=True)
class ContainerLook:
    """The container mounts that are ours, and all other FUSE mounts of other namespaces."""

    binds: tuple[Bind, ...]
    foreign: tuple[tuple[MountNamespace, Mount], ...]
    unproven: tuple[tuple[MountNamespace, Mount], ...]
    """Those of the foreign ones that may be copies of a bind, and of which nothing tells that."""


def find_container_binds(
    snapshot: Snapshot, host_binds: Iterable[Bind], ledger: Ledger
) -> ContainerLook:
    """Sort every FUSE mount of every other namespace into ours and foreign."""
    index = _HostIndex(snapshot, tuple(host_binds), ledger)
    ours: list[Bind] = []
    foreign: list[tuple[MountNamespace, Mount]] = []
    unproven: list[tuple[MountNamespace, Mount]] = []
    for namespace in snapshot.namespaces:
        for mount, depth in _tops(namespace, index.table_of(namespace)):
            may_be_ours = index.may_be_ours(namespace, mount)
            origin = index.origin_of(namespace, mount) if may_be_ours else None
            if origin is not None:
                ours.append(_container_bind(namespace, mount, depth, origin))
                continue
            foreign.append((namespace, mount))
            if may_be_ours and index.has_binds(namespace.pod_uid):
                unproven.append((namespace, mount))
    return ContainerLook(tuple(ours), tuple(foreign), tuple(unproven))


def _tops(namespace: MountNamespace, table: MountTable) -> Iterable[tuple[Mount, int]]:
    """Yield the topmost FUSE mount that each path leads to with the number of layers there."""
    stacks: dict[str, list[Mount]] = {}
    for mount in namespace.mounts:
        if mount.is_fuse:
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


class _HostIndex:
    """The host's binds, ready to be asked for the one that a container mount came from."""

    def __init__(self, snapshot: Snapshot, binds: tuple[Bind, ...], ledger: Ledger) -> None:
        self._snapshot = snapshot
        self._ledger = ledger
        self._by_key = {bind.key: bind for bind in binds}
        self._by_pod: dict[str, list[Bind]] = {}
        for bind in binds:
            self._by_pod.setdefault(bind.path.pod_uid, []).append(bind)
        self._target_groups = frozenset(self._groups_of_parents(binds))
        self._tables: dict[int, MountTable] = {}

    def _groups_of_parents(self, binds: tuple[Bind, ...]) -> Iterable[int]:
        for bind in binds:
            parent = bind.mount and ground_of(bind.mount, self._snapshot.table)
            if parent and parent.peer_group:
                yield parent.peer_group

    def table_of(self, namespace: MountNamespace) -> MountTable:
        """Return the mounts of a namespace, ready to be followed from one to the other."""
        table = self._tables.get(namespace.inode)
        if table is None:
            table = self._tables[namespace.inode] = MountTable.of(namespace.mounts)
        return table

    def has_binds(self, pod_uid: str) -> bool:
        """True for a pod with FUSE volumes; one without looks at others' through a hostPath."""
        return pod_uid in self._by_pod

    def may_be_ours(self, namespace: MountNamespace, mount: Mount) -> bool:
        """False where nothing may be done, whatever the mount is a copy of."""
        if namespace.kind is not NamespaceKind.CONTAINER or not namespace.pid:
            return False
        if _KUBELET_TREE.search(mount.mount_point):
            return False
        is_served_here = self._serves(namespace, mount.device)
        return not (is_served_here or self._receives_from_host(namespace, mount))

    def _receives_from_host(self, namespace: MountNamespace, mount: Mount) -> bool:
        parent = ground_of(mount, self.table_of(namespace))
        if parent is None:
            return False
        return bool(self._target_groups & {parent.peer_group, parent.master})

    def _serves(self, namespace: MountNamespace, device: Device) -> bool:
        servers = self._snapshot.servers.get(device, ())
        return any(server.pod_uid == namespace.pod_uid for server in servers)

    def origin_of(self, namespace: MountNamespace, mount: Mount) -> Bind | None:
        """Return the host bind that this mount is proven to be a copy of."""
        pod_uid, root = namespace.pod_uid, plain_root(mount.root)
        binds = [bind for bind in self._by_pod.get(pod_uid, []) if _root(bind) == root]
        for bind in binds:
            if bind.mount and bind.mount.device == mount.device:
                return bind
        for bind in binds:
            # A repair that was cut short may have left there what both of them showed.
            layers = layers_of(bind, self._snapshot)
            if any(m.device == mount.device and plain_root(m.root) == root for m in layers):
                return bind
        earlier = self._ledger.former.get((pod_uid, mount.device, root))
        if earlier and not _is_used_again(mount.device, earlier, self._snapshot):
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
        known = self._ledger.facts_of(namespace, mount.mount_point)
        if known is None or (known.mount_id, known.device) != (mount.mount_id, mount.device):
            return None
        return next((bind for bind in binds if bind.key.mount_point == known.origin), None)

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


def _root(bind: Bind) -> str:
    return plain_root(bind.mount.root) if bind.mount else ""


def entries_at(pod: Pod, namespace: MountNamespace, mount_point: str) -> tuple[VolumeMount, ...]:
    """Return what a container has at a path; what all have, where its name is not known."""
    return tuple(
        entry
        for entry in pod.volume_mounts
        if entry.mount_path.rstrip("/") == mount_point
        and namespace.container_name in ("", entry.container)
    )


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


def facts_of(
    bind: Bind, origin: Bind | None, known: ContainerFacts | None, snapshot: Snapshot
) -> ContainerFacts:
    """Return what is to be remembered of a container mount after this look."""
    assert bind.mount is not None and bind.namespace is not None
    if known is None:
        known = _first_look(bind, bind.mount, bind.namespace, origin, snapshot)
    now = mounts_inside(bind, bind.mount, snapshot)
    received: tuple[int, ...] = ()
    if known.propagation is Propagation.SLAVE:
        received = received_inside(now, known.received, origin, snapshot)
    own = tuple(mount for mount in now if mount.mount_id not in received)
    inside = known_inside(bind.mount.device, own, known.inside, snapshot)
    if _came_to_light(bind.mount, known, snapshot):
        inside = known.inside
    connection = snapshot.connections.get(bind.mount.device)
    rights = rights_after(known.rights, bind.mount, connection)
    if (inside, received, rights) != (known.inside, known.received, known.rights):
        known = replace(known, inside=inside, received=received, rights=rights)
    if origin is None and bind.origin is not None:
        return known
    if origin is None:
        # Of a hostPath: the spec named it in the container's own namespace, or its device did.
        return replace(known, mount_id=bind.mount.mount_id, device=bind.mount.device)
    # It has just been proven to be a copy of that bind, whatever the bind shows by now.
    device, mount_id = bind.mount.device, bind.mount.mount_id
    return replace(known, origin=origin.key.mount_point, mount_id=mount_id, device=device)


def still_true(
    known: Mapping[TargetKey, ContainerFacts], snapshot: Snapshot
) -> dict[TargetKey, ContainerFacts]:
    """Keep what is known of mounts that are there as they were, whatever their binds show.

    A bind may be gone for a moment, until its driver publishes it again.
    """
    namespaces = {namespace.inode: namespace for namespace in snapshot.namespaces}
    kept: dict[TargetKey, ContainerFacts] = {}
    for key, facts in known.items():
        namespace = namespaces.get(key.namespace)
        mount = namespace.mount(facts.mount_id) if namespace is not None else None
        if namespace is None or mount is None:
            continue
        is_same = (mount.mount_point, mount.device) == (key.mount_point, facts.device)
        whose = (namespace.pod_uid, namespace.container_id)
        if is_same and whose == (facts.pod_uid, facts.container):
            kept[key] = facts
    return kept


def _came_to_light(mount: Mount, known: ContainerFacts, snapshot: Snapshot) -> bool:
    """True for a dead layer that another one hid: what is inside of it nobody has seen or misses.

    Nobody mounts anything in a dead file system.
    """
    is_another = (known.mount_id, known.device) != (mount.mount_id, mount.device)
    return bool(known.mount_id) and is_another and snapshot.is_dead(mount.device)


def _first_look(
    bind: Bind, mount: Mount, namespace: MountNamespace, origin: Bind | None, snapshot: Snapshot
) -> ContainerFacts:
    """Describe a container mount as it is when it is seen for the first time.

    The pod's spec wins where it is known and says one thing: after a restart of the daemon
    the mount itself may already be what is left of a repair, or the layer of somebody who
    forgot ``ro``.  But in a user namespace of its own anybody can be root, and nothing that
    is mounted there may ever reach the host.
    """
    here = [m for m in namespace.mounts if m.mount_point == bind.key.mount_point]
    read_only = any(layer.is_read_only for layer in (mount, *here))
    propagation = _propagation_now(mount, origin)
    pod = (snapshot.pods or {}).get(bind.path.pod_uid)
    entries = entries_at(pod, namespace, bind.key.mount_point) if pod else ()
    if len({(e.volume, e.read_only, e.propagation) for e in entries}) == 1:
        wanted = _BY_NAME.get(entries[0].propagation, propagation)
        if wanted is not Propagation.PEER or not namespace.own_user_namespace:
            propagation = wanted
        read_only = read_only or entries[0].read_only
    return ContainerFacts(propagation, read_only, namespace.pod_uid, namespace.container_id)


_BY_NAME = {
    "None": Propagation.PRIVATE,
    "HostToContainer": Propagation.SLAVE,
    "Bidirectional": Propagation.PEER,
}


def _propagation_now(mount: Mount, origin: Bind | None) -> Propagation:
    group = origin.mount.peer_group if origin and origin.mount else 0
    if group and mount.peer_group == group:
        # Also when the bind on the host is a slave of its source: so are all its peers.
        return Propagation.PEER
    if mount.master:
        return Propagation.SLAVE
    # A container can make a group of its own, and is no peer of the host by that.
    return Propagation.OWN_GROUP if mount.peer_group else Propagation.PRIVATE


def remember_former(
    former: Mapping[tuple[str, Device, str], Former], binds: Iterable[Bind], snapshot: Snapshot
) -> dict[tuple[str, Device, str], Former]:
    """Add what the host binds show now, and drop devices whose number may mean another."""
    shown = _shown_anywhere(snapshot)
    kept = {
        place: known
        for place, known in former.items()
        if _is_still_meant(place[1], known, shown, snapshot)
    }
    binds = tuple(binds)
    for bind in binds:
        if bind.mount is not None:
            place = (bind.path.pod_uid, bind.mount.device, _root(bind))
            kept[place] = Former(bind.key, snapshot.taken_at)
    for bind in binds:
        # What a bind covers is shown again in containers that lose what is on top of it.
        for layer in layers_of(bind, snapshot)[:-1]:
            place = (bind.path.pod_uid, layer.device, plain_root(layer.root))
            if layer.is_fuse:
                kept.setdefault(place, Former(bind.key, snapshot.taken_at))
    return kept


def _shown_anywhere(snapshot: Snapshot) -> frozenset[Device]:
    devices = {mount.device for mount in snapshot.table.fuse_mounts()}
    for namespace in snapshot.namespaces:
        devices.update(mount.device for mount in namespace.mounts if mount.is_fuse)
    return frozenset(devices)


def _is_still_meant(
    device: Device, known: Former, shown: frozenset[Device], snapshot: Snapshot
) -> bool:
    is_fresh = snapshot.taken_at - known.seen_at < BIRTH_SECONDS
    return (device in shown or is_fresh) and not _is_used_again(device, known, snapshot)


def _is_used_again(device: Device, known: Former, snapshot: Snapshot) -> bool:
    """True when another file system with this number was mounted after the bind had left it."""
    return snapshot.seen_at.get(device, 0.0) > known.seen_at
