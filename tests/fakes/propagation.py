"""How mounts propagate: Documentation/filesystems/sharedsubtree and propagate_umount.

``Mounts`` is every mount there is.  A peer group is its number in ``FakeMount.group``; a slave
has the number of its master's group in ``FakeMount.master``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from enum import Enum

from tests.fakes.filesystem import Node, raise_errno
from tests.fakes.mounts import FakeMount, Namespace

_FIRST_UNIQUE_ID = 0x1_0000_0000


class Kind(Enum):
    """Propagation type to set, mount(2)."""

    SHARED = "shared"
    PRIVATE = "private"
    SLAVE = "slave"


class Mounts:
    """Every mount, and the operations that reach further than one of them."""

    def __init__(self, mount_max: int = 100_000) -> None:
        self.mount_max = mount_max
        """fs.mount-max: mounts that one namespace may hold."""
        self.all: dict[int, FakeMount] = {}
        """By the 64-bit id."""
        self._next_unique_id = _FIRST_UNIQUE_ID
        self._used_ids: set[int] = set()

    # ------------------------------------------------------------------ single mounts

    def make(self, root: Node, options: str) -> FakeMount:
        """Return a new mount that is attached to nothing; its small id may be a reused one."""
        mount_id = _lowest_free(self._used_ids)
        self._used_ids.add(mount_id)
        mount = FakeMount(mount_id, self._next_unique_id, root, options)
        self._next_unique_id += 1
        self.all[mount.unique_id] = mount
        return mount

    def forget(self, mount: FakeMount) -> None:
        """Free the id of a mount that nothing refers to any more."""
        if self.all.pop(mount.unique_id, None) is not None:
            self._used_ids.discard(mount.mount_id)

    def new_group(self) -> int:
        return _lowest_free({m.group for m in self.all.values()})

    def members(self, group: int) -> list[FakeMount]:
        return [m for m in self.all.values() if m.group == group] if group else []

    def slaves(self, group: int) -> list[FakeMount]:
        return [m for m in self.all.values() if m.master == group] if group else []

    def change(self, mount: FakeMount, kind: Kind) -> None:
        """Set the propagation type of one mount."""
        if kind is Kind.SHARED:
            mount.group = mount.group or self.new_group()
            return
        left, mount.group = mount.group, 0
        master = mount.master
        if left and self.members(left):
            master = left
        elif left:
            # The last one of a group hands its slaves on to the group's own master; without
            # one they are free.
            for slave in self.slaves(left):
                slave.master = mount.master
        mount.master = master if kind is Kind.SLAVE else 0

    # ------------------------------------------------------------------------- copies

    def copy_tree(self, mount: FakeMount, root: Node, *, recursive: bool) -> FakeMount:
        """Return a copy of ``mount`` rooted at ``root``, its peer, attached to nothing."""
        return self._copy(mount, root, recursive=recursive, as_slave=False, is_shared=False)

    def _copy(
        self, mount: FakeMount, root: Node, *, recursive: bool, as_slave: bool, is_shared: bool
    ) -> FakeMount:
        copy = self.make(root, mount.options)
        copy.group, copy.master = mount.group, mount.master
        if as_slave and mount.group:
            copy.group, copy.master = 0, mount.group
        if is_shared and not copy.group:
            copy.group = self.new_group()
        for place, child in tuple(mount.children.items()) if recursive else ():
            if place.is_below(root):
                self._copy(
                    child, child.root, recursive=True, as_slave=as_slave, is_shared=is_shared
                ).attach_to(copy, place)
        return copy

    # ------------------------------------------------------------------------- attach

    def attach(self, source: FakeMount, parent: FakeMount, place: Node) -> None:
        """Attach a detached tree, and copies of it to whatever receives from ``parent``.

        What is mounted just there already comes to stand on top of it.
        """
        placed = [(source, parent)]
        invented = [m for m in source.subtree() if not m.group] if parent.group else []
        for mount in invented:
            mount.group = self.new_group()
        if parent.group:
            placed += self._copies_for_receivers(source, parent, place)
        try:
            self._check_space(placed)
        except OSError:
            for copy, _ in placed[1:]:
                self.destroy(copy)
            for mount in invented:
                mount.group = 0
            raise
        for tree, above in placed:
            covered = above.children.pop(place, None)
            for mount in tree.subtree():
                mount.namespace = above.namespace
            tree.attach_to(above, place)
            if covered is not None:
                covered.attach_to(tree, tree.root)

    def _copies_for_receivers(
        self, source: FakeMount, parent: FakeMount, place: Node
    ) -> list[tuple[FakeMount, FakeMount]]:
        placed: list[tuple[FakeMount, FakeMount]] = []
        for peer in self.members(parent.group):
            if peer is not parent and _receives(peer, place):
                placed.append((self.copy_tree(source, source.root, recursive=True), peer))
        self._copies_for_slaves(parent.group, source, place, placed)
        return placed

    def _copies_for_slaves(
        self,
        group: int,
        master_copy: FakeMount,
        place: Node,
        placed: list[tuple[FakeMount, FakeMount]],
    ) -> None:
        """Each slave group gets a group of its own copies, slave of its master's copies."""
        slaves = self.slaves(group)
        for slave in slaves:
            if not slave.group and _receives(slave, place):
                placed.append((self._slave_copy(master_copy, is_shared=False), slave))
        for slave_group in dict.fromkeys(m.group for m in slaves if m.group):
            first: FakeMount | None = None
            for member in self.members(slave_group):
                if not _receives(member, place):
                    continue
                if first is None:
                    first = copy = self._slave_copy(master_copy, is_shared=True)
                else:
                    copy = self.copy_tree(first, first.root, recursive=True)
                placed.append((copy, member))
            # Where the group in between shows nothing of the place its slaves may still do.
            self._copies_for_slaves(slave_group, first or master_copy, place, placed)

    def _slave_copy(self, mount: FakeMount, *, is_shared: bool) -> FakeMount:
        return self._copy(mount, mount.root, recursive=True, as_slave=True, is_shared=is_shared)

    def _check_space(self, placed: Iterable[tuple[FakeMount, FakeMount]]) -> None:
        coming: dict[Namespace, int] = {}
        for tree, above in placed:
            assert above.namespace is not None
            size = sum(1 for _ in tree.subtree())
            coming[above.namespace] = coming.get(above.namespace, 0) + size
        for namespace, count in coming.items():
            if self.count(namespace) + count > self.mount_max:
                raise_errno(errno.ENOSPC)

    def count(self, namespace: Namespace) -> int:
        return sum(1 for m in self.all.values() if m.namespace is namespace)

    def receivers(self, mount: FakeMount) -> Iterator[FakeMount]:
        """Yield every mount that receives what happens on ``mount``."""
        yield from (m for m in self.members(mount.group) if m is not mount)
        yield from self._slaves_below(mount.group)

    def _slaves_below(self, group: int) -> Iterator[FakeMount]:
        slaves = self.slaves(group)
        yield from (m for m in slaves if not m.group)
        for slave_group in dict.fromkeys(m.group for m in slaves if m.group):
            yield from self.members(slave_group)
            yield from self._slaves_below(slave_group)

    def would_overmount(self, parent: FakeMount, mount: FakeMount, place: Node) -> bool:
        """Return True when what is attached at ``parent`` would be copied on top of ``mount``."""
        if not parent.group or mount.root is not place:
            return False
        return mount is parent or any(m is mount for m in self.receivers(parent))

    # ------------------------------------------------------------------------- umount

    def unmount(self, mount: FakeMount, *, propagate: bool = True) -> None:
        """Take a mount and what is on it away, and its copies with whatever received it."""
        original = list(mount.subtree())
        leaving = set(original)
        if propagate:
            leaving |= self._copies_that_go_along(original)
        staying = [m.overmount for m in leaving if m.overmount and m.overmount not in leaving]
        places = [(survivor, *_surviving_place(survivor, leaving)) for survivor in staying]
        for mount in (*leaving, *staying):
            mount.leave_parent()
        for survivor, parent, place in places:
            survivor.attach_to(parent, place)
        for gone in leaving:
            gone.namespace = None
        for gone in leaving:
            gone.children.clear()
            self.change(gone, Kind.PRIVATE)
            if not gone.references:
                self.forget(gone)

    def _copies_that_go_along(self, original: list[FakeMount]) -> set[FakeMount]:
        candidates = set()
        for mount in original:
            assert mount.place is not None or mount.parent is None
            for receiver in self.receivers(mount.parent) if mount.parent else ():
                copy = receiver.children.get(mount.place) if mount.place else None
                if copy is not None:
                    candidates.add(copy)
        candidates -= set(original)
        # What has something mounted inside that stays cannot go; what covers it entirely can
        # be hung back to where it stood.
        is_final = False
        while not is_final:
            going = candidates | set(original)
            kept = {m for m in candidates if not _may_go(m, going)}
            candidates -= kept
            is_final = not kept
        return candidates

    def destroy(self, tree: FakeMount) -> None:
        """Let a detached tree go."""
        self.unmount(tree, propagate=False)


def _receives(mount: FakeMount, place: Node) -> bool:
    """Return True for a receiver that gets a copy: attached, and it shows the place."""
    return mount.is_attached and place.is_below(mount.root)


def _may_go(mount: FakeMount, going: set[FakeMount]) -> bool:
    inside = (child for place, child in mount.children.items() if place is not mount.root)
    return all(m in going for child in inside for m in child.subtree())


def _surviving_place(survivor: FakeMount, leaving: set[FakeMount]) -> tuple[FakeMount, Node]:
    """Return where the lowest mount below ``survivor`` that leaves stands."""
    lowest = survivor
    while lowest.parent in leaving:
        lowest = lowest.parent
    assert lowest.parent is not None and lowest.place is not None
    return lowest.parent, lowest.place


def _lowest_free(used: Iterable[int]) -> int:
    taken = set(used)
    number = 1
    while number in taken:
        number += 1
    return number
