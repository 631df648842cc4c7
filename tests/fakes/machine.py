"""A machine without processes: file systems, mounts, namespaces and open descriptors.

What the kubelet, drivers, other recoverers and container runtimes do with mounts is a method
here, named as the system call or the command.  ``FakeKernel`` is the other user.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from fusewatchd.model.actions import NamespaceRef
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount
from tests.fakes.filesystem import FileSystem, Node, NodeKind, raise_errno
from tests.fakes.mounts import FakeMount, Namespace, canonical, follow, names_of, walk
from tests.fakes.propagation import Kind, Mounts

_FIRST_INODE = 4026532000
_FIRST_PID = 5000
_DEFAULT_OPTIONS = "rw,relatime"


class OpenFile:
    """What descriptors refer to; the last one that is closed ends a detached tree."""

    def __init__(self, mount: FakeMount, node: Node, *, owns_tree: bool = False) -> None:
        self.mount = mount
        self.node = node
        self.owns_tree = owns_tree
        self.users = 1


class Machine:
    """Everything that outlives one process."""

    def __init__(self) -> None:
        self.mounts = Mounts()
        self.descriptors: dict[int, OpenFile] = {}
        self.most_descriptors = 1024
        """RLIMIT_NOFILE."""
        self.namespaces: dict[int, Namespace] = {}
        """By inode."""
        self._pids: dict[int, int] = {}
        self._left_for_a_moment: list[Namespace] = []
        self._last_inode = _FIRST_INODE
        self._last_minor = 100
        root = self.mounts.make(self.make_file_system("root").root, _DEFAULT_OPTIONS)
        self.host = self.current = self._new_namespace(root)

    def make_file_system(self, name: str) -> FileSystem:
        self._last_minor += 1
        return FileSystem(Device(0, self._last_minor), name)

    def _new_namespace(self, root: FakeMount) -> Namespace:
        self._last_inode += 1
        namespace = Namespace(self._last_inode)
        self.namespaces[namespace.inode] = namespace
        namespace.root = root
        for mount in root.subtree():
            mount.namespace = namespace
        return namespace

    # ------------------------------------------------------------------------ resolving

    def walk(self, path: str) -> tuple[FakeMount, Node]:
        """Resolve an absolute path in the present namespace."""
        assert self.current.root is not None
        return walk(self.current.root, path)

    def _directory_of(self, path: str) -> tuple[Node, str]:
        """Return the directory that is to be changed, and the last name."""
        above, _, name = path.rstrip("/").rpartition("/")
        mount, directory = self.walk(above)
        if mount.options.startswith("ro"):
            raise_errno(errno.EROFS, path)
        return directory, name

    def mount_at(self, path: str) -> FakeMount:
        """Return the topmost mount whose root is at ``path``; EINVAL when none is."""
        mount, node = self.walk(path)
        if node is not mount.root:
            raise_errno(errno.EINVAL, path)
        return mount

    def table(self) -> MountTable:
        """Return the mount table of the present namespace, with 64-bit ids."""
        return MountTable.of(self.described())

    def described(self) -> list[Mount]:
        assert self.current.root is not None
        return [mount.describe() for mount in self.current.root.subtree()]

    # ---------------------------------------------------------------------------- files

    def make_directory(self, path: str) -> None:
        mount, node = self.walk("/")
        for name in names_of(path):
            if name not in node.children:
                node.add(name, NodeKind.DIRECTORY)
            mount, node = follow(mount, node.child(name))

    def make_file(self, path: str, content: str = "") -> None:
        self._make(path, NodeKind.FILE, content)

    def make_link(self, path: str, content: str) -> None:
        self._make(path, NodeKind.LINK, content)

    def make_fifo(self, path: str) -> None:
        self._make(path, NodeKind.FIFO, "")

    def _make(self, path: str, kind: NodeKind, content: str) -> None:
        directory, name = self._directory_of(path)
        directory.add(name, kind, content)

    def read(self, path: str) -> str:
        return self.walk(path)[1].content

    def device_at(self, path: str) -> Device:
        """Return the device that stat(2) shows."""
        return self.walk(path)[1].file_system.device

    def exists(self, path: str) -> bool:
        try:
            self.walk(path)
        except FileNotFoundError:
            return False
        return True

    def remove(self, path: str) -> None:
        """rmdir(2), unlink(2): EBUSY on a mount point of this namespace, of others it goes."""
        directory, name = self._directory_of(path)
        node = directory.child(name)
        here = [m for m in self.mounts.all.values() if m.place is node]
        if any(m.namespace is self.current for m in here):
            raise_errno(errno.EBUSY, path)
        node.remove()
        for mount in here:
            self.mounts.unmount(mount, propagate=False)

    # --------------------------------------------------------------------------- mounts

    def mount_new(self, path: str, content: str = "") -> Device:
        """Mount a new file system: a tmpfs in the place of FUSE, with a file and a directory."""
        file_system = self.make_file_system("source")
        file_system.root.add("hello", NodeKind.FILE, content)
        file_system.root.add("inside", NodeKind.DIRECTORY)
        self._graft(self.mounts.make(file_system.root, _DEFAULT_OPTIONS), path)
        return file_system.device

    def mount_plain(self, path: str) -> None:
        """Mount an empty tmpfs."""
        self._graft(self.mounts.make(self.make_file_system("plain").root, _DEFAULT_OPTIONS), path)

    def bind(self, source: str, target: str, *, recursive: bool = False) -> None:
        """mount(2) MS_BIND."""
        mount, node = self.walk(source)
        self._graft(self.mounts.copy_tree(mount, node, recursive=recursive), target)

    def _graft(self, tree: FakeMount, path: str) -> None:
        try:
            mount, node = self.walk(path)
            self.attach(tree, mount, node)
        except OSError:
            self.mounts.destroy(tree)
            raise

    def attach(self, tree: FakeMount, mount: FakeMount, node: Node) -> None:
        """Attach a detached tree on top of whatever is at a place."""
        mount, node = follow(mount, node)
        if node.is_removed:
            raise_errno(errno.ENOENT)
        if tree.root.is_directory != node.is_directory:
            raise_errno(errno.ENOTDIR if tree.namespace is None else errno.EINVAL)
        if tree.root.is_removed:
            # The root of what is attached must do as a mount point too (attach_recursive_mnt).
            raise_errno(errno.ENOENT)
        is_elsewhere = mount.is_attached and mount.namespace is not self.current
        if mount.namespace is None or is_elsewhere:
            raise_errno(errno.EINVAL)
        self.mounts.attach(tree, mount, node)

    def remount(self, path: str, options: str) -> None:
        """mount(2) MS_BIND | MS_REMOUNT."""
        self.mount_at(path).options = canonical(options)

    def set_propagation(self, path: str, kind: Kind, *, recursive: bool = False) -> None:
        """mount(2) MS_SHARED, MS_PRIVATE, MS_SLAVE, with MS_REC."""
        mount = self.mount_at(path)
        for each in tuple(mount.subtree()) if recursive else (mount,):
            self.mounts.change(each, kind)

    def unmount(self, path: str) -> None:
        """umount2(2) without MNT_DETACH."""
        mount = self._to_unmount(path)
        copies = [] if mount.parent is None else [
            receiver.children[mount.place]
            for receiver in self.mounts.receivers(mount.parent)
            if mount.place in receiver.children
        ]  # fmt: skip
        # A copy with mounts inside stays anyway and does not count; one that is only covered
        # goes from below.
        going = [copy for copy in copies if set(copy.children) <= {copy.root}]
        if mount.children or any(m.references for m in (mount, *going)):
            raise_errno(errno.EBUSY, path)
        self.mounts.unmount(mount)

    def detach(self, path: str) -> None:
        """umount2(2) MNT_DETACH."""
        self.mounts.unmount(self._to_unmount(path))

    def _to_unmount(self, path: str) -> FakeMount:
        mount = self.mount_at(path)
        if mount.parent is None:
            raise_errno(errno.EINVAL, path)
        return mount

    # ----------------------------------------------------------------------- namespaces

    def new_namespace(self) -> NamespaceRef:
        """unshare(2) CLONE_NEWNS in a new process: a copy of the host's tree, all peers."""
        assert self.host.root is not None
        root = self.host.root
        copy = self.mounts.copy_tree(root, root.root, recursive=True)
        namespace = self._new_namespace(copy)
        pid = _FIRST_PID + len(self._pids)
        self._pids[pid] = namespace.inode
        return NamespaceRef(namespace.inode, pid, 1)

    def end_namespace(self, ref: NamespaceRef) -> None:
        """The last process in it ends; whoever has entered it keeps it until he leaves."""
        namespace = self.namespaces.pop(ref.inode)
        namespace.is_gone = True
        if namespace is not self.current and namespace not in self._left_for_a_moment:
            self._dissolve(namespace)

    def _dissolve(self, namespace: Namespace) -> None:
        if namespace.root is not None:
            self.mounts.unmount(namespace.root, propagate=False)
            namespace.root = None

    def go_to(self, ref: NamespaceRef | None) -> None:
        """setns(2)."""
        left = self.current
        if ref is None:
            self.current = self.host
        elif self._pids.get(ref.pid) == ref.inode and ref.inode in self.namespaces:
            self.current = self.namespaces[ref.inode]
        else:
            raise_errno(errno.ESRCH)
        if left.is_gone and left is not self.current:
            self._dissolve(left)

    @contextmanager
    def inside(self, ref: NamespaceRef | None) -> Iterator[None]:
        """Do something in a namespace, and come back."""
        self._left_for_a_moment.append(self.current)
        self.current = self.host if ref is None else self.namespaces[ref.inode]
        try:
            yield
        finally:
            self.current = self._left_for_a_moment.pop()

    def pivot(self, path: str) -> None:
        """Make a mount the root and let the old one go, as a container runtime does."""
        root, namespace = self.mount_at(path), self.current
        assert namespace.root is not None
        root.leave_parent()
        old, namespace.root = namespace.root, root
        self.mounts.destroy(old)

    # ---------------------------------------------------------------------- descriptors

    def open(self, mount: FakeMount, node: Node, *, owns_tree: bool = False) -> int:
        """Return the lowest free descriptor of a place on a mount."""
        if len(self.descriptors) >= self.most_descriptors:
            raise_errno(errno.EMFILE)
        fd = next(n for n in range(3, 10_000) if n not in self.descriptors)
        self.descriptors[fd] = OpenFile(mount, node, owns_tree=owns_tree)
        mount.references += 1
        return fd

    def duplicate(self, fd: int) -> int:
        """dup(2)."""
        file = self.descriptors[fd]
        copy = self.open(file.mount, file.node)
        file.users += 1
        file.mount.references -= 1
        self.descriptors[copy] = file
        return copy

    def close(self, fd: int) -> None:
        """close(2)."""
        file = self.descriptors.pop(fd)
        file.users -= 1
        if file.users:
            return
        file.mount.references -= 1
        namespace = file.mount.namespace
        if file.owns_tree and namespace is not None and namespace.is_anonymous:
            self.mounts.destroy(topless(file.mount))
        elif file.mount.namespace is None and not file.mount.references:
            self.mounts.forget(file.mount)


def topless(mount: FakeMount) -> FakeMount:
    """Return the root of the tree that a mount is in."""
    while mount.parent is not None:
        mount = mount.parent
    return mount
