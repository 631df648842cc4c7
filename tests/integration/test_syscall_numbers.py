"""The numbers that filters go by are those of the kernel's headers (package linux-libc-dev)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fusewatchd.linux.syscall_numbers import LAST_NUMBER, number_of
from fusewatchd.workers.privileges import Calls

GENERIC = Path("/usr/include/asm-generic/unistd.h")
X86_64 = next(Path("/usr/include").glob("*/asm/unistd_64.h"), Path("/usr/include/asm/unistd_64.h"))
CALLS = sorted({call for group in Calls for call in group.value})
LATER = 12
"""So many of the calls may be newer than the headers of an older distribution."""


@pytest.mark.parametrize(
    ("machine", "header"), [("x86_64", X86_64), ("aarch64", GENERIC)], ids=["x86_64", "aarch64"]
)
def test_every_number_is_the_one_in_the_header(machine: str, header: Path) -> None:
    text = header.read_text(encoding="utf-8")
    numbers = {
        name: int(number)
        for name, number in re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)", text, re.MULTILINE)
    }
    named = {call: number_of(call, machine) for call in CALLS}
    known = {call: number for call, number in named.items() if call in numbers}
    assert known == {call: numbers[call] for call in known}
    missing = {call for call, number in named.items() if number is not None} - known.keys()
    assert len(missing) <= LATER, missing
    assert all(LAST_NUMBER >= (named[call] or 0) > 450 for call in missing)
