"""Files that root acts on: configuration, tokens, keys, authorities, programs.

Each is looked at before it is used.  A link is followed, as in a projected volume of Kubernetes;
the link, what it leads to and every directory on the way count.
"""

from __future__ import annotations

import errno
import os
import re
import stat

from fusewatchd.errors import CredentialsError

MAX_LINKS = 40
"""On the way to one file, as in the kernel."""
OWN_DESCRIPTOR = re.compile(r"/proc/self/fd/\d+")
"""What is open already: who opened it has looked, and nothing can take its place."""
Signature = tuple[tuple[str, int, int, int], ...]
"""Changes when one of the files does."""


def signature(*paths: str) -> Signature:
    """Return what tells these files from what they were.

    Raises:
        CredentialsError: one is not there, or nothing that can be read to an end.
    """
    found = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as exc:
            raise CredentialsError(f"{path}: {exc.strerror}") from exc
        if not stat.S_ISREG(status.st_mode):
            raise CredentialsError(f"{path}: expected a regular file")
        found.append((path, status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)


def open_secret(path: str) -> int:
    """Open a file that nobody but its owner (and root's group) may be able to read.

    Returns:
        A descriptor to read from, which the caller closes.

    Raises:
        CredentialsError: others can, or can replace it, or it is not what it should be.
    """
    return _opened(path, is_secret=True)


def open_trusted(path: str) -> int:
    """As ``open_secret``, of a file that others may read."""
    return _opened(path, is_secret=False)


def read_secret(path: str, limit: int) -> str:
    """Read what ``open_secret`` opens.

    Raises:
        CredentialsError: as there, or it has more than ``limit`` bytes.
    """
    try:
        with open(open_secret(path), "rb") as file:
            text = file.read(limit + 1)
    except OSError as exc:
        raise CredentialsError(f"{path}: {exc.strerror}") from exc
    if len(text) > limit:
        raise CredentialsError(f"{path}: expected at most {limit} bytes")
    return text.decode("latin-1")


def _opened(path: str, *, is_secret: bool) -> int:
    try:
        # A FIFO that nobody writes to must not hold up its reader.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise CredentialsError(f"{path}: {exc.strerror}") from exc
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise CredentialsError(f"{path}: expected a regular file")
        if OWN_DESCRIPTOR.fullmatch(path):
            return fd
        mode = stat.S_IMODE(status.st_mode)
        if is_secret and (mode & 0o007 or (mode & 0o070 and status.st_gid != 0)):
            raise CredentialsError(f"{path}: others can read it (mode {mode:04o}); chmod 600")
        require_own_place(path)
    except CredentialsError:
        os.close(fd)
        raise
    return fd


def read_token(path: str, limit: int) -> str:
    """Read a bearer token: printable, or it could add fields to the header of a request.

    Raises:
        CredentialsError: as ``read_secret``, or there is no token in it.
    """
    text = read_secret(path, limit).strip()
    if not text.isascii() or not text.isprintable() or " " in text or not text:
        raise CredentialsError(f"{path}: expected one token in it")
    return text


def require_own_place(path: str) -> None:
    """Make sure that nobody else can write this file, or put another one in its place.

    Every directory and link on the way to it counts.  One that all may write, as ``/tmp``, does
    no harm with the sticky bit: what is in it then belongs to its owner.

    Raises:
        CredentialsError: others can, or there is no such file; the line names what they can write.
    """
    try:
        if not OWN_DESCRIPTOR.fullmatch(path):
            _walk(path)
    except OSError as exc:
        raise CredentialsError(f"{path}: {exc.strerror}") from exc


def _walk(path: str) -> None:
    at, links = "/", MAX_LINKS
    _require_unshared(path, at, os.lstat(at))
    left = os.path.join(os.getcwd(), path).split("/")[::-1]
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        if name == "..":
            at = os.path.dirname(at)
            continue
        place = os.path.join(at, name)
        status = os.lstat(place)
        _require_unshared(path, place, status)
        if not stat.S_ISLNK(status.st_mode):
            at = place
            continue
        links -= 1
        if links < 0:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(place)
        at = "/" if target.startswith("/") else at
        left += target.split("/")[::-1]


def _require_unshared(path: str, place: str, status: os.stat_result) -> None:
    where = path if place == os.path.abspath(path) else f"{path}: {place}"
    expected = "expected root's, and that nobody else can write it"
    if status.st_uid not in (0, os.geteuid()):
        raise CredentialsError(f"{where}: {expected}; it belongs to uid {status.st_uid}")
    mode = stat.S_IMODE(status.st_mode)
    is_shared = mode & 0o002 or (mode & 0o020 and status.st_gid != 0)
    is_sticky = stat.S_ISDIR(status.st_mode) and mode & stat.S_ISVTX
    if is_shared and not is_sticky and not stat.S_ISLNK(status.st_mode):
        raise CredentialsError(f"{where}: {expected}; others can (mode {mode:04o}): chmod go-w")
