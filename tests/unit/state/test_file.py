"""The state file on real file systems: torn, foreign, of the wrong kind, on a full disk."""

from __future__ import annotations

import itertools
import os
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusewatchd.demo.node.world import PrivateWorld
from fusewatchd.errors import ParseError
from fusewatchd.state.file import NAME, StateWriter, read_boot_id, read_state, write_state
from tests.lab import run_in_world

PATIENCE = 20.0
DOCUMENT = {"version": 1, "lineage": [{"mount_point": "/a \u00fc", "id": 12}], "own_layers": []}


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "not reached"
        time.sleep(0.005)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# ---------------------------------------------------------------------------- reading


def test_written_whole_for_root_only_and_read_back(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    write_state(str(directory), {"a": 1})
    write_state(str(directory), {"a": 2})
    assert read_state(str(directory)) == {"a": 2}
    assert os.listdir(directory) == [NAME]
    assert stat.S_IMODE(os.stat(directory / NAME).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700


def test_no_file_is_no_memory(tmp_path: Path) -> None:
    assert read_state(str(tmp_path)) is None


@pytest.mark.parametrize("content", [b"", b'{"a"', b"\xff\xff", b"[" * 100_000, b"1" * 5000])
def test_a_torn_file_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    (tmp_path / NAME).chmod(0o600)
    with pytest.raises(ParseError, match="torn or empty"):
        read_state(str(tmp_path))


@pytest.mark.parametrize("rest", [b"", b"\x00"], ids=["cut", "zeroed"])
def test_a_file_torn_at_any_byte_is_never_believed(tmp_path: Path, rest: bytes) -> None:
    """Cut short, or as long as it was with zeros where blocks never reached the disk."""
    write_state(str(tmp_path), DOCUMENT)
    whole = (tmp_path / NAME).read_bytes()
    for end in range(len(whole)):
        (tmp_path / NAME).write_bytes(whole[:end] + rest * (len(whole) - end))
        with pytest.raises(ParseError, match="torn or empty"):
            read_state(str(tmp_path))
    (tmp_path / NAME).write_bytes(whole)
    assert read_state(str(tmp_path)) == DOCUMENT


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_not_believed(tmp_path: Path, mode: int) -> None:
    write_state(str(tmp_path), {})
    (tmp_path / NAME).chmod(mode)
    with pytest.raises(ParseError, match="others can write it"):
        read_state(str(tmp_path))


@pytest.mark.root
def test_a_file_of_somebody_else_is_not_believed(tmp_path: Path) -> None:
    write_state(str(tmp_path), {})
    os.chown(tmp_path / NAME, 65534, 0)
    with pytest.raises(ParseError, match="others can write it"):
        read_state(str(tmp_path))


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").touch(mode=0o600)
    (tmp_path / "real").write_text("{}")
    (tmp_path / NAME).symlink_to("real")
    with pytest.raises(ParseError, match="symbolic links"):
        read_state(str(tmp_path))


@pytest.mark.root
@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (os.mkfifo, "not a regular file"),
        (os.mkdir, "Is a directory"),
        (lambda path: os.mknod(path, 0o600 | stat.S_IFSOCK), "No such device or address"),
        (lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5)), "not a regular file"),
    ],
    ids=["fifo", "directory", "socket", "endless device"],
)
def test_what_is_no_file_is_not_read_and_blocks_nobody(
    tmp_path: Path, make: Callable[[str], None], problem: str
) -> None:
    make(str(tmp_path / NAME))
    before = open_descriptors()
    for _ in range(3):
        with pytest.raises(ParseError, match=problem):
            read_state(str(tmp_path))
    assert open_descriptors() == before


def test_a_huge_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / NAME).touch(mode=0o600)
    os.truncate(tmp_path / NAME, 1 << 40)
    with pytest.raises(ParseError, match="more than"):
        read_state(str(tmp_path))


# ---------------------------------------------------------------------------- writing


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_state(str(tmp_path), {"old": True})
    (tmp_path / (NAME + ".new")).mkdir()
    with pytest.raises(OSError):
        write_state(str(tmp_path), {"old": False})
    assert read_state(str(tmp_path)) == {"old": True}


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/nowhere", path)])
def test_what_is_no_file_is_replaced(tmp_path: Path, make: Callable[[str], None]) -> None:
    make(str(tmp_path / NAME))
    make(str(tmp_path / (NAME + ".new")))
    write_state(str(tmp_path), DOCUMENT)
    assert read_state(str(tmp_path)) == DOCUMENT


def on_tiny_disk(body: Callable[[str], None]) -> None:
    """Run with a directory that is a file system of a few pages, in a private world."""

    def in_world(world: PrivateWorld) -> None:
        directory = os.path.join(world.lab, "tiny")
        os.mkdir(directory)
        mount = ["mount", "-t", "tmpfs", "-o", "size=16k,mode=0700", "tiny", directory]
        subprocess.run(mount, check=True)
        try:
            body(directory)
        finally:
            subprocess.run(["umount", directory], check=True)

    run_in_world(in_world)


@pytest.mark.kernel
def test_a_full_disk_costs_neither_the_old_file_nor_the_next_write() -> None:
    def body(directory: str) -> None:
        write_state(directory, {"old": True})
        with pytest.raises(OSError, match="No space left"):
            write_state(directory, {"text": "x" * 100_000})
        assert os.listdir(directory) == [NAME]
        assert read_state(directory) == {"old": True}
        write_state(directory, {"old": False})
        assert read_state(directory) == {"old": False}

    on_tiny_disk(body)


@pytest.mark.kernel
def test_what_did_not_fit_is_written_by_itself_once_there_is_room() -> None:
    def body(directory: str) -> None:
        filler = Path(directory, "filler")
        filler.write_bytes(b"x" * 16384)
        writer = StateWriter(directory, first_pause_seconds=0.02, max_pause_seconds=0.05)
        writer.save(lambda: DOCUMENT)
        wait_for(lambda: "No space left" in writer.problem)
        time.sleep(0.2)  # some more attempts that fail
        assert "No space left" in writer.problem
        filler.unlink()
        wait_for(lambda: writer.problem == "")
        assert read_state(directory) == DOCUMENT
        writer.close()

    on_tiny_disk(body)


@pytest.mark.kernel
def test_a_read_only_directory_is_said_and_recovers() -> None:
    def body(directory: str) -> None:
        subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
        writer = StateWriter(directory, first_pause_seconds=0.02, max_pause_seconds=0.05)
        writer.save(lambda: DOCUMENT)
        wait_for(lambda: "Read-only" in writer.problem)
        subprocess.run(["mount", "-o", "remount,rw", directory], check=True)
        wait_for(lambda: read_state(directory) == DOCUMENT)
        writer.close()

    on_tiny_disk(body)


def blocked(tmp_path: Path) -> Path:
    """A directory that cannot be made, because a file is in its place."""
    (tmp_path / "file").touch()
    return tmp_path / "file"


def test_attempts_rest_ever_longer_and_newer_state_does_not_hurry_them(tmp_path: Path) -> None:
    tries: list[float] = []

    def make() -> Any:
        tries.append(time.monotonic())
        return {}

    writer = StateWriter(str(blocked(tmp_path)), first_pause_seconds=0.1, max_pause_seconds=0.2)
    wait_until = time.monotonic() + 1.0
    while time.monotonic() < wait_until:
        writer.save(make)
        time.sleep(0.001)
    writer.close()
    assert 2 <= len(tries) <= 8
    *paused, _ = tries  # the last one is of the end, which does not wait
    rests = [later - earlier for earlier, later in itertools.pairwise(paused)]
    assert all(rest >= 0.1 for rest in rests[:1])
    assert all(rest >= 0.2 for rest in rests[1:])


def test_only_the_newest_state_is_tried_again(tmp_path: Path) -> None:
    place = blocked(tmp_path)
    writer = StateWriter(str(place), first_pause_seconds=0.05, max_pause_seconds=0.05)
    writer.save(lambda: {"number": 0})
    wait_for(lambda: writer.problem != "")
    for number in range(1, 50):
        writer.save(lambda number=number: {"number": number})  # type: ignore[misc]
    place.unlink()
    wait_for(lambda: writer.problem == "")
    assert read_state(str(place)) == {"number": 49}
    writer.close()


def test_the_writer_writes_the_last_one_and_says_what_fails(tmp_path: Path) -> None:
    writer = StateWriter(str(tmp_path / "s"))
    for number in range(50):
        writer.save(lambda number=number: {"number": number})  # type: ignore[misc]
    writer.close()
    assert read_state(str(tmp_path / "s")) == {"number": 49}
    assert writer.problem == ""
    failing = StateWriter(str(blocked(tmp_path)))
    failing.save(dict)
    failing.close()
    assert "file" in failing.problem


def test_the_end_does_not_wait_for_the_next_attempt(tmp_path: Path) -> None:
    place = blocked(tmp_path)
    writer = StateWriter(str(place), first_pause_seconds=3600.0, max_pause_seconds=3600.0)
    writer.save(lambda: DOCUMENT)
    wait_for(lambda: writer.problem != "")
    place.unlink()
    writer.close(PATIENCE)
    assert read_state(str(place)) == DOCUMENT


def test_a_boot_has_an_id() -> None:
    assert len(read_boot_id()) == 36


def test_a_document_that_cannot_be_made_does_not_end_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    writer = StateWriter(str(tmp_path))
    failed = threading.Event()

    def fails() -> object:
        failed.set()
        raise RuntimeError("dictionary changed size during iteration")

    writer.save(fails)
    assert failed.wait(30)
    writer.save(lambda: {"a": 1})
    writer.close(30)
    assert read_state(str(tmp_path)) == {"a": 1}
    assert [args.exc_type for args in told] == [RuntimeError]
