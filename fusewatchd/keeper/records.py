"""What the keeper knows of one connection, in a memory file that outlives it.

systemd stores the file beside the clone (``service_manager``).  A checksum finds a write
that the end of the process cut short: the keeper lets go of what is not whole, and never guesses.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass, replace

from fusewatchd.errors import ParseError
from fusewatchd.json_values import decode, encode
from fusewatchd.keeper.access import Access, Group
from fusewatchd.keeper.protocol import Hold, Update

FORMAT = 1
MAX_BYTES = 1 << 20
_SUM_BYTES = 8


@dataclass(frozen=True, slots=True)
class Server:
    """A process that has the server's descriptor."""

    pid: int
    start_time: int
    """Clock ticks since boot: with it the pid is of no other process."""


@dataclass(frozen=True, slots=True)
class Record:
    """One held connection."""

    format: int
    hold: int
    connection: int
    driver: str
    servers: tuple[Server, ...]
    grace_seconds: float
    pids_are_hosts: bool
    pods: tuple[str, ...]
    deleting: tuple[str, ...]
    server_cgroups: tuple[str, ...]
    died_at: float | None = None
    """Monotonic clock; None: the server runs."""
    replaced_at: float | None = None

    @property
    def access(self) -> Access:
        """Whose callers wait."""
        return Access(
            self.pids_are_hosts,
            Group(self.pods),
            Group(self.deleting),
            Group(self.server_cgroups),
        )

    def updated(self, update: Update) -> Record:
        """Return it with other callers."""
        return replace(
            self, pods=update.pods, deleting=update.deleting, server_cgroups=update.servers
        )


def record_of(hold: int, request: Hold, servers: tuple[Server, ...]) -> Record:
    """Return what is known of a connection that was just handed over."""
    return Record(
        FORMAT,
        hold,
        request.connection,
        request.driver,
        servers,
        request.grace_seconds,
        request.pids_are_hosts,
        request.pods,
        request.deleting,
        request.servers,
    )


class RecordFile:
    """The memory file of one record."""

    def __init__(self, fd: int | None = None) -> None:
        """Own this descriptor, or one of a new file."""
        self.fd = os.memfd_create("fusewatchd-keeper", os.MFD_CLOEXEC) if fd is None else fd

    def write(self, record: Record) -> None:
        """Put it in the place of what is there."""
        data = json.dumps(encode(record)).encode("ascii")
        whole = b"%08x" % zlib.crc32(data) + data
        os.pwrite(self.fd, whole, 0)
        os.ftruncate(self.fd, len(whole))

    def read(self) -> Record:
        """Return what is there.

        Raises:
            ParseError: it is not whole, or was written by another version.
        """
        whole = os.pread(self.fd, MAX_BYTES, 0)
        data = whole[_SUM_BYTES:]
        if whole[:_SUM_BYTES] != b"%08x" % zlib.crc32(data):
            raise ParseError("a record that is not whole")
        try:
            record = decode(Record, json.loads(data))
        except (ValueError, RecursionError) as exc:
            raise ParseError(f"a record that is no JSON: {exc}") from exc
        if record.format != FORMAT:
            raise ParseError(f"a record of format {record.format}")
        return record

    def close(self) -> None:
        """Close this descriptor; copies stay."""
        os.close(self.fd)
