"""Which mounts inside other mount namespaces are ours to repair, and from which host bind.

A container mount is ours only if its namespace belongs to a pod by cgroup and the mount shows
what one of *that pod's own* binds on the host shows, or showed.  Copies of the kubelet's
directory (CSI plugins, node agents, log collectors) show other pods' volumes, so they never
match; a copy that hangs on a peer or slave of a host mount gets the host's replacement by
propagation; and a pod that serves a connection never has it replaced under its feet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fusewatchd.decision import Bind, Propagation
from fusewatchd.ledger import ContainerFacts, Ledger
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
)
from fusewatchd.snapshot import Snapshot

MAX_LAYERS = 64
"""Of one stack that are looked at."""
_KUBELET_TREE = re.compile(r"/pods/[0-9a-f-]{32,36}/volume(s|-subpaths)/")


@dataclass(frozen=True, slots=True)
class ContainerLook:
    """The container mounts that are ours, and how many FUSE mounts elsewhere are not."""

    binds: tuple[Bind, ...]
    foreign: tuple[tuple[MountNamespace, Mount], ...]


def find_container_binds(
    snapshot: Snapshot, host_binds: Iterable[Bind], ledger: Ledger
) -> ContainerLook:
    """Sort every FUSE mount of every other namespace into ours and foreign."""
    index = _HostIndex(snapshot, tuple(host_binds), ledger)
    ours: list[Bind] = []
    foreign: list[tuple[MountNamespace, Mount]] = []
    for namespace in snapshot.namespaces:
        for mount, depth in _tops(namespace):
            origin = index.origin_of(namespace, mount)
            if origin is None:
                foreign.append((namespace, mount))
            else:
                ours.append(_container_bind(namespace, mount, depth, origin))
    return ContainerLook(tuple(ours), tuple(foreign))


def _tops(namespace: MountNamespace) -> Iterable[tuple[Mount, int]]:
    """Yield the topmost FUSE mount of each path with the number of layers there."""
    stacks: dict[str, list[Mount]] = {}
    for mount in namespace.mounts:
        if mount.is_fuse:
            stacks.setdefault(mount.mount_point, []).append(mount)
    for stack in stacks.values():
        covered = {mount.parent_id for mount in stack}
        top = next((m for m in stack if m.mount_id not in covered), stack[-1])
        yield top, len(stack)


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

    def _groups_of_parents(self, binds: tuple[Bind, ...]) -> Iterable[int]:
        for bind in binds:
            parent = bind.mount and _below_stack(bind.mount, self._snapshot.table.by_id)
            if parent and parent.peer_group:
                yield parent.peer_group

    def origin_of(self, namespace: MountNamespace, mount: Mount) -> Bind | None:
        """Return the host bind that this mount is a copy of; None when it is not ours."""
        if namespace.kind is not NamespaceKind.CONTAINER or not namespace.pid:
            return None
        if _KUBELET_TREE.search(mount.mount_point):
            return None
        if self._receives_from_host(namespace, mount) or self._serves(namespace, mount.device):
            return None
        return self._matching(namespace, mount)

    def _receives_from_host(self, namespace: MountNamespace, mount: Mount) -> bool:
        parent = _below_stack(mount, namespace.mount)
        if parent is None:
            return False
        return bool(self._target_groups & {parent.peer_group, parent.master})

    def _serves(self, namespace: MountNamespace, device: Device) -> bool:
        servers = self._snapshot.servers.get(device, ())
        return any(server.pod_uid == namespace.pod_uid for server in servers)

    def _matching(self, namespace: MountNamespace, mount: Mount) -> Bind | None:
        pod_uid = namespace.pod_uid
        binds = self._by_pod.get(pod_uid, [])
        root = plain_root(mount.root)
        for bind in binds:
            if bind.mount and bind.mount.device == mount.device and _root(bind) == root:
                return bind
        earlier = self._ledger.former.get((pod_uid, mount.device, root))
        known = self._ledger.facts_of(namespace, mount.mount_point)
        if earlier is None and known is not None:
            earlier = TargetKey(0, known.origin)
        if earlier is not None:
            # Its bind may be gone: that makes it no copy of the pod's other volume.
            return self._by_key.get(earlier)
        return self._by_elimination(pod_uid, mount, [b for b in binds if _root(b) == root])

    def _by_elimination(self, pod_uid: str, mount: Mount, binds: list[Bind]) -> Bind | None:
        """Never seen before: the only bind with this root, or the one the pod's spec names."""
        if len(binds) == 1:
            return binds[0]
        pod = (self._snapshot.pods or {}).get(pod_uid)
        named = [bind for bind in binds if pod and _mounts_at(pod, bind, mount.mount_point)]
        return named[0] if len(named) == 1 else None


def _below_stack(top: Mount, by_id: Callable[[int], Mount | None]) -> Mount | None:
    """Return the mount on which the lowest layer at the path of ``top`` stands."""
    parent = by_id(top.parent_id)
    for _ in range(MAX_LAYERS):
        if parent is None or parent.mount_point != top.mount_point:
            break
        parent = by_id(parent.parent_id)
    return parent


def _root(bind: Bind) -> str:
    return plain_root(bind.mount.root) if bind.mount else ""


def _mounts_at(pod: Pod, bind: Bind, mount_point: str) -> bool:
    """True when the pod's spec puts this bind's volume at this path of a container."""
    for entry in pod.volume_mounts:
        if entry.mount_path.rstrip("/") != mount_point:
            continue
        if bind.path.kind is BindKind.SUBPATH:
            return bool(entry.sub_path) and bind.path.container == entry.container
        names = {bind.path.volume, bind.path.volume.removeprefix(f"{pod.namespace}-")}
        volume = next((v for v in pod.volumes if v.name == entry.volume), None)
        return entry.volume in names or (volume is not None and volume.claim in names)
    return False


def first_look(bind: Bind, snapshot: Snapshot) -> ContainerFacts:
    """Describe a container mount as it is when it is seen for the first time.

    The pod's spec wins where it is known: after a restart of the daemon the mount itself
    may already be what is left of a repair, or the layer of somebody who forgot ``ro``.
    """
    assert bind.mount is not None
    propagation = _propagation_now(bind.mount)
    layers = bind.namespace.mounts if bind.namespace else ()
    here = [m for m in layers if m.mount_point == bind.key.mount_point]
    read_only = any(layer.is_read_only for layer in (bind.mount, *here))
    pod = (snapshot.pods or {}).get(bind.path.pod_uid)
    for entry in pod.volume_mounts if pod else ():
        if entry.mount_path.rstrip("/") == bind.key.mount_point:
            propagation = _BY_NAME.get(entry.propagation, propagation)
            read_only = read_only or entry.read_only
            break
    return ContainerFacts(
        propagation,
        read_only,
        bind.path.pod_uid,
        bind.path.container,
        bind.origin.mount_point if bind.origin else "",
    )


_BY_NAME = {
    "None": Propagation.PRIVATE,
    "HostToContainer": Propagation.SLAVE,
    "Bidirectional": Propagation.PEER,
}


def _propagation_now(mount: Mount) -> Propagation:
    if mount.master:
        return Propagation.SLAVE
    return Propagation.PEER if mount.peer_group else Propagation.PRIVATE


def still_shown(snapshot: Snapshot) -> frozenset[Device]:
    """Every FUSE device that some mount shows somewhere, so that it cannot be reused."""
    devices = {mount.device for mount in snapshot.table.fuse_mounts()}
    for namespace in snapshot.namespaces:
        devices.update(mount.device for mount in namespace.mounts if mount.is_fuse)
    return frozenset(devices)


def remember_former(
    former: Mapping[tuple[str, Device, str], TargetKey],
    binds: Iterable[Bind],
    shown: frozenset[Device],
) -> dict[tuple[str, Device, str], TargetKey]:
    """Add what the host binds show now, and drop devices that nothing shows any more."""
    kept = {key: target for key, target in former.items() if key[1] in shown}
    for bind in binds:
        if bind.mount is not None:
            kept[bind.path.pod_uid, bind.mount.device, _root(bind)] = bind.key
    return kept
