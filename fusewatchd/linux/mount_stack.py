"""Looking at the mounts stacked at one path, and at the tree inside one of them."""

from __future__ import annotations

from functools import cache

from fusewatchd.linux.mount_kernel import MountKernel
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Mount
from fusewatchd.model.stacks import Pile, inside


class Held:
    """A descriptor that is closed at the end of a ``with`` block."""

    # No generator: an action holds many, and each would cost as much as a system call.
    __slots__ = ("_fd", "_kernel")

    def __init__(self, kernel: MountKernel, fd: int) -> None:
        """Take over ``fd``, which is open."""
        self._kernel, self._fd = kernel, fd

    def __enter__(self) -> int:
        """Return the descriptor."""
        return self._fd

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._kernel.close(self._fd)


def opened(kernel: MountKernel, path: str) -> Held:
    """Hold a descriptor of the topmost mount at ``path`` for the length of a block."""
    return Held(kernel, kernel.open_mount(path))


def top_at(kernel: MountKernel, path: str) -> Mount | None:
    """Return the topmost mount at ``path``; None when nothing is mounted just there."""
    with opened(kernel, path) as fd:
        mount = kernel.mount_of(fd)
    return mount if mount.mount_point == path else None


def pile_of(kernel: MountKernel, top: Mount) -> Pile:
    """List the layers from ``top`` down; what is mounted inside them is listed when asked for.

    What is inside the top costs one look at that; what is inside the others, one at everything.
    """
    layers = (top, *kernel.covered_by(top))

    @cache
    def tree(lowest: int) -> MountTable:
        return kernel.tree_of(layers[lowest], layers)

    def table_of(layer: Mount) -> MountTable:
        return tree(0 if layer == top else -1)

    return Pile(layers, table_of)


def depth_of(kernel: MountKernel, top: Mount) -> int:
    """Count the layers at the path of ``top``, itself included."""
    return 1 + len(kernel.covered_by(top))


def tree_inside(kernel: MountKernel, mount: Mount) -> tuple[Mount, ...]:
    """List the mounts inside ``mount``, parents first, without what is stacked on it."""
    return inside(mount, kernel.tree_of(mount))


def mounts_on(kernel: MountKernel, mount: Mount) -> tuple[Mount, ...]:
    """List the mounts inside ``mount``, parents first, and those stacked on it if any."""
    table = kernel.tree_of(mount)
    stacked = [m for m in table.children_of(mount.mount_id) if m.mount_point == mount.mount_point]
    return (*inside(mount, table), *stacked)
