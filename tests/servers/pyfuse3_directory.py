"""The files of a directory, on python3-pyfuse3 (libfuse 3, trio): ``BACKING MOUNT``.

For the system's Python, which is where distributions put pyfuse3.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

import pyfuse3
import trio


class Directory(pyfuse3.Operations):
    """Shows what the directory has when it starts, read-only."""

    def __init__(self, backing: str) -> None:
        super().__init__()
        self._paths = [backing]
        """By inode, from the root's on."""
        for path, directories, files in os.walk(backing):
            self._paths += [os.path.join(path, name) for name in (*directories, *files)]

    async def getattr(self, inode, ctx=None):
        found = os.stat(self._path(inode))
        entry = pyfuse3.EntryAttributes()
        entry.st_mode = stat.S_IFMT(found.st_mode) | 0o555
        entry.st_size = found.st_size
        entry.st_ino = inode
        return entry

    async def lookup(self, parent, name, ctx=None):
        path = os.path.join(self._path(parent), os.fsdecode(name))
        if path not in self._paths:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(self._inode(path))

    async def opendir(self, inode, ctx):
        return inode

    async def readdir(self, fh, start, token):
        inside = [path for path in self._paths if os.path.dirname(path) == self._path(fh)]
        for number, path in list(enumerate(inside, 1))[start:]:
            attributes = await self.getattr(self._inode(path))
            if not pyfuse3.readdir_reply(
                token, os.fsencode(os.path.basename(path)), attributes, number
            ):
                return

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh, offset, size):
        with open(self._path(fh), "rb") as file:
            file.seek(offset)
            return file.read(size)

    def _path(self, inode):
        return self._paths[inode - pyfuse3.ROOT_INODE]

    def _inode(self, path):
        return self._paths.index(path) + pyfuse3.ROOT_INODE


def main() -> None:
    """Serve until killed."""
    options = set(pyfuse3.default_options) | {"fsname=pyfuse3", "allow_other"}
    pyfuse3.init(Directory(sys.argv[1]), sys.argv[2], options)
    trio.run(pyfuse3.main)


main()
