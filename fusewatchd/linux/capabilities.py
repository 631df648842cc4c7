"""Giving capabilities up for good, capset(2), and the bit that keeps programs from new ones."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from typing import Final

# <linux/prctl.h>
PR_SET_PDEATHSIG: Final = 1
PR_SET_KEEPCAPS: Final = 8
PR_SET_NAME: Final = 15
PR_SET_SECCOMP: Final = 22
PR_SET_NO_NEW_PRIVS: Final = 38
# <linux/capability.h>
_VERSION_3: Final = 0x20080522
_HEADER: Final = struct.Struct("=Ii")
_DATA: Final = struct.Struct("=6I")

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int | bytes, pointer: object = None) -> None:
    """prctl(2); ``pointer`` is the third argument of the options that have one."""
    argument = ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    zero = ctypes.c_ulong(0)
    third = zero if pointer is None else pointer
    if _libc.prctl(option, argument, third, zero, zero) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")


def keep_only(kept: Iterable[int]) -> None:
    """Give up every capability of this thread but those that it has and that are ``kept``.

    No program that is run later has one more: this sets no_new_privs, which nothing can take
    back.  So the bounding set is left as it is, which takes CAP_SETPCAP to change.  The
    inheritable set is emptied, and with it the ambient one.

    Raises:
        OSError: the kernel refuses.
    """
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    header = ctypes.create_string_buffer(_HEADER.pack(_VERSION_3, 0), _HEADER.size)
    data = ctypes.create_string_buffer(_DATA.size)
    _check(_libc.capget(header, data), "capget")
    _, permitted, _, _, _, _ = _DATA.unpack(data.raw)
    bits = permitted & sum(1 << bit for bit in kept)
    _check(_libc.capset(header, _DATA.pack(bits, bits, 0, 0, 0, 0)), "capset")


def _check(result: int, call: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
