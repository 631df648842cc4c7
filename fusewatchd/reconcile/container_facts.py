"""What is remembered of container mounts and of what their host binds showed earlier; pure.

Which of them belong to which host bind is found by ``diagnose.container_binds``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from fusewatchd.diagnose.container_binds import _came_to_light, is_used_again, root_of
from fusewatchd.diagnose.lineage import plain_root
from fusewatchd.diagnose.own_layers import layers_of
from fusewatchd.diagnose.spec_entries import entries_at
from fusewatchd.model.actions import Propagation
from fusewatchd.model.findings import Bind
from fusewatchd.model.ledger import ContainerFacts, Former
from fusewatchd.model.mounts import Device, Mount, MountNamespace, TargetKey
from fusewatchd.model.rights import rights_after
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.plan.child_mounts import known_inside, mounts_inside, received_inside

BIRTH_SECONDS = 5.0
"""How long a container that is being made may hold what no mount table shows yet."""


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
        source = bind.source if bind.source.candidates else known.source
        return replace(known, mount_id=bind.mount.mount_id, device=bind.mount.device, source=source)
    # It has just been proven to be a copy of that bind, whatever the bind shows by now.
    device, mount_id, place = bind.mount.device, bind.mount.mount_id, origin.key.mount_point
    proven = place, mount_id, device, bind.driver, bind.source
    if proven == (known.origin, known.mount_id, known.device, known.driver, known.source):
        return known
    return replace(
        known,
        origin=place,
        mount_id=mount_id,
        device=device,
        driver=bind.driver,
        source=bind.source,
    )


def still_true(
    known: Mapping[TargetKey, ContainerFacts], snapshot: Snapshot
) -> dict[TargetKey, ContainerFacts]:
    """Keep what is known of mounts that are there as they were, whatever their binds show.

    A bind may be gone for a moment, until its driver publishes it again.  What the kernel
    unmounted in a dead volume stays known too, as long as that volume is: it will be back in it.
    """
    namespaces = {namespace.inode: namespace for namespace in snapshot.namespaces}
    kept: dict[TargetKey, ContainerFacts] = {}
    for key, facts in known.items():
        namespace = namespaces.get(key.namespace)
        if namespace is None:
            continue
        mount = snapshot.tables.of(namespace).by_id(facts.mount_id)
        if mount is None:
            continue
        is_same = (mount.mount_point, mount.device) == (key.mount_point, facts.device)
        whose = (namespace.pod_uid, namespace.container_id)
        if is_same and whose == (facts.pod_uid, facts.container):
            kept[key] = facts
    return kept | _missed(known, kept)


def _missed(
    known: Mapping[TargetKey, ContainerFacts], kept: Mapping[TargetKey, ContainerFacts]
) -> dict[TargetKey, ContainerFacts]:
    """Return what is known of mounts that must be back inside those that are kept."""
    return {
        inner: facts
        for key, volume in kept.items()
        for mount in volume.inside
        if (inner := TargetKey(key.namespace, mount.mount_point)) not in kept
        and (facts := known.get(inner)) is not None
        and (facts.mount_id, facts.device) == (mount.mount_id, mount.device)
        and (facts.pod_uid, facts.container) == (volume.pod_uid, volume.container)
    }


def _first_look(
    bind: Bind, mount: Mount, namespace: MountNamespace, origin: Bind | None, snapshot: Snapshot
) -> ContainerFacts:
    """Describe a container mount as it is when it is seen for the first time.

    The pod's spec wins where it is known and says one thing: after a restart of the daemon
    the mount itself may already be what is left of a repair, or the layer of somebody who
    forgot ``ro``.  But in a user namespace of its own anybody can be root, and nothing that
    is mounted there may ever reach the host.
    """
    here = snapshot.tables.of(namespace).at(bind.key.mount_point)
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
            place = (bind.path.pod_uid, bind.mount.device, root_of(bind))
            kept[place] = Former(bind.key, snapshot.taken_at, bind.driver, bind.source)
    for bind in binds:
        # What a bind covers is shown again in containers that lose what is on top of it.
        for layer in layers_of(bind, snapshot)[:-1]:
            place = (bind.path.pod_uid, layer.device, plain_root(layer.root))
            if layer.is_fuse:
                covered = Former(bind.key, snapshot.taken_at, bind.driver, bind.source)
                kept.setdefault(place, covered)
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
    return (device in shown or is_fresh) and not is_used_again(device, known, snapshot)
