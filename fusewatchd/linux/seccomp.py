"""Filters of system calls for this process and all that it starts, seccomp(2).

A filter names what is denied.  A list of what is allowed would have to name whatever the next
C library calls.  It cannot be taken back, and only be narrowed by one more.

Where the kernel's filters cannot be used (another machine, a kernel without them), the
processes go on without; ``problem`` says why.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from fusewatchd.linux.capabilities import PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, prctl
from fusewatchd.linux.syscall_numbers import LAST_NUMBER, number_of

# <linux/audit.h>
_ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# <linux/seccomp.h>
_SECCOMP_MODE_FILTER: Final = 2
_SECCOMP_GET_ACTION_AVAIL: Final = 2
_RET_ALLOW: Final = 0x7FFF0000
_RET_ERRNO: Final = 0x00050000
_NUMBER_AT: Final = 0
_ARCHITECTURE_AT: Final = 4
_ARGUMENTS_AT: Final = 16
_SYS_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
# <linux/bpf_common.h>
_LOAD: Final = 0x20
_JUMP_EQUAL: Final = 0x15
_JUMP_NOT_LESS: Final = 0x35
_AND: Final = 0x54
_RETURN: Final = 0x06
_INSTRUCTION: Final = struct.Struct("=HBBI")

_ALLOW: Final = (_RETURN, 0, 0, _RET_ALLOW)
_UNKNOWN: Final = (_RETURN, 0, 0, _RET_ERRNO | errno.ENOSYS)
_DENY: Final = (_RETURN, 0, 0, _RET_ERRNO | errno.EPERM)

_Code = list[tuple[int, int, int, int]]


@dataclass(frozen=True, slots=True)
class Only:
    """The call is allowed while the low 32 bits of one argument, masked, have this value."""

    argument: int
    mask: int
    value: int


Denied = Mapping[str, Only | None]
"""System calls by name; None: denied whatever its arguments are."""


class _Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


@cache
def problem() -> str:
    """Say why there can be no filter here; empty when there can."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return f"fusewatchd has no numbers of system calls for {machine}"
    libc = ctypes.CDLL(None, use_errno=True)
    action = ctypes.c_uint32(_RET_ERRNO)
    done = libc.syscall(
        ctypes.c_long(_SYS_SECCOMP[machine]),
        ctypes.c_long(_SECCOMP_GET_ACTION_AVAIL),
        ctypes.c_long(0),
        ctypes.byref(action),
    )
    return os.strerror(ctypes.get_errno()) if done < 0 else ""


def compiled(denied: Denied, machine: str = "") -> bytes:
    """Return the filter as classic BPF; pure, given a machine.

    A denied call fails with EPERM, clone3(2) with ENOSYS, as its caller then takes clone(2).
    So does what has a number that is unknown here.  Calls of another architecture are denied.

    Raises:
        KeyError: a call or the machine is unknown.
    """
    machine = machine or platform.machine()
    answers = {}
    for call, condition in denied.items():
        number = number_of(call, machine)
        if number is not None:
            answers[number] = [_UNKNOWN] if call == "clone3" else _answer(condition)
    answers[LAST_NUMBER + 1] = [_UNKNOWN]
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        _DENY,
        (_LOAD, 0, 0, _NUMBER_AT),
        *_search(_ranges(answers)),
    ]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


def install(program: bytes) -> None:
    """Filter the calls of this thread and of all that it starts, for good.

    Raises:
        OSError: the kernel refuses.
    """
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    loaded = _Program(len(program) // _INSTRUCTION.size, program)
    prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(loaded))


def _answer(condition: Only | None) -> _Code:
    if condition is None:
        return [_DENY]
    return [
        (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * condition.argument),
        (_AND, 0, 0, condition.mask),
        (_JUMP_EQUAL, 0, 1, condition.value),
        _ALLOW,
        _DENY,
    ]


def _ranges(answers: Mapping[int, _Code]) -> list[tuple[int, _Code]]:
    """Return where each range of numbers begins that has one answer, in order."""
    found: list[tuple[int, _Code]] = [(0, [_ALLOW])]
    for number, answer in sorted(answers.items()):
        if found[-1][0] == number:
            found.pop()
        if not found or found[-1][1] != answer:
            found.append((number, answer))
        if number <= LAST_NUMBER:
            found.append((number + 1, [_ALLOW]))
    return found


def _search(ranges: Sequence[tuple[int, _Code]]) -> _Code:
    """Return the code that finds the range of the loaded number by halves."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    below, above = _search(ranges[:middle]), _search(ranges[middle:])
    return [(_JUMP_NOT_LESS, len(below), 0, ranges[middle][0]), *below, *above]
