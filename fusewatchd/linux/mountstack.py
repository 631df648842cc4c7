"""Looking at the mounts stacked at one path, and at the tree inside one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fusewatchd.linux.mountkernel import MountKernel
from fusewatchd.model import Mount

MAX_LAYERS = 64
"""Layers of one stack, and mounts inside one volume, that are looked at."""


@contextmanager
def opened(kernel: MountKernel, path: str) -> Iterator[int]:
    """Hold a descriptor of the topmost mount at ``path`` for the length of a block."""
    fd = kernel.open_mount(path)
    try:
        yield fd
    finally:
        kernel.close(fd)


def top_at(kernel: MountKernel, path: str) -> Mount | None:
    """Return the topmost mount at ``path``; None when nothing is mounted just there."""
    with opened(kernel, path) as fd:
        mount = kernel.mount_of(fd)
    return mount if mount.mount_point == path else None


def layer_below(kernel: MountKernel, top: Mount) -> Mount | None:
    """Return the mount that ``top`` covers at the same path, if there is one."""
    parent = kernel.parent_of(top)
    if parent is None or parent.mount_point != top.mount_point:
        return None
    # The root of a namespace is stacked on nothing though its path equals its parent's.
    return None if parent.mount_id == top.mount_id else parent


def depth_of(kernel: MountKernel, top: Mount) -> int:
    """Count the layers at the path of ``top``, itself included."""
    depth, layer = 1, layer_below(kernel, top)
    while layer is not None and depth < MAX_LAYERS:
        depth, layer = depth + 1, layer_below(kernel, layer)
    return depth


def tree_inside(kernel: MountKernel, mount: Mount) -> tuple[Mount, ...]:
    """List the mounts inside ``mount``, parents first, without what is stacked on it."""
    on_it = mounts_on(kernel, mount)
    return tuple(found for found in on_it if found.mount_point != mount.mount_point)


def mounts_on(kernel: MountKernel, mount: Mount) -> tuple[Mount, ...]:
    """List the mounts inside ``mount``, parents first, and the one stacked on it if any."""
    found: list[Mount] = []
    queue = [mount]
    while queue and len(found) < MAX_LAYERS:
        for child in kernel.children_of(queue.pop(0)):
            found.append(child)
            if child.mount_point != mount.mount_point:
                queue.append(child)
    return tuple(found)
