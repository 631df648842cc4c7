"""The filters of system calls, run by an interpreter of classic BPF."""

from __future__ import annotations

import errno
import struct

import pytest

from fusewatchd.linux.seccomp import Only, compiled
from fusewatchd.linux.syscall_numbers import LAST_NUMBER, number_of
from fusewatchd.workers.privileges import PRIVILEGES, Kind

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOWED = 0x7FFF0000
DENIED = 0x00050000 | errno.EPERM
UNKNOWN = 0x00050000 | errno.ENOSYS
NO_ARGUMENTS = (0,) * 6
X32 = 0x40000000
NEWNS, NEWPID = 0x20000, 0x20000000
READ_ONLY, WRITE_ONLY, READ_WRITE, CREATE, TRUNCATE, PATH = 0, 1, 2, 0o100, 0o1000, 0o10000000


def verdict(
    program: bytes, machine: str, number: int, arguments: tuple[int, ...] = NO_ARGUMENTS
) -> int:
    """Do what net/core/filter.c does with ``struct seccomp_data``."""
    data = struct.pack("<iIQ6Q", number, ARCHITECTURES[machine], 0, *arguments)
    code = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        operation, if_true, if_false, operand = code[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, operand)
        elif operation == 0x54:
            accumulator &= operand
        elif operation == 0x15:
            at += if_true if accumulator == operand else if_false
        elif operation == 0x35:
            at += if_true if accumulator >= operand else if_false
        else:
            assert operation == 0x06
            return int(operand)


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize("kind", Kind)
def test_each_kind_is_denied_what_its_row_says_and_nothing_else(kind: Kind, machine: str) -> None:
    denied = PRIVILEGES[kind].denied()
    program = compiled(denied, machine)
    numbers = {number_of(call, machine): only for call, only in denied.items()}
    for number in range(LAST_NUMBER + 1):
        expected = ALLOWED
        if number in numbers:
            only = numbers[number]
            expected = DENIED if only is None or only.value else ALLOWED
            if number == number_of("clone3", machine):
                expected = UNKNOWN
        assert verdict(program, machine, number) == expected, number
    for number in (LAST_NUMBER + 1, X32, X32 + 165, 0x7FFFFFFF):
        assert verdict(program, machine, number) == UNKNOWN


def test_calls_of_another_architecture_are_denied() -> None:
    program = compiled({}, "x86_64")
    assert verdict(program, "x86_64", 0) == ALLOWED
    assert verdict(program, "aarch64", 0) == DENIED


@pytest.mark.parametrize(
    ("call", "arguments", "expected"),
    [
        ("unshare", (NEWNS,), ALLOWED),
        ("unshare", (NEWNS | NEWPID,), DENIED),
        ("setns", (7, NEWNS), ALLOWED),
        ("setns", (7, 0), DENIED),
        ("setns", (7, NEWPID), DENIED),
    ],
)
def test_a_mount_worker_uses_mount_namespaces_only(
    call: str, arguments: tuple[int, ...], expected: int
) -> None:
    program = compiled(PRIVILEGES[Kind.MOUNT].denied(), "x86_64")
    number = number_of(call, "x86_64")
    assert number is not None
    assert verdict(program, "x86_64", number, (*arguments, *NO_ARGUMENTS)[:6]) == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (READ_ONLY, ALLOWED),
        (PATH, ALLOWED),
        (WRITE_ONLY, DENIED),
        (READ_WRITE, DENIED),
        (READ_ONLY | CREATE, DENIED),
        (READ_ONLY | TRUNCATE, DENIED),
    ],
)
@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_a_scan_worker_opens_nothing_to_write_to_it(
    machine: str, flags: int, expected: int
) -> None:
    program = compiled(PRIVILEGES[Kind.SCAN].denied(), machine)
    number = number_of("openat", machine)
    assert number is not None
    # What the caller leaves in the upper half of the register is nothing to the kernel.
    for upper in (0, 1 << 32):
        arguments = (3, 4, flags | upper, 0, 0, 0)
        assert verdict(program, machine, number, arguments) == expected


def test_a_condition_looks_at_its_bits_only() -> None:
    program = compiled({"socket": Only(0, 0xFF, 1)}, "x86_64")
    number = number_of("socket", "x86_64")
    assert number is not None
    assert verdict(program, "x86_64", number, (0x101, 0, 0, 0, 0, 0)) == ALLOWED
    assert verdict(program, "x86_64", number, (2, 0, 0, 0, 0, 0)) == DENIED
