"""The daemon and its state directory: full, read-only, or with something else in its place."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.sources import Source
from tests.lab import in_lab, pod_with_container

pytestmark = pytest.mark.kernel

DEADLINE = 20.0


def crash(source: Source) -> None:
    source.kill()
    source.restart()


def wait_for(condition: Callable[[], bool], daemon: DaemonProcess) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, daemon.log()
        time.sleep(0.02)


@contextmanager
def tiny_disk(path: str) -> Iterator[Path]:
    """A file system of a few pages."""
    os.makedirs(path, mode=0o700)
    options = "size=16k,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tiny", path], check=True)
    try:
        yield Path(path)
    finally:
        subprocess.run(["umount", path], check=True)


def full(disk: Path) -> Callable[[], None]:
    """Fill a disk; return what makes room again."""
    filler = disk / "filler"
    filler.write_bytes(b"x" * 16384)
    return filler.unlink


def read_only(disk: Path) -> Callable[[], None]:
    """Take the right to write away; return what gives it back."""
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    return lambda: subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True) and None


@pytest.mark.parametrize(("hinder", "problem"), [(full, "No space left"), (read_only, "Read-only")])
@pytest.mark.slow
@in_lab(timeout=120)
def test_state_that_cannot_be_written_is_written_later(
    node: DemoNode, hinder: Callable[[Path], Callable[[], None]], problem: str
) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "p")
    daemon = DaemonProcess(node)
    with tiny_disk(daemon.values["state_dir"]) as disk:
        help_out = hinder(disk)
        with daemon:
            daemon.wait_until_watching(2)
            for _ in range(3):
                crash(source)
                container.wait_until_readable("/data/hello", DEADLINE)
                daemon.wait_until_watching(2)
            wait_for(lambda: "the state is not kept" in daemon.log(), daemon)
            assert problem in daemon.log()
            time.sleep(3.0)  # more attempts, of which nothing is said
            help_out()
            # Nothing changes on the node from here on.
            wait_for((disk / "state.json").exists, daemon)
            wait_for(lambda: "the state is kept again" in daemon.log(), daemon)
            assert daemon.log().count("the state is not kept") == 1
            daemon.kill()
            source.kill()
            daemon.start()
            assert "left out" not in daemon.log()
            source.restart()
            # Which source it was is nowhere but in that file.
            container.wait_until_readable("/data/hello", DEADLINE)


def foreign(path: str) -> None:
    Path(path).touch(mode=0o600)
    os.chown(path, 65534, 65534)


def writable(path: str) -> None:
    Path(path).touch()
    os.chmod(path, 0o666)


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        os.mkdir,
        lambda path: os.symlink("/etc/passwd", path),
        lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5)),
        foreign,
        writable,
    ],
    ids=["fifo", "directory", "link", "endless device", "foreign", "writable"],
)
@pytest.mark.slow
@in_lab(timeout=90)
def test_what_is_no_state_file_holds_no_start_up(
    node: DemoNode, make: Callable[[str], None]
) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "p")
    daemon = DaemonProcess(node)
    os.makedirs(daemon.values["state_dir"], mode=0o700)
    make(os.path.join(daemon.values["state_dir"], "state.json"))
    with daemon:
        daemon.wait_until_watching(2)
        assert daemon.log().count("the state file is left out") == 1
        crash(source)
        container.wait_until_readable("/data/hello", DEADLINE)
    assert "Traceback" not in daemon.log()
