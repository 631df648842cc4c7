"""Files in the state directory: read with suspicion, written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fusewatchd.errors import ParseError
from fusewatchd.threads import guarded_thread

NAME = "state.json"
MAX_BYTES = 64 << 20
FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 60.0
"""After a failed write."""
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def read_boot_id() -> str:
    """Return the id of this boot, random(4); raises ``OSError``."""
    with open(_BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


def read_state(directory: str, name: str = NAME) -> Any:
    """Return the document that was written last; None when there is none.

    Raises:
        ParseError: there is one that must not be believed, or cannot be read.
    """
    path = os.path.join(directory, name)
    try:
        with open(path, "rb", opener=_open_warily) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ParseError(f"{path}: not a regular file")
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise ParseError(f"{path}: others can write it")
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ParseError(f"{path}: {exc.strerror}") from exc
    if len(data) > MAX_BYTES:
        raise ParseError(f"{path}: more than {MAX_BYTES} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ParseError(f"{path}: torn or empty") from exc


def _open_warily(path: str, flags: int) -> int:
    # Neither a link elsewhere nor a FIFO that nobody writes to.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def write_state(directory: str, document: Any, name: str = NAME) -> None:
    """Replace the file; a crash at any moment leaves the old one or the new one.

    Raises:
        OSError: it could not be written; the old one is as it was.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    path = os.path.join(directory, name)
    fresh = f"{path}.new"
    with suppress(FileNotFoundError):
        os.unlink(fresh)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with open(os.open(fresh, flags, 0o600), "w", encoding="ascii") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(fresh, path)
    except OSError:
        with suppress(OSError):
            os.unlink(fresh)
        raise
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)


class StateWriter:
    """Writes in a thread of its own: a slow disk must not hold up a recovery.

    What could not be written is tried again until it can be, or until there is something newer.
    """

    def __init__(
        self,
        directory: str,
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
        max_pause_seconds: float = MAX_PAUSE_SECONDS,
        *,
        name: str = NAME,
        rest_seconds: float = 0.0,
    ) -> None:
        """Write below this directory; the thread starts with the first ``save``.

        After a failure the first pause passes, then twice as long, up to the longest; after a
        success the rest, so that what changes all the time is not written all the time.
        """
        self._directory = directory
        self._name = name
        self._rest = rest_seconds
        self._first_pause = self._pause = first_pause_seconds
        self._max_pause = max_pause_seconds
        self._wanted: Callable[[], Any] | None = None
        self._not_before = 0.0
        self._is_closing = False
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self.problem = ""
        """Why the last write failed; empty after a good one."""

    def save(self, make: Callable[[], Any]) -> None:
        """Write what ``make`` returns, soon; only the last one of several is written."""
        with self._condition:
            self._wanted = make
            if self._thread is None:
                self._thread = guarded_thread("state", self._run)
                self._thread.start()
            self._condition.notify()

    def close(self, seconds: float = 2.0) -> None:
        """Let what is under way be written, for so long; what has failed is tried once more."""
        with self._condition:
            self._is_closing = True
            self._condition.notify()
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        while (make := self._next()) is not None:
            try:
                write_state(self._directory, make(), self._name)
            except OSError as exc:
                self._take_failure(make, exc)
            else:
                self.problem, self._pause = "", self._first_pause
                self._not_before = time.monotonic() + self._rest

    def _next(self) -> Callable[[], Any] | None:
        """Wait for something to write and until it may be tried; None: it is time to end."""
        with self._condition:
            while not self._is_closing:
                wait = self._not_before - time.monotonic()
                if self._wanted is not None and wait <= 0:
                    break
                self._condition.wait(None if self._wanted is None else wait)
            make, self._wanted = self._wanted, None
            return make

    def _take_failure(self, make: Callable[[], Any], exc: OSError) -> None:
        self.problem = f"{exc.filename or self._directory}: {exc.strerror}"
        with self._condition:
            self._not_before = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, self._max_pause)
            if self._wanted is None and not self._is_closing:
                self._wanted = make
