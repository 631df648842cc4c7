"""The layers that this daemon put on top of mounts which it could not take away; pure.

Without MOVE_MOUNT_BENEATH a stale mount stays below its replacement.  Whoever unmounts it in
another mount namespace leaves the replacement behind, and then, or when its pod ends, it must go
too: so it has to be known, and must never be mistaken for somebody's bind.

The number of a mount is used again at once.  Only the unique id (Linux 6.8) never is; without
it a layer is known by the peer group that it was given for itself as well.  A bind is in the
group of what it was made from: where each mount of the same file system outside the pods
directory is in another group, nobody's bind can be in this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from fusewatchd.model.actions import Expect, OwnLayer
from fusewatchd.model.findings import Bind
from fusewatchd.model.mounts import Mount, TargetKey
from fusewatchd.model.snapshot import Snapshot

MAX_OWN_LAYERS = 8
"""Remembered for one target, the newest; there are at most two at a time."""

OwnLayers = Mapping[TargetKey, tuple[OwnLayer, ...]]


def layers_of(bind: Bind, snapshot: Snapshot) -> tuple[Mount, ...]:
    """Return the mounts stacked at the place of a bind, the lowest first."""
    if bind.mount is None or bind.depth < 2:
        return (bind.mount,) if bind.mount is not None else ()
    namespace = bind.namespace
    table = snapshot.table if namespace is None else snapshot.tables.of(namespace)
    return table.stack_at(bind.key.mount_point)


def dead_layers(
    binds: Iterable[Bind], snapshot: Snapshot, known: OwnLayers
) -> dict[TargetKey, int]:
    """Count the dead layers that working mounts cover, and that go when those are dead too.

    Until then they could only be taken away by showing them.  The one below a layer of ours is
    not counted: without MOVE_MOUNT_BENEATH it is always there.
    """
    counts = ((bind.key, _dead_below(bind, snapshot, known)) for bind in binds)
    return {key: count for key, count in counts if count}


def _dead_below(bind: Bind, snapshot: Snapshot, known: OwnLayers) -> int:
    if bind.mount is None or bind.depth < 2 or snapshot.is_dead(bind.mount.device):
        return 0
    covered = layers_of(bind, snapshot)[:-1]
    dead = sum(layer.is_fuse and snapshot.is_dead(layer.device) for layer in covered)
    is_own = any(layer.is_about(bind.mount) for layer in known.get(bind.key, ()))
    return dead - 1 if dead and is_own else dead


def with_layers(known: OwnLayers, more: Iterable[tuple[TargetKey, OwnLayer]]) -> OwnLayers:
    """Add layers, the newest last; one that is known is replaced by what is told of it now."""
    added = dict(known)
    for key, layer in more:
        others = tuple(o for o in added.get(key, ()) if not _is_same(o, layer))
        added[key] = (*others, layer)[-MAX_OWN_LAYERS:]
    return added


def recalled(known: OwnLayers, more: Iterable[tuple[TargetKey, OwnLayer]]) -> OwnLayers:
    """Add layers that somebody wrote down in passing; what is known of them is worth more."""
    news = [
        (key, layer)
        for key, layer in more
        if not any(_is_same(layer, other) for other in known.get(key, ()))
    ]
    return with_layers(known, news)


def still_there(known: OwnLayers, binds: Iterable[Bind], snapshot: Snapshot) -> OwnLayers:
    """Keep the layers that this look found on the host, and note their peer groups.

    What is in a container is kept as long as that is there: a look into it may be older than the
    layer.
    """
    living = {namespace.inode for namespace in snapshot.namespaces}
    has_looked = bool(snapshot.namespaces_looked_at)
    kept = {
        key: layers
        for key, layers in known.items()
        if not key.is_host and (key.namespace in living or not has_looked)
    }
    for bind in binds:
        if not bind.key.is_host:
            continue
        found = tuple(_found(known.get(bind.key, ()), layers_of(bind, snapshot), snapshot))
        if found:
            kept[bind.key] = found
    return kept


def is_own_top(known: OwnLayers, bind: Bind, snapshot: Snapshot) -> bool:
    """True when the topmost mount of a bind is there because of a layer of ours.

    It is that layer without a doubt, or what arrived on it when the source got another mount.
    """
    layers = known.get(bind.key, ())
    for mount in reversed(layers_of(bind, snapshot) if layers else ()):
        if _is_own(layers, mount, snapshot):
            return True
        if not mount.master:
            break
    return False


def has_own_base(known: OwnLayers, bind: Bind, snapshot: Snapshot) -> bool:
    """True when what the lowest layer of ours was put on has gone."""
    layers = known.get(bind.key, ())
    stack = layers_of(bind, snapshot) if layers else ()
    return bool(stack) and _is_own(layers, stack[0], snapshot)


def without(layers: tuple[OwnLayer, ...], expect: Expect) -> tuple[OwnLayer, ...]:
    """Leave out the mount that is described."""
    gone = OwnLayer(expect.mount_id, expect.unique_id, expect.device)
    return tuple(layer for layer in layers if not _is_same(layer, gone))


def _found(
    layers: Sequence[OwnLayer], stack: Sequence[Mount], snapshot: Snapshot
) -> Iterable[OwnLayer]:
    for layer in layers:
        for below, mount in zip((None, *stack), stack, strict=False):
            if not layer.is_about(mount):
                continue
            is_stacked = below is not None and not below.peer_group
            if is_stacked and not layer.peer_group and _is_apart(mount, snapshot):
                # Just as it was left: on a mount that was made private for it.
                yield replace(layer, peer_group=mount.peer_group)
            else:
                yield layer


def _is_same(one: OwnLayer, other: OwnLayer) -> bool:
    if one.unique_id and other.unique_id:
        return one.unique_id == other.unique_id
    return (one.mount_id, one.device) == (other.mount_id, other.device)


def _is_own(layers: Iterable[OwnLayer], mount: Mount, snapshot: Snapshot) -> bool:
    return any(own.is_about(mount) and _is_proven(own, mount, snapshot) for own in layers)


def _is_proven(layer: OwnLayer, mount: Mount, snapshot: Snapshot) -> bool:
    if layer.unique_id and mount.unique_id:
        return True
    is_in_its_group = bool(layer.peer_group) and layer.peer_group == mount.peer_group
    return is_in_its_group and _is_apart(mount, snapshot)


def _is_apart(mount: Mount, snapshot: Snapshot) -> bool:
    """True when a bind of any source of this file system would be in another peer group."""
    inside = f"{snapshot.kubelet.pods}/"
    sources = [
        other.peer_group
        for other in snapshot.table.on_device(mount.device)
        if not other.mount_point.startswith(inside)
    ]
    return bool(mount.peer_group) and not {0, mount.peer_group} & set(sources)
