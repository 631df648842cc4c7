"""Looking at the mounts stacked at one path, and at the tree inside one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from fusewatchd.linux.mount_kernel import MountKernel
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Mount
from fusewatchd.model.stacks import Pile, covered_by, inside


@contextmanager
def opened(kernel: MountKernel, path: str, *, may_ask: bool = True) -> Iterator[int]:
    """Hold a descriptor of the topmost mount at ``path`` for the length of a block."""
    fd = kernel.open_mount(path, may_ask=may_ask)
    try:
        yield fd
    finally:
        kernel.close(fd)


def top_at(kernel: MountKernel, path: str) -> Mount | None:
    """Return the topmost mount at ``path``; None when nothing is mounted just there."""
    with opened(kernel, path) as fd:
        mount = kernel.mount_of(fd)
    return mount if mount.mount_point == path else None


def pile_of(kernel: MountKernel, top: Mount) -> Pile:
    """List the layers from ``top`` down; what is mounted inside them is listed when asked for.

    What is inside the top costs one look at that; what is inside the others, one at everything.
    """
    layers = (top, *covered_by(top, kernel.stack_of(top)))

    @cache
    def tree(lowest: int) -> MountTable:
        return kernel.tree_of(layers[lowest], layers)

    def table_of(layer: Mount) -> MountTable:
        return tree(0 if layer == top else -1)

    return Pile(layers, table_of)


def depth_of(kernel: MountKernel, top: Mount) -> int:
    """Count the layers at the path of ``top``, itself included."""
    return 1 + len(covered_by(top, kernel.stack_of(top)))


def tree_inside(kernel: MountKernel, mount: Mount) -> tuple[Mount, ...]:
    """List the mounts inside ``mount``, parents first, without what is stacked on it."""
    return inside(mount, kernel.tree_of(mount))


def mounts_on(kernel: MountKernel, mount: Mount) -> tuple[Mount, ...]:
    """List the mounts inside ``mount``, parents first, and those stacked on it if any."""
    table = kernel.tree_of(mount)
    stacked = [m for m in table.children_of(mount.mount_id) if m.mount_point == mount.mount_point]
    return (*inside(mount, table), *stacked)
