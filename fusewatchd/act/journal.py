"""What a worker is about to do, written down before it does that.

A worker, or all of the daemon, may be killed just after: what it made is there, and no outcome
says so.  A write is a copy in memory: the runtime directory is a tmpfs.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import TypeVar

from fusewatchd.errors import ParseError
from fusewatchd.json_values import decode, encode
from fusewatchd.linux.syscalls import closing_fd

T = TypeVar("T")


class Journal:
    """Appends to one file; several workers may do so at once."""

    def __init__(self, directory: str, name: str, most_bytes: int) -> None:
        """Take the directory as it is now: later the caller may be in a container.

        Without one, as for a look without a daemon, nothing is written down.  A file of more than
        ``most_bytes`` is put aside, and another one begun.
        """
        self._directory: int | None = None
        with suppress(OSError):
            self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._name = name
        self._most_bytes = most_bytes

    def note(self, entry: object) -> None:
        """Write a dataclass down; where that fails its outcome has to do."""
        line = json.dumps(encode(entry)) + "\n"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        here = self._directory
        if here is None:
            return
        with suppress(OSError):
            with closing_fd(os.open(self._name, flags | os.O_NONBLOCK, 0o600, dir_fd=here)) as fd:
                os.write(fd, line.encode("ascii"))
                is_long = os.fstat(fd).st_size > self._most_bytes
            if is_long:
                os.rename(self._name, _earlier(self._name), src_dir_fd=here, dst_dir_fd=here)


def read(directory: str, name: str, most_bytes: int, kind: type[T]) -> Iterator[T]:
    """Yield what was written down, the oldest first; bad lines are left out."""
    for part in (_earlier(name), name):
        yield from _entries(os.path.join(directory, part), most_bytes, kind)


def remove(directory: str, name: str) -> None:
    """Begin again with nothing written down."""
    for part in (name, _earlier(name)):
        with suppress(OSError):
            os.unlink(os.path.join(directory, part))


def _earlier(name: str) -> str:
    return f"{name}.1"


def _entries(path: str, most_bytes: int, kind: type[T]) -> Iterator[T]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    with closing_fd(fd):
        # The directory is root's; one that others could write to proves nothing.
        status = os.fstat(fd)
        is_others = status.st_uid != os.geteuid() or status.st_mode & 0o022
        if is_others or not stat.S_ISREG(status.st_mode):
            return
        data = os.pread(fd, 2 * most_bytes, 0)
    for line in data.splitlines():
        with suppress(ValueError, ParseError):
            yield decode(kind, json.loads(line))
