"""Containers whose image is served by a FUSE server that is gone; pure.

Image snapshotters (stargz, SOCI, nydus) mount layers by FUSE, and the root of a container is an
overlay of them.  A new server has a new mount, and the overlay keeps the dead one.  So only a new
container helps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fusewatchd.model.findings import DeadRoot
from fusewatchd.model.mounts import Mount
from fusewatchd.model.snapshot import Snapshot

_LAYER = re.compile(r"/snapshots/[^/]+/(?:fs|mnt)$")
_CONTAINER = re.compile(r"/([0-9a-f]{64})(?:/|$)")


def find(snapshot: Snapshot, known: tuple[DeadRoot, ...]) -> tuple[DeadRoot, ...]:
    """Return the containers of pods whose overlay has a dead layer.

    Those that are ``known`` keep it as long as the overlay is there, whatever is mounted since.
    """
    kept = tuple(root for root in known if _is_there(root, snapshot))
    dead = [
        mount
        for device in snapshot.dead_devices()
        for mount in snapshot.table.on_device(device)
        if _LAYER.search(mount.mount_point)
    ]
    if not dead:
        return kept
    pods = {namespace.container_id: namespace.pod_uid for namespace in snapshot.namespaces}
    for pod in (snapshot.pods or {}).values():
        pods |= dict.fromkeys(pod.containers, pod.directory_uid)
    ids = {root.mount_id for root in kept}
    news = (root for root in _with_layers(dead, pods, snapshot) if root.mount_id not in ids)
    return (*kept, *news)


def _is_there(root: DeadRoot, snapshot: Snapshot) -> bool:
    mount = snapshot.table.by_id(root.mount_id)
    return mount is not None and f"/{root.container_id}" in mount.mount_point


def _with_layers(dead: list[Mount], pods: dict[str, str], snapshot: Snapshot) -> Iterator[DeadRoot]:
    layers = {mount.mount_point for mount in dead}
    for mount in snapshot.table:
        found = _CONTAINER.search(mount.mount_point) if mount.fs_type == "overlay" else None
        uid = pods.get(found[1], "") if found is not None else ""
        if found is None or not uid:
            continue
        for layer in _lower(mount):
            if layer in layers:
                yield DeadRoot(uid, found[1], layer, mount.mount_id)
                break


def _lower(mount: Mount) -> list[str]:
    """Return the lower directories, overlayfs(5)."""
    for word in mount.super_options.split(","):
        name, _, value = word.partition("=")
        if name == "lowerdir":
            return value.split(":")
    return []
