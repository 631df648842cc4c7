"""What outlives a keeper in a memory file."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from fusewatchd.errors import ParseError
from fusewatchd.keeper.protocol import Update
from fusewatchd.keeper.records import Record, RecordFile, Server, record_of
from tests.unit.keeper.test_protocol import HOLD

RECORD = record_of(7, HOLD, (Server(100, 12345), Server(101, 12346)))


@pytest.fixture
def file() -> Iterator[RecordFile]:
    one = RecordFile()
    yield one
    one.close()


def test_a_record_is_read_as_it_was_written(file: RecordFile) -> None:
    file.write(RECORD)
    assert file.read() == RECORD
    shorter = RECORD.updated(Update(7, ("/a",)))
    file.write(shorter)
    assert file.read() == shorter
    assert (shorter.pods, shorter.deleting, shorter.server_cgroups) == (("/a",), (), ())


def _cut(data: bytes) -> bytes:
    return data[:-1]


@pytest.mark.parametrize(
    "change",
    [
        _cut,
        lambda data: b"",
        lambda data: data[:8],
        lambda data: data.replace(b"12345", b"12344"),
        lambda data: b"0" * 8 + data[8:],
        lambda data: data + b" ",
    ],
)
def test_one_that_is_not_whole_is_not_believed(file: RecordFile, change: object) -> None:
    assert callable(change)
    file.write(RECORD)
    data = change(os.pread(file.fd, 1 << 16, 0))
    os.ftruncate(file.fd, 0)
    os.pwrite(file.fd, data, 0)
    with pytest.raises(ParseError):
        file.read()


def test_one_of_another_version_is_not_believed(file: RecordFile) -> None:
    fields = {name: getattr(RECORD, name) for name in Record.__slots__}
    file.write(Record(**{**fields, "format": 2}))
    with pytest.raises(ParseError, match="format 2"):
        file.read()
