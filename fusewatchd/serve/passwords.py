"""Checking passwords, which is slow on purpose, without letting strangers keep anybody busy.

One thread, one check at a time, and a rest after each that leaves most of a processor to others;
a bounded queue in which the newest take the place of the oldest.  Whoever was let in once is
known by a keyed digest from then on and waits for nobody, so guesses do not hold up a scraper.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fusewatchd.serve.bcrypt import Verify
from fusewatchd.threads import guarded_thread

REST_FACTOR = 9
"""A tenth of one processor at most, however costly the hashes are."""
MAX_WAITING = 16
MAX_KNOWN = 100
_NOBODY = "$2y${:02}$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi"
"""Checked for names that are not known, so that these take as long as known ones."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client says of itself."""

    user: str
    password: bytes


def credentials_of(authorization: str) -> Credentials | None:
    """Parse an ``Authorization`` field of the scheme Basic (RFC 7617); None: it is another."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return Credentials(user.decode("utf-8", "replace"), password) if colon else None


class _Job:
    """One check; ``is_right`` is None until it is done."""

    __slots__ = ("digest", "hashed", "is_known", "is_right", "password", "user")

    def __init__(self, given: Credentials, hashed: str, digest: bytes, *, is_known: bool) -> None:
        self.user = given.user
        self.password = given.password
        self.hashed = hashed
        self.digest = digest
        self.is_known = is_known
        self.is_right: bool | None = None


class PasswordChecker:
    """Checks one password after the other in a thread that lives while there is work."""

    def __init__(self, verify: Verify, wake: Callable[[], None]) -> None:
        """Take what checks, and what is called from the thread when one is done."""
        self._verify = verify
        self._wake = wake
        self._secret = os.urandom(32)
        self._known: dict[str, bytes] = {}
        self._jobs: deque[_Job] = deque(maxlen=MAX_WAITING)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._is_working = False

    def begin(
        self, given: Credentials, users: Mapping[str, str]
    ) -> bool | Callable[[], bool | None]:
        """Return what is known of credentials, or what tells it later (None: not yet).

        Args:
            given: by the client.
            users: bcrypt hashes by name.
        """
        is_known = given.user in users
        hashed = users[given.user] if is_known else _nobody_among(users)
        digest = self._digest(hashed, given.password)
        with self._lock:
            if is_known and hmac.compare_digest(self._known.get(given.user, b""), digest):
                return True
            job = _Job(given, hashed, digest, is_known=is_known)
            self._jobs.append(job)
            if not self._is_working:
                self._is_working = True
                guarded_thread("passwords", self._work).start()
        return lambda: job.is_right

    @property
    def waiting(self) -> int:
        """How many checks have not begun."""
        return len(self._jobs)

    def close(self) -> None:
        """Begin no further check."""
        self._closing.set()

    def _digest(self, hashed: str, password: bytes) -> bytes:
        return hmac.new(self._secret, hashed.encode() + b"\0" + password, hashlib.sha256).digest()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs or self._closing.is_set():
                    self._is_working = False
                    return
                job = self._jobs.popleft()
            began = time.thread_time()
            try:
                job.is_right = self._is_right(job)
            finally:
                job.is_right = bool(job.is_right)
                self._wake()
            self._closing.wait(REST_FACTOR * (time.thread_time() - began))

    def _is_right(self, job: _Job) -> bool:
        with self._lock:
            known = self._known.get(job.user, b"")
        if job.is_known and hmac.compare_digest(known, job.digest):
            return True  # the same was asked twice
        if not self._verify(job.password, job.hashed.encode()) or not job.is_known:
            return False
        with self._lock:
            self._known.pop(job.user, None)
            self._known[job.user] = job.digest
            while len(self._known) > MAX_KNOWN:
                del self._known[next(iter(self._known))]
        return True


def _nobody_among(users: Mapping[str, str]) -> str:
    return _NOBODY.format(max((int(hashed[4:6]) for hashed in users.values()), default=10))
