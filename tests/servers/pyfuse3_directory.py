"""A file system of one file, on python3-pyfuse3 (libfuse 3, trio): ``BACKING MOUNT``.

For the system's Python, which is where distributions put pyfuse3.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

import pyfuse3
import trio

NAME = b"hello"
INODE = pyfuse3.ROOT_INODE + 1


class OneFile(pyfuse3.Operations):
    """Shows ``hello`` of the backing directory, read-only."""

    def __init__(self, backing: str) -> None:
        super().__init__()
        with open(os.path.join(backing, NAME.decode()), "rb") as file:
            self._content = file.read()

    async def getattr(self, inode, ctx=None):
        entry = pyfuse3.EntryAttributes()
        is_root = inode == pyfuse3.ROOT_INODE
        entry.st_mode = stat.S_IFDIR | 0o755 if is_root else stat.S_IFREG | 0o444
        entry.st_size = 0 if is_root else len(self._content)
        entry.st_ino = inode
        return entry

    async def lookup(self, parent, name, ctx=None):
        if parent != pyfuse3.ROOT_INODE or name != NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(INODE)

    async def opendir(self, inode, ctx):
        return inode

    async def readdir(self, fh, start, token):
        if start == 0:
            pyfuse3.readdir_reply(token, NAME, await self.getattr(INODE), 1)

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh, offset, size):
        return self._content[offset : offset + size]


def main() -> None:
    """Serve until killed."""
    options = set(pyfuse3.default_options) | {"fsname=pyfuse3", "allow_other"}
    pyfuse3.init(OneFile(sys.argv[1]), sys.argv[2], options)
    trio.run(pyfuse3.main)


main()
