"""File systems of the fake kernel: names, kinds and what is left of a removed directory."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from enum import Enum
from typing import NoReturn

from fusewatchd.model.mounts import Device


class NodeKind(Enum):
    """Type of a file, as far as a bind mount cares."""

    DIRECTORY = "directory"
    FILE = "file"
    LINK = "link"
    FIFO = "fifo"


class Node:
    """A file or directory (a dentry of the kernel's); mounts refer to it after its removal."""

    __slots__ = ("children", "content", "file_system", "is_removed", "kind", "name", "parent")

    def __init__(
        self, file_system: FileSystem, name: str, parent: Node | None, kind: NodeKind
    ) -> None:
        self.file_system = file_system
        self.name = name
        self.parent = parent
        self.kind = kind
        self.content = ""
        self.is_removed = False
        self.children: dict[str, Node] = {}

    def add(self, name: str, kind: NodeKind, content: str = "") -> Node:
        """Create something in this directory; mkdir(2), open(2) O_EXCL."""
        if self.is_removed:
            raise_errno(errno.ENOENT, name)
        if name in self.children:
            raise_errno(errno.EEXIST, name)
        node = Node(self.file_system, name, self, kind)
        node.content = content
        self.children[name] = node
        return node

    def remove(self) -> None:
        """Take this out of its directory; rmdir(2), unlink(2)."""
        if self.children:
            raise_errno(errno.ENOTEMPTY, self.name)
        assert self.parent is not None
        del self.parent.children[self.name]
        self.is_removed = True

    def child(self, name: str) -> Node:
        """Look one name up, following nothing."""
        if self.kind is NodeKind.LINK:
            raise_errno(errno.ELOOP, self.name)
        if self.kind is not NodeKind.DIRECTORY:
            raise_errno(errno.ENOTDIR, self.name)
        if self.file_system.is_dead:
            raise_errno(errno.ENOTCONN, name)
        found = self.children.get(name)
        if found is None:
            raise_errno(errno.ENOENT, name)
        return found

    def ancestors(self) -> Iterator[Node]:
        """Yield this and every directory above it in the same file system."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent

    def is_below(self, other: Node) -> bool:
        """Return True when this is ``other`` or inside of it (the kernel's is_subdir)."""
        return any(node is other for node in self.ancestors())

    @property
    def is_directory(self) -> bool:
        return self.kind is NodeKind.DIRECTORY

    def path_below(self, top: Node) -> str:
        """Return the path from ``top``, ``/`` for itself; a removed one is marked."""
        names: list[str] = []
        for node in self.ancestors():
            if node is top:
                break
            names.append(node.name)
        path = "/" + "/".join(name for name in reversed(names) if name)
        return path + "//deleted" if self.is_removed else path


class FileSystem:
    """A superblock."""

    def __init__(self, device: Device, name: str) -> None:
        self.device = device
        self.name = name
        self.is_dead = False
        """Its server is gone: a lookup answers ENOTCONN, what is known already does not."""
        self.root = Node(self, "", None, NodeKind.DIRECTORY)


def raise_errno(number: int, name: str = "") -> NoReturn:
    """Raise the ``OSError`` that a system call would."""
    raise OSError(number, os.strerror(number), name or None)
