"""The file in the state directory: read with suspicion, written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fusewatchd.errors import ParseError

NAME = "state.json"
MAX_BYTES = 64 << 20
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def read_boot_id() -> str:
    """Return the id of this boot, random(4); raises ``OSError``."""
    with open(_BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


def read_state(directory: str) -> Any:
    """Return the document that was written last; None when there is none.

    Raises:
        ParseError: there is one that must not be believed, or cannot be read.
    """
    path = os.path.join(directory, NAME)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with open(os.open(path, flags), "rb") as file:
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


def write_state(directory: str, document: Any) -> None:
    """Replace the file; a crash at any moment leaves the old one or the new one.

    Raises:
        OSError: it could not be written; the old one is as it was.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    path = os.path.join(directory, NAME)
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
    """Writes in a thread of its own: a slow disk must not hold up a recovery."""

    def __init__(self, directory: str) -> None:
        """Write below this directory; the thread starts with the first ``save``."""
        self._directory = directory
        self._wanted: Callable[[], Any] | None = None
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
                self._thread = threading.Thread(target=self._run, name="state", daemon=True)
                self._thread.start()
            self._condition.notify()

    def close(self, seconds: float = 2.0) -> None:
        """Let what is under way be written, for so long."""
        with self._condition:
            self._is_closing = True
            self._condition.notify()
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._condition:
                while self._wanted is None and not self._is_closing:
                    self._condition.wait()
                make, self._wanted = self._wanted, None
            if make is None:
                return
            try:
                write_state(self._directory, make())
                self.problem = ""
            except OSError as exc:
                self.problem = f"{exc.filename or self._directory}: {exc.strerror}"
