"""bcrypt by the system's crypt(3), where that is libxcrypt.

Python's own module for it is gone (3.13), and no further package is wanted for one function.
"""

from __future__ import annotations

import ctypes
import hmac
from collections.abc import Callable

_LIBRARIES = ("libcrypt.so.1", "libcrypt.so.2")
"""Debian, Ubuntu and older RHEL; Fedora and newer RHEL."""
_ROOM = 1 << 18
"""Bytes for ``struct crypt_data``: 32 KiB in libxcrypt, 128 KiB in the C library's old one."""

_KNOWN = b"abcdefghijklmnopqrstuu"
_SETTINGS = (b"$2a$04$", b"$2b$04$", b"$2y$04$")

Verify = Callable[[bytes, bytes], bool]
"""Takes a password and a hash."""


def find_bcrypt() -> Verify | None:
    """Return what checks a password against a bcrypt hash; None where the system cannot.

    It releases the interpreter's lock while it computes.  A password with a NUL byte is wrong:
    crypt(3) would look at what is before it.
    """
    for name in _LIBRARIES:
        try:
            crypt = ctypes.CDLL(name).crypt_r
        except (OSError, AttributeError):
            continue
        crypt.restype = ctypes.c_char_p
        crypt.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p)

        def hashed(password: bytes, setting: bytes, crypt: Callable[..., bytes] = crypt) -> bytes:
            return crypt(password, setting, ctypes.create_string_buffer(_ROOM)) or b""

        if all(_knows(hashed, setting) for setting in _SETTINGS):
            return lambda password, found: (
                b"\0" not in password and hmac.compare_digest(hashed(password, found), found)
            )
    return None


def _knows(hashed: Callable[[bytes, bytes], bytes], setting: bytes) -> bool:
    one, other = (hashed(word, setting + _KNOWN) for word in (b"one", b"other"))
    return len(one) == 60 and one.startswith(setting + _KNOWN[:-1]) and one != other
