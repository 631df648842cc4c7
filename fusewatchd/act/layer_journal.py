"""What a mount worker is about to put on top of another mount, written down before it does.

A worker, or all of the daemon, may be killed just after that: the layer is there, and nobody
has heard of it.  So it is written down first, where a write is a copy in memory: the runtime
directory is a tmpfs.  The state file tells the rest a moment later, and of what is older.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from fusewatchd.errors import ParseError
from fusewatchd.json_values import decode, encode
from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model.actions import OwnLayer
from fusewatchd.model.mounts import TargetKey

NAME = "own-layers"
_EARLIER = f"{NAME}.1"
MAX_BYTES = 256 << 10
"""Then the file is put aside and another one begun: a thousand layers are the past."""


@dataclass(frozen=True, slots=True)
class _Entry:
    boot_id: str
    key: TargetKey
    layer: OwnLayer


class LayerJournal:
    """Appends to the file; several workers may do so at once."""

    def __init__(self, directory: str, boot_id: str) -> None:
        """Take the directory as it is now: later the caller may be in a container.

        Without one, as for a look without a daemon, nothing is written down.
        """
        self._directory: int | None = None
        with suppress(OSError):
            self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._boot_id = boot_id

    def note(self, key: TargetKey, layer: OwnLayer) -> None:
        """Write a layer down; where that fails its outcome has to do."""
        line = json.dumps(encode(_Entry(self._boot_id, key, layer))) + "\n"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        here = self._directory
        if here is None:
            return
        with suppress(OSError):
            with closing_fd(os.open(NAME, flags | os.O_NONBLOCK, 0o600, dir_fd=here)) as fd:
                os.write(fd, line.encode("ascii"))
                is_long = os.fstat(fd).st_size > MAX_BYTES
            if is_long:
                os.rename(NAME, _EARLIER, src_dir_fd=here, dst_dir_fd=here)


def read_journal(directory: str, boot_id: str) -> list[tuple[TargetKey, OwnLayer]]:
    """Return what was written down since this boot, the oldest first; bad lines are left out."""
    return [
        (entry.key, entry.layer)
        for name in (_EARLIER, NAME)
        for entry in _entries(os.path.join(directory, name))
        if entry.boot_id == boot_id
    ]


def _entries(path: str) -> Iterator[_Entry]:
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
        data = os.pread(fd, 2 * MAX_BYTES, 0)
    for line in data.splitlines():
        with suppress(ValueError, ParseError):
            yield decode(_Entry, json.loads(line))
