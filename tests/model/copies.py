"""Copies of a bind that somebody makes, and what is mounted at their places later."""

from __future__ import annotations

import os

from fusewatchd.linux import syscalls
from tests.model.places import Copy, Tables
from tests.model.possible import need, source_of, volume_of
from tests.model.stage import Stage

PLACES = {
    "plain": "copies/{name}",
    "kata": "kata-containers/shared/sandboxes/s1/mounts/{name}-data",
    "root": "rancher/kubelet/pods/{uid}/volumes/kubernetes.io~csi/{name}/mount",
    "part": "rancher/kubelet/pods/{uid}/volume-subpaths/{name}/app/0",
}
"""By the letters of a copy's name: a debugging copy, one for a machine, of another kubelet."""
UID = "{:08x}-0000-4000-9000-000000000000"


def place_of(name: str) -> str:
    """Return where below the lab a copy of this name is, as ``kata7``."""
    kind = name.rstrip("0123456789")
    return PLACES[kind].format(name=name, uid=UID.format(int(name[len(kind) :])))


def copy(stage: Stage, name: str, what: str) -> None:
    """``mount --bind`` of a pod's target (``p1/v``) or of a source (``two``)."""
    need(name not in stage.copies or not stage.copies[name].is_mounted)
    if "/" in what:
        _, target, _ = volume_of(stage, what)
        need(not target.is_bare)
        path, source = target.path, target.source
    else:
        path, source = source_of(stage, what).source.path, what
    need(stage.sources[source].answers)
    place = os.path.join(stage.node.lab, place_of(name))
    os.makedirs(place, exist_ok=True)
    syscalls.mount(path, place, None, syscalls.MS_BIND)
    if name.startswith("kata"):
        syscalls.mount(None, place, None, syscalls.MS_SLAVE)
    top = Tables([]).host.top_at(place)
    assert top is not None
    stage.copies[name] = Copy(place, source, top.device, top.mount_id)


def uncopy(stage: Stage, name: str) -> None:
    """Whoever made it unmounts it, and whatever came on top of it."""
    need(name in stage.copies and stage.copies[name].is_mounted)
    made = stage.copies[name]
    need(not stage.sources[made.source].is_over)
    made.is_mounted, made.layers = False, 0
    while any(mount.is_fuse for mount in Tables([]).host.at(made.place)):
        syscalls.umount2(made.place, syscalls.MNT_DETACH)
