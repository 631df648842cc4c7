"""Requests as the kernel writes them, and what is done about each kind."""

from __future__ import annotations

import struct

import pytest

from fusewatchd.errors import ParseError
from fusewatchd.keeper.fuse_requests import (
    CHANGES_PATH,
    IN_HEADER,
    RESENT,
    FuseRequest,
    Kind,
    answer,
    fuse_request,
)

NEWEST_OPCODE = 53

NOTHING = {2: "FORGET", 41: "NOTIFY_REPLY", 42: "BATCH_FORGET"}
DONE = {18: "RELEASE", 29: "RELEASEDIR", 38: "DESTROY"}
PATH = {
    1: "LOOKUP", 3: "GETATTR", 4: "SETATTR", 5: "READLINK", 6: "SYMLINK", 8: "MKNOD", 9: "MKDIR",
    10: "UNLINK", 11: "RMDIR", 12: "RENAME", 13: "LINK", 14: "OPEN", 17: "STATFS", 21: "SETXATTR",
    22: "GETXATTR", 23: "LISTXATTR", 24: "REMOVEXATTR", 27: "OPENDIR", 34: "ACCESS", 35: "CREATE",
    45: "RENAME2", 51: "TMPFILE", 52: "STATX",
}  # fmt: skip
DESCRIPTOR = {
    15: "READ", 16: "WRITE", 20: "FSYNC", 25: "FLUSH", 26: "INIT", 28: "READDIR", 30: "FSYNCDIR",
    31: "GETLK", 32: "SETLK", 33: "SETLKW", 37: "BMAP", 39: "IOCTL", 40: "POLL", 43: "FALLOCATE",
    44: "READDIRPLUS", 46: "LSEEK", 47: "COPY_FILE_RANGE", 48: "SETUPMAPPING",
    49: "REMOVEMAPPING", 50: "SYNCFS", 53: "COPY_FILE_RANGE_64",
}  # fmt: skip


def packet(opcode: int, body: bytes = b"", unique: int = 8, pid: int = 77) -> bytes:
    length = IN_HEADER.size + len(body)
    return IN_HEADER.pack(length, opcode, unique, 1, 0, 0, pid, 0, 0) + body


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        (NOTHING, Kind.NOTHING),
        (DONE, Kind.DONE),
        (PATH, Kind.PATH),
        (DESCRIPTOR, Kind.DESCRIPTOR),
        ({7: "unused", 19: "unused", NEWEST_OPCODE + 1: "new", 2**32 - 1: "new"}, Kind.DESCRIPTOR),
    ],
    ids=lambda value: value.name if isinstance(value, Kind) else "",
)
def test_each_opcode_has_its_kind(table: dict[int, str], kind: Kind) -> None:
    for opcode, name in table.items():
        request = fuse_request(packet(opcode, bytes(64)))
        changes = opcode in CHANGES_PATH
        assert request == FuseRequest(8, 77, kind, 0, changes, changes or opcode == 1), name


def test_the_tables_have_every_opcode() -> None:
    known = {*NOTHING, *DONE, *PATH, *DESCRIPTOR, 36}
    assert known == set(range(1, NEWEST_OPCODE + 1)) - {7, 19}


@pytest.mark.parametrize(
    ("opcode", "flags", "kind"),
    [
        (3, 1 << 0, Kind.DESCRIPTOR),  # GETATTR, FUSE_GETATTR_FH
        (52, 1 << 0, Kind.DESCRIPTOR),  # STATX, the same
        (3, 1 << 1, Kind.PATH),
        (4, 1 << 6 | 1 << 3, Kind.DESCRIPTOR),  # ftruncate: FATTR_FH, FATTR_SIZE
        (4, 1 << 3, Kind.PATH),  # truncate
        (4, 1 << 5 | 1 << 10, Kind.DESCRIPTOR),  # the kernel writes times back
        (4, 1 << 4 | 1 << 5 | 1 << 10, Kind.PATH),  # utimensat
        (1, 1 << 0, Kind.PATH),  # the begin of a name
    ],
)
def test_an_open_file_is_told_from_a_path(opcode: int, flags: int, kind: Kind) -> None:
    assert fuse_request(packet(opcode, struct.pack("=IIQ", flags, 0, 9))).kind is kind


def test_an_interrupt_names_the_other_request() -> None:
    request = fuse_request(packet(36, struct.pack("=Q", 40), unique=41))
    assert (request.kind, request.interrupted) == (Kind.INTERRUPT, 40)
    assert fuse_request(packet(36)).interrupted == 0


def test_a_request_that_comes_again_says_so() -> None:
    assert fuse_request(packet(1, unique=RESENT | 8)).is_resent
    assert not fuse_request(packet(1)).is_resent


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 39, packet(1)[:-1], packet(1) + b"\0", b"\xff" * 40, b"\0" * 40]
)
def test_what_is_no_request(data: bytes) -> None:
    with pytest.raises(ParseError):
        fuse_request(data)


def test_an_answer_has_the_error_negated() -> None:
    assert answer(8, 107) == struct.pack("=IiQ", 16, -107, 8)
    assert answer(RESENT | 8, 0) == struct.pack("=IiQ", 16, 0, RESENT | 8)
