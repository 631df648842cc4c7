"""``MountKernel`` on a ``Machine``, with a log of every call."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence

from fusewatchd.linux.mount_kernel import Attributes, FileKind, Way
from fusewatchd.model.actions import NamespaceRef, Propagation
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount, UserNamespaceRef
from tests.fakes.filesystem import Node, NodeKind, raise_errno
from tests.fakes.machine import Machine, OpenFile
from tests.fakes.mounts import FakeMount, Namespace, canonical, follow, names_of, topmost
from tests.fakes.propagation import Kind

_KINDS = {NodeKind.DIRECTORY: FileKind.DIRECTORY, NodeKind.FILE: FileKind.FILE}
_HOST_IDMAP = ("0 0 4294967295", "0 0 4294967295")


class FakeKernel:
    """One worker's view of the machine."""

    def __init__(self, machine: Machine, way: Way) -> None:
        self.way = way
        self.machine = machine
        self.log: list[str] = []
        """Every call that was made, in order, with what it was made on."""
        self.described = 0
        """Mounts that were described in answer to those calls."""
        self.seconds_per_call = 0.0

    def _note(self, call: str, *what: object) -> None:
        self.log.append(" ".join([call, *map(str, what)]))

    def _file(self, fd: int) -> OpenFile:
        file = self.machine.descriptors.get(fd)
        if file is None:
            raise_errno(errno.EBADF)
        return file

    def now(self) -> float:
        return len(self.log) * self.seconds_per_call

    def enter(self, namespace: NamespaceRef | None) -> None:
        self._note("enter", namespace.inode if namespace else "host")
        self.machine.go_to(namespace)

    def leave(self) -> None:
        self.enter(None)

    # -------------------------------------------------------------------------- looking

    def open_mount(self, path: str, *, may_ask: bool = True) -> int:
        self._note("open_mount", path)
        return self.machine.open(*self.machine.walk(path))

    def open_below(self, fd: int, relative: str) -> int:
        self._note("open_below", relative)
        file = self._file(fd)
        return self.machine.open(file.mount, _below(file.mount, file.node, relative))

    def close(self, fd: int) -> None:
        self._note("close")
        self.machine.close(fd)

    def mount_of(self, fd: int) -> Mount:
        self._note("mount_of")
        return self._described(self._file(fd).mount)

    def ids_of(self, fd: int) -> tuple[int, int]:
        self._note("ids_of")
        mount = self._file(fd).mount
        return mount.mount_id, mount.unique_id

    def mount_by_id(self, mount_id: int, unique_id: int) -> Mount:
        self._note("mount_by_id", mount_id, unique_id)
        if unique_id:
            found = self.machine.mounts.all.get(unique_id)
        else:
            ids = (m for m in self.machine.mounts.all.values() if m.mount_id == mount_id)
            found = next(ids, None)
        if found is None:
            raise_errno(errno.ENOENT)
        return self._described(found)

    def _described(self, mount: FakeMount) -> Mount:
        if mount.namespace is not self.machine.current:
            raise_errno(errno.ENOENT)
        return mount.describe()

    def covered_by(self, mount: Mount) -> tuple[Mount, ...]:
        self._note("covered_by", mount.mount_id)
        layer = self._found(mount).parent
        found: list[Mount] = []
        while layer is not None:
            self.described += 1
            described = layer.describe()
            if described.mount_point != mount.mount_point:
                break
            found.append(described)
            layer = layer.parent
        return tuple(found)

    def tree_of(self, mount: Mount, known: Iterable[Mount] = ()) -> MountTable:
        self._note("tree_of", mount.mount_id)
        have = {m.unique_id: m for m in known}
        news = [m.describe() for m in self._found(mount).subtree() if m.unique_id not in have]
        self.described += len(news)
        return MountTable.of((*have.values(), *news))

    def _found(self, mount: Mount) -> FakeMount:
        found = self.machine.mounts.all.get(mount.unique_id)
        if found is None:
            raise_errno(errno.ENOENT)
        return found

    def kind_of(self, fd: int) -> FileKind:
        self._note("kind_of")
        return _KINDS.get(self._file(fd).node.kind, FileKind.OTHER)

    def idmap_of(self, mount: Mount) -> tuple[str, str] | None:
        self._note("idmap_of", mount.mount_id)
        return None

    def idmap_of_users(self, users: UserNamespaceRef) -> tuple[str, str]:
        self._note("idmap_of_users", users.pid)
        return _HOST_IDMAP

    def problem_of_place(self, path: str, uid: int) -> str:
        self._note("problem_of_place", path, uid)
        return ""

    def device_of(self, fd: int) -> Device:
        self._note("device_of")
        return self._file(fd).node.file_system.device

    # --------------------------------------------------------------------- out of sight

    def copy(self, path: str, below: str, *, recursive: bool) -> int:
        self._note("copy", path, below)
        mount, node = self.machine.walk(path)
        if below:
            node = _below(mount, node, below)
        return self._open_detached(self.machine.mounts.copy_tree(mount, node, recursive=recursive))

    def _open_detached(self, tree: FakeMount) -> int:
        namespace = Namespace(0, is_anonymous=True)
        namespace.root = tree
        for mount in tree.subtree():
            mount.namespace = namespace
        try:
            return self.machine.open(tree, tree.root, owns_tree=True)
        except OSError:
            self.machine.mounts.destroy(tree)
            raise

    def configure(self, copy: int, attributes: Attributes) -> int:
        self._note("configure", attributes.options, attributes.propagation.value)
        if attributes.idmap:
            raise_errno(errno.EOPNOTSUPP if self.way is Way.STAGED else errno.EINVAL)
        result = self._same_or_copy(copy)
        mount = self._file(result).mount
        mount.options = canonical(attributes.options)
        for part in mount.subtree():
            self._configure(part, attributes.propagation)
        return result

    def _configure(self, mount: FakeMount, propagation: Propagation) -> None:
        if propagation in (Propagation.OWN_GROUP, Propagation.PRIVATE):
            self.machine.mounts.change(mount, Kind.PRIVATE)
        elif propagation in (Propagation.SLAVE, Propagation.RECEIVER):
            self.machine.mounts.change(mount, Kind.SLAVE)
        if propagation in (Propagation.OWN_GROUP, Propagation.RECEIVER):
            self.machine.mounts.change(mount, Kind.SHARED)

    def _same_or_copy(self, fd: int) -> int:
        """A staging mount is attached, worked on and copied out again."""
        return self._staged(fd) if self.way is Way.STAGED else self.machine.duplicate(fd)

    def _staged(self, fd: int) -> int:
        tree = self._detached_root(fd)
        if tree.root.is_removed:
            # It is attached to the staging mount before anything is asked of the target.
            raise_errno(errno.ENOENT)
        whole = self._open_detached(self.machine.mounts.copy_tree(tree, tree.root, recursive=True))
        self.machine.mounts.destroy(tree)
        return whole

    def _detached_root(self, fd: int) -> FakeMount:
        file = self._file(fd)
        mount = file.mount
        is_root = mount.namespace is not None and mount.namespace.root is mount
        if not is_root or mount.is_attached or file.node is not mount.root:
            raise_errno(errno.EINVAL)
        return mount

    def assemble(self, clone: int, children: Sequence[tuple[int, int]]) -> int:
        self._note("assemble", len(children))
        for child, place in children:
            self._attach(child, place)
        return self.machine.duplicate(clone) if self.way is Way.BENEATH else self._staged(clone)

    # ------------------------------------------------------------------------ in public

    def attach(self, clone: int, target: int) -> None:
        self._note("attach")
        self._attach(clone, target)

    def _attach(self, clone: int, target: int) -> None:
        tree, place = self._detached_root(clone), self._file(target)
        self.machine.attach(tree, place.mount, place.node)

    def attach_beneath(self, clone: int, target: int) -> None:
        self._note("attach_beneath")
        tree, file = self._detached_root(clone), self._file(target)
        if tree.root.is_directory != file.node.is_directory:
            raise_errno(errno.EINVAL)
        if file.node is not file.mount.root or file.mount.namespace is not self.machine.current:
            raise_errno(errno.EINVAL)
        over = topmost(file.mount)
        parent, place = over.parent, over.place
        if parent is None or place is None or tree.overmount is not None:
            raise_errno(errno.EINVAL)
        if self.machine.mounts.would_overmount(parent, over, place):
            # The copy would land on top of what it is to be beneath of.
            raise_errno(errno.EINVAL)
        if tree.root.is_removed:
            raise_errno(errno.ENOENT)
        self.machine.mounts.attach(tree, parent, place)

    def make_private(self, fd: int) -> None:
        self._note("make_private")
        file = self._file(fd)
        if file.node is not file.mount.root or file.mount.namespace is not self.machine.current:
            raise_errno(errno.EINVAL)
        self.machine.mounts.change(file.mount, Kind.PRIVATE)

    def detach(self, fd: int) -> None:
        self._note("detach")
        file = self._file(fd)
        mount, node = follow(file.mount, file.node)
        is_here = mount.namespace is self.machine.current and mount.parent is not None
        if not is_here or node is not mount.root:
            raise_errno(errno.EINVAL)
        self.machine.mounts.unmount(mount)


def _below(mount: FakeMount, node: Node, relative: str) -> Node:
    """Resolve beneath a directory without leaving its mount or following a link."""
    for name in names_of(relative):
        if name == "..":
            raise_errno(errno.EXDEV if node.is_directory else errno.ENOTDIR, relative)
        node = node.child(name)
        if node in mount.children:
            raise_errno(errno.EXDEV, relative)
    if node.kind is NodeKind.LINK:
        raise_errno(errno.ELOOP, relative)
    return node
