"""The sink of all log entries.

``Log`` is a sink of its own and not the standard library's ``logging``: there is no global state
that a library could change, nothing ever waits for the reader of a pipe or for journald, and every
value is escaped on its way out.  What is said about cycles is in ``report.log``.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import socket
import threading
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from enum import Enum, IntEnum
from typing import Protocol

from fusewatchd.log_message import MESSAGE_IDS, Plain, message, plain, quoted
from fusewatchd.text import printable

Value = Plain | None
"""None: the field is left out."""

JOURNAL_SOCKET = "/run/systemd/journal/socket"
LINE_LIMIT = 4096
"""``PIPE_BUF`` of pipe(7): a write up to this size to a pipe with room does not block."""
_ALL_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
SHORT = 64
"""Characters to which each text is cut when a line would pass the limit."""


class Level(IntEnum):
    """Severity, by its number in syslog(3): the smaller, the more serious."""

    ERROR = 3
    WARNING = 4
    INFO = 6
    DEBUG = 7


class Format(Enum):
    """How entries are written."""

    TEXT = "text"
    """For a person at a terminal."""
    LOGFMT = "logfmt"
    JSON = "json"
    JOURNAL = "journal"
    """Straight to journald, each field searchable: ``journalctl FUSEWATCHD_POD=…``."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One log entry; its texts are printable already."""

    at: float
    """Seconds since the epoch."""
    level: Level
    text: str
    fields: Mapping[str, Plain]

    def shortened(self) -> Entry:
        """Return the entry with every text cut to ``SHORT``."""
        return replace(self, fields={key: _short(value) for key, value in self.fields.items()})


class EntrySink(Protocol):
    """Where entries go."""

    def write(self, entry: Entry) -> bool:
        """Write or drop one entry without waiting; return False when it was dropped."""

    def close(self) -> None:
        """Release the socket, if there is one."""


def _short(value: Plain) -> Plain:
    if isinstance(value, tuple):
        return _short(",".join(value))
    is_long = isinstance(value, str) and len(value) > SHORT
    return f"{str(value)[: SHORT - 1]}…" if is_long else value


# -------------------------------------------------------------------------- formats


def format_text(entry: Entry) -> str:
    """Return a line with the local time, as one reads it at a terminal."""
    at = datetime.fromtimestamp(entry.at)
    clock = f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}"
    return f"{clock} {entry.level.name:<7} {message(entry.text, entry.fields)}"


def format_logfmt(entry: Entry) -> str:
    """Return ``time=… level=… msg=… key=value`` with quotes where a value needs them."""
    head = f"time={_rfc3339(entry.at)} level={entry.level.name.lower()} msg={quoted(entry.text)}"
    return head + _pairs(entry)


def format_json(entry: Entry) -> str:
    """Return one JSON object (RFC 8259) on one line."""
    head = {"time": _rfc3339(entry.at), "level": entry.level.name.lower(), "msg": entry.text}
    return json.dumps({**entry.fields, **head}, ensure_ascii=False, separators=(",", ":"))


def journal_datagram(entry: Entry) -> bytes:
    """Return an entry in journald's native protocol (systemd's JOURNAL_NATIVE_PROTOCOL).

    No value has a line feed, so the form with a length in front is never needed.
    """
    lines = [
        f"MESSAGE={message(entry.text, entry.fields)}",
        f"PRIORITY={entry.level.value}",
        "SYSLOG_IDENTIFIER=fusewatchd",
    ]
    if (message_id := MESSAGE_IDS.get(str(entry.fields.get("event")))) is not None:
        lines.append(f"MESSAGE_ID={message_id}")
    for key, value in entry.fields.items():
        # A field may be there several times: journalctl finds the entry by each of its values.
        for one in value if isinstance(value, tuple) else (value,):
            lines.append(f"FUSEWATCHD_{key.upper()}={plain(one)}")
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")


def _pairs(entry: Entry) -> str:
    return "".join(f" {key}={quoted(plain(v))}" for key, v in entry.fields.items())


def _rfc3339(at: float) -> str:
    moment = datetime.fromtimestamp(at, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


_LINES: Mapping[Format, Callable[[Entry], str]] = {
    Format.TEXT: format_text,
    Format.LOGFMT: format_logfmt,
    Format.JSON: format_json,
}


# ---------------------------------------------------------------------------- sinks


class StreamSink:
    """Lines on a file descriptor that others share.

    The descriptor stays blocking, because O_NONBLOCK would hold for everybody who shares
    it, the user's shell included; instead nothing is written while there is no room.
    """

    def __init__(self, fd: int, line: Callable[[Entry], str]) -> None:
        """Write to ``fd``, which stays the caller's."""
        self._fd = fd
        self._line = line
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def write(self, entry: Entry) -> bool:
        """Write one line, or drop it when the reader is behind or gone."""
        data = self._encoded(entry)
        if len(data) > LINE_LIMIT:
            data = self._encoded(entry.shortened())
        try:
            events = self._poll.poll(0)
            if not events or not events[0][1] & select.POLLOUT or len(data) > LINE_LIMIT:
                return False
            return os.write(self._fd, data) == len(data)
        except OSError:
            return False

    def close(self) -> None:
        """Leave the descriptor to its owner."""

    def _encoded(self, entry: Entry) -> bytes:
        return (self._line(entry) + "\n").encode("utf-8", "backslashreplace")


class JournalSink:
    """Datagrams to journald."""

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        """Make a socket; nothing is connected, so a restart of journald goes unnoticed.

        Raises:
            OSError: no socket could be made.
        """
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def write(self, entry: Entry) -> bool:
        """Send one entry, or drop it when journald is behind or away."""
        data = journal_datagram(entry)
        try:
            self._socket.sendto(data, self._path)
        except OSError as exc:
            return exc.errno == errno.EMSGSIZE and self._write_large(data)
        return True

    def _write_large(self, data: bytes) -> bool:
        """Send what is too large for a datagram as a sealed file (JOURNAL_NATIVE_PROTOCOL)."""
        try:
            with open(
                os.memfd_create("journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "wb", 0
            ) as file:
                file.write(data)
                fcntl.fcntl(file, fcntl.F_ADD_SEALS, _ALL_SEALS)
                rights = array("i", [file.fileno()])
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
                self._socket.sendmsg([], ancillary, 0, self._path)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def choose_format(wanted: str, fd: int, environ: Mapping[str, str]) -> Format:
    """Return the format for ``log.format``, where ``auto`` looks at the descriptor.

    ``$JOURNAL_STREAM`` counts only if it names this very descriptor (systemd.exec(5)): the
    variable is inherited by processes whose output goes elsewhere.

    Raises:
        ValueError: no such format.
        OSError: ``fd`` is not open.
    """
    if wanted != "auto":
        return Format(wanted)
    status = os.fstat(fd)
    if environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}":
        return Format.JOURNAL
    return Format.TEXT if os.isatty(fd) else Format.LOGFMT


def open_log(
    level: str = "info",
    wanted: str = "auto",
    fd: int = 2,
    environ: Mapping[str, str] = os.environ,
) -> Log:
    """Return the log that ``log.level`` and ``log.format`` of the configuration ask for.

    Raises:
        ValueError: no such format.
        KeyError: no such level.
        OSError: ``fd`` is not open.
    """
    chosen = choose_format(wanted, fd, environ)
    sink = JournalSink() if chosen is Format.JOURNAL else StreamSink(fd, _LINES[chosen])
    return Log(sink, Level[level.upper()])


# ------------------------------------------------------------------------------ log


class Log:
    """Takes messages from any thread."""

    def __init__(
        self,
        sink: EntrySink,
        level: Level = Level.INFO,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Write what is at least as serious as ``level``; ``clock`` gives epoch seconds."""
        self.level = level
        self._sink = sink
        self._clock = clock
        self._lock = threading.Lock()
        self._dropped = 0

    def is_enabled(self, level: Level) -> bool:
        """Return True when an entry of this level would be written."""
        return level <= self.level

    def error(self, text: str, /, **fields: Value) -> None:
        """Say that something is broken and nobody repairs it."""
        self.write(Level.ERROR, text, fields)

    def warning(self, text: str, /, **fields: Value) -> None:
        """Say that something is wrong."""
        self.write(Level.WARNING, text, fields)

    def info(self, text: str, /, **fields: Value) -> None:
        """Say what happened."""
        self.write(Level.INFO, text, fields)

    def debug(self, text: str, /, **fields: Value) -> None:
        """Say what only somebody who searches wants to know."""
        self.write(Level.DEBUG, text, fields)

    def write(self, level: Level, text: str, fields: Mapping[str, Value]) -> None:
        """Escape and write one entry; how many were lost is said when there is room again."""
        if not self.is_enabled(level):
            return
        entry = Entry(self._clock(), level, printable(text), _printable_fields(fields))
        with self._lock:
            has_room = not self._dropped or self._tell_dropped(entry.at)
            if not has_room or not self._sink.write(entry):
                self._dropped += 1

    def close(self) -> None:
        """Release the sink."""
        self._sink.close()

    def _tell_dropped(self, at: float) -> bool:
        notice = Entry(at, Level.WARNING, "log lines were dropped", {"lines": self._dropped})
        if not self._sink.write(notice):
            return False
        self._dropped = 0
        return True


def _printable_fields(fields: Mapping[str, Value]) -> dict[str, Plain]:
    return {key: _printable(value) for key, value in fields.items() if value is not None}


def _printable(value: Plain) -> Plain:
    if isinstance(value, tuple):
        return tuple(map(printable, value))
    return printable(value) if isinstance(value, str) else value
