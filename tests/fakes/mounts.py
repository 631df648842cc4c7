"""Mounts of the fake kernel as a tree, their ids, and the namespaces they are in."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from fusewatchd.model.mounts import Mount
from tests.fakes.filesystem import Node, raise_errno


class Namespace:
    """A mount namespace; an anonymous one holds a detached tree (open_tree(2))."""

    def __init__(self, inode: int, *, is_anonymous: bool = False) -> None:
        self.inode = inode
        self.is_anonymous = is_anonymous
        self.root: FakeMount | None = None
        self.is_gone = False
        """Its last process ended."""


class FakeMount:
    """One mount.  Where the kernel links peers and slaves, here are the groups' numbers."""

    __slots__ = (
        "children", "group", "master", "mount_id", "namespace", "options", "parent", "place",
        "references", "root", "unique_id",
    )  # fmt: skip

    def __init__(self, mount_id: int, unique_id: int, root: Node, options: str) -> None:
        self.mount_id = mount_id
        self.unique_id = unique_id
        self.root = root
        self.options = options
        self.group = 0
        self.master = 0
        self.parent: FakeMount | None = None
        self.place: Node | None = None
        """What it covers, in the file system of its parent."""
        self.children: dict[Node, FakeMount] = {}
        self.namespace: Namespace | None = None
        """None: unmounted, or not attached yet."""
        self.references = 0
        """Open descriptors: each makes a plain umount answer EBUSY."""

    @property
    def overmount(self) -> FakeMount | None:
        """What is mounted on its root."""
        return self.children.get(self.root)

    @property
    def is_attached(self) -> bool:
        return self.namespace is not None and not self.namespace.is_anonymous

    def subtree(self) -> Iterator[FakeMount]:
        """Yield this and every mount on it, parents first."""
        queue = [self]
        while queue:
            mount = queue.pop()
            yield mount
            queue += reversed(mount.children.values())

    def attach_to(self, parent: FakeMount, place: Node) -> None:
        assert place not in parent.children, "one mount at one place: others are tucked under"
        self.parent, self.place = parent, place
        parent.children[place] = self

    def leave_parent(self) -> None:
        if self.parent is not None and self.place is not None:
            del self.parent.children[self.place]
        self.parent = self.place = None

    def path(self) -> str:
        """Return its mount point in its namespace."""
        parts: list[str] = []
        mount = self
        while mount.parent is not None and mount.place is not None:
            parts.append(mount.place.path_below(mount.parent.root))
            mount = mount.parent
        return "".join(reversed([part for part in parts if part != "/"])) or "/"

    def describe(self) -> Mount:
        """Return it as mountinfo and statmount(2) show it."""
        file_system = self.root.file_system
        return Mount(
            self.mount_id,
            self.parent.mount_id if self.parent else self.mount_id,
            file_system.device,
            self.root.path_below(file_system.root),
            self.path(),
            self.options,
            self.group,
            self.master,
            "tmpfs",
            file_system.name,
            "rw",
            self.unique_id,
        )


def topmost(mount: FakeMount) -> FakeMount:
    """Follow what is stacked on the root of a mount."""
    while mount.overmount is not None:
        mount = mount.overmount
    return mount


def follow(mount: FakeMount, node: Node) -> tuple[FakeMount, Node]:
    """Go from a directory to what is mounted on it, if anything."""
    covering = mount.children.get(node)
    if covering is None:
        return mount, node
    covering = topmost(covering)
    return covering, covering.root


def names_of(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def walk(root: FakeMount, path: str) -> tuple[FakeMount, Node]:
    """Resolve an absolute path; no symbolic link is ever followed, not even the last one."""
    mount, node = root, root.root
    for name in names_of(path):
        mount, node = follow(mount, node.child(name))
    if node.kind.value == "link":
        raise_errno(errno.ELOOP, path)
    return mount, node


_WORDS = ("nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime", "nosymfollow")


def canonical(options: str) -> str:
    """Print per-mount options in the kernel's words and order."""
    given = options.split(",")
    return ",".join(["ro" if "ro" in given else "rw", *(w for w in _WORDS if w in given)])
