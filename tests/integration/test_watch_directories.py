"""Directories of pods watched by inotify, and the mount points among them left alone."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusewatchd.demo.node.world import PrivateWorld
from fusewatchd.linux import inotify, syscalls
from fusewatchd.linux.inotify import (
    ChangeKind,
    DirectoryChange,
    DirectoryWatch,
    PodsDirectoryWatch,
)
from tests.lab import run_in_world

needs_pyinotify = pytest.mark.skipif(bool(inotify.UNAVAILABLE), reason=inotify.UNAVAILABLE)
CSI = "volumes/kubernetes.io~csi"


@pytest.fixture
def watch() -> Iterator[DirectoryWatch]:
    with contextlib.closing(DirectoryWatch()) as made:
        yield made


def kinds(changes: list[DirectoryChange]) -> list[tuple[str, ChangeKind]]:
    return [(change.name, change.kind) for change in changes]


def queue_limit() -> int:
    return int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


# ------------------------------------------------------------------- one directory


@needs_pyinotify
def test_changes_in_order(watch: DirectoryWatch, tmp_path: Path) -> None:
    assert watch.add(str(tmp_path))
    assert watch.drain() == []
    (tmp_path / "a").touch()
    (tmp_path / "d").mkdir()
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "d").rmdir()
    assert select.select([watch], [], [], 20)[0]
    changes = watch.drain()
    assert kinds(changes) == [
        ("a", ChangeKind.CREATED),
        ("d", ChangeKind.CREATED),
        ("a", ChangeKind.MOVED_OUT),
        ("b", ChangeKind.MOVED_IN),
        ("d", ChangeKind.DELETED),
    ]
    assert {change.path for change in changes} == {str(tmp_path)}
    assert [change.name for change in changes if change.is_directory] == ["d", "d"]
    assert not select.select([watch], [], [], 0)[0]


@needs_pyinotify
def test_what_is_not_a_directory_is_refused_in_silence(
    watch: DirectoryWatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("dir")
    assert not watch.add(str(tmp_path / "file"))
    assert not watch.add(str(tmp_path / "link"))
    assert not watch.add(str(tmp_path / "nothing"))
    assert not watch.add(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    assert watch.add(str(tmp_path / "dir"))
    watch.remove(str(tmp_path / "nothing"))
    assert watch.paths == (str(tmp_path / "dir"),)
    assert capfd.readouterr() == ("", "")


@needs_pyinotify
def test_removed_and_vanished_directories(watch: DirectoryWatch, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert watch.add(str(tmp_path / name))
    (tmp_path / "one" / "x").touch()
    watch.remove(str(tmp_path / "one"))
    (tmp_path / "one" / "y").touch()
    (tmp_path / "two").rmdir()
    gone = DirectoryChange(str(tmp_path / "two"), "", ChangeKind.UNWATCHED)
    assert watch.drain() == [gone]
    assert watch.paths == ()
    (tmp_path / "two").mkdir()
    assert watch.add(str(tmp_path / "two"))
    (tmp_path / "two" / "z").touch()
    assert kinds(watch.drain()) == [("z", ChangeKind.CREATED)]


@needs_pyinotify
def test_a_name_that_is_no_utf_8_is_an_overflow(watch: DirectoryWatch, tmp_path: Path) -> None:
    watch.add(str(tmp_path))
    (tmp_path / "before").touch()
    with open(os.fsencode(tmp_path) + b"/\xff", "w"):
        pass
    (tmp_path / "after").touch()
    assert watch.drain()[-1].kind is ChangeKind.OVERFLOW
    (tmp_path / "next").touch()
    assert ("next", ChangeKind.CREATED) in kinds(watch.drain())


@needs_pyinotify
def test_more_changes_than_the_kernel_keeps(watch: DirectoryWatch, tmp_path: Path) -> None:
    watch.add(str(tmp_path))
    limit = queue_limit()
    if limit > 100_000:
        pytest.skip(f"fs.inotify.max_queued_events is {limit}: filling it takes too long")
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    Path(one).touch()
    for _ in range(limit // 4 + 2):  # two records each
        os.rename(one, two)
        os.rename(two, one)
    changes = watch.drain()
    assert changes[-1].kind is ChangeKind.OVERFLOW
    assert len(changes) <= limit + 1
    assert watch.drain() == []


@needs_pyinotify
def test_the_bound_and_the_descriptor(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with contextlib.closing(DirectoryWatch(max_watches=1)) as watch:
        assert watch.add(str(tmp_path / "one"))
        assert watch.add(f"{tmp_path}/./one/")
        assert not watch.add(str(tmp_path / "two"))
        assert not os.get_inheritable(watch.fileno())
        fd = watch.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize(
    "content", ["raise ImportError('no asyncore')", "import a_module_that_is_not_there"]
)
def test_a_broken_pyinotify_stops_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "pyinotify.py").write_text(content)
    root = Path(inotify.__file__).parents[2]
    code = (
        "from fusewatchd.linux.inotify import UNAVAILABLE, DirectoryWatch\n"
        "from fusewatchd.observe.servers.sockets import SocketWatch\n"
        "print(UNAVAILABLE)\n"
        "SocketWatch(['/nowhere/*']).drain(0.0)\n"
        "try:\n    DirectoryWatch()\n"
        "except ImportError as exc:\n    print('refused:', exc)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PYTHONPATH": f"{tmp_path}:{root}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("pyinotify cannot be imported: ")
    assert lines[1] == f"refused: {lines[0]}"


def test_importing_warns_and_prints_nothing() -> None:
    code = "import fusewatchd.linux.inotify"
    root = str(Path(inotify.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")


# ------------------------------------------------------------------- the pods directory


@pytest.fixture
def pods(tmp_path: Path) -> Path:
    path = tmp_path / "pods"
    path.mkdir()
    return path


@pytest.fixture
def pods_watch(pods: Path) -> Iterator[PodsDirectoryWatch]:
    with contextlib.closing(PodsDirectoryWatch(str(pods))) as made:
        yield made


def relative(pods: Path, watch: PodsDirectoryWatch) -> set[str]:
    return {os.path.relpath(path, pods) for path in watch.watched}


EXPECTED = {
    ".",
    "u",
    "u/volumes",
    "u/volumes/kubernetes.io~csi",
    "u/volumes/kubernetes.io~csi/pv",
    "u/volumes/lab~bind",
    "u/volume-subpaths",
    "u/volume-subpaths/pv",
    "u/volume-subpaths/pv/app",
}
MADE = [
    "u/volumes/kubernetes.io~csi/pv/mount/inside",
    "u/volumes/lab~bind/v/inside",
    "u/volume-subpaths/pv/app/0/inside",
    "u/plugins/x",
    "u/etc-hosts",
]


@needs_pyinotify
def test_watches_what_is_there_and_no_mount_point(pods: Path) -> None:
    for name in MADE:
        (pods / name).mkdir(parents=True)
    with contextlib.closing(PodsDirectoryWatch(str(pods))) as watch:
        assert relative(pods, watch) == EXPECTED
        assert watch.watched
        assert watch.unwatched == 0
        assert watch.drain() == frozenset()


@needs_pyinotify
def test_watches_what_appears_in_a_moment(pods: Path, pods_watch: PodsDirectoryWatch) -> None:
    for name in MADE:
        (pods / name).mkdir(parents=True)
    assert pods_watch.drain() == {"u"}
    pods_watch.drain()
    assert relative(pods, pods_watch) == EXPECTED


@needs_pyinotify
@pytest.mark.parametrize(
    "name",
    [
        "u/volumes/kubernetes.io~csi/pv/mount",
        "u/volumes/kubernetes.io~csi/new",
        "u/volumes/lab~bind/new",
        "u/volumes/new~plugin",
        "u/volume-subpaths/pv/app/1",
        "u/volume-subpaths/pv/other/0",
    ],
)
def test_a_new_mount_point_names_its_pod(pods: Path, name: str) -> None:
    for made in ("u/volumes/kubernetes.io~csi/pv", "u/volumes/lab~bind", "other/volumes"):
        (pods / made).mkdir(parents=True)
    (pods / "u/volume-subpaths/pv/app").mkdir(parents=True)
    with contextlib.closing(PodsDirectoryWatch(str(pods))) as watch:
        (pods / name).mkdir(parents=True)
        assert select.select([watch], [], [], 20)[0]
        assert watch.drain() == {"u"}
        (pods / name).rmdir()
        assert watch.drain() == {"u"}


@needs_pyinotify
def test_pods_that_go_leave_no_watch(pods: Path, pods_watch: PodsDirectoryWatch) -> None:
    for round_ in range(3):
        for name in MADE:
            (pods / name).mkdir(parents=True)
        pods_watch.drain()
        shutil.rmtree(pods / "u")
        assert pods_watch.drain() == {"u"}, round_
        assert relative(pods, pods_watch) == {"."}
        assert pods_watch.unwatched == 0


@needs_pyinotify
def test_a_directory_that_is_moved_away_is_no_longer_watched(
    pods: Path, pods_watch: PodsDirectoryWatch
) -> None:
    for name in MADE:
        (pods / name).mkdir(parents=True)
    pods_watch.drain()
    (pods / "u").rename(pods.parent / "elsewhere")
    assert pods_watch.drain() == {"u"}
    assert relative(pods, pods_watch) == {"."}
    (pods.parent / "elsewhere").rename(pods / "back")
    assert pods_watch.drain() == {"back"}
    assert len(relative(pods, pods_watch)) == len(EXPECTED)


@needs_pyinotify
def test_a_pods_directory_that_comes_late(tmp_path: Path) -> None:
    with contextlib.closing(PodsDirectoryWatch(str(tmp_path / "pods"))) as watch:
        assert not watch.watched
        assert watch.drain() == frozenset()
        (tmp_path / "pods" / "u" / "volumes").mkdir(parents=True)
        assert watch.rescan() == {"u"}
        assert watch.watched
        shutil.rmtree(tmp_path / "pods")
        watch.drain()
        assert not watch.watched


@needs_pyinotify
def test_links_are_not_followed(pods: Path, pods_watch: PodsDirectoryWatch, tmp_path: Path) -> None:
    (tmp_path / "secret" / "pv").mkdir(parents=True)
    (pods / "u" / "volumes").mkdir(parents=True)
    (pods / "u" / "volumes" / "kubernetes.io~csi").symlink_to(tmp_path / "secret")
    (pods / "link").symlink_to(tmp_path / "secret")
    pods_watch.drain()
    assert relative(pods, pods_watch) == {".", "u", "u/volumes"}


@needs_pyinotify
def test_after_an_overflow_everything_is_listed(pods: Path, pods_watch: PodsDirectoryWatch) -> None:
    (pods / "a").mkdir()
    (pods / "b").mkdir()
    pods_watch.drain()
    limit = queue_limit()
    if limit > 100_000:
        pytest.skip(f"fs.inotify.max_queued_events is {limit}: filling it takes too long")
    (pods / "b").rmdir()
    one, two = str(pods / "one"), str(pods / "two")
    Path(one).touch()
    for _ in range(limit // 4 + 2):
        os.rename(one, two)
        os.rename(two, one)
    for name in MADE:
        (pods / name).mkdir(parents=True)
    assert {"a", "b", "u"} <= pods_watch.drain()
    assert pods_watch.overflows == 1
    assert relative(pods, pods_watch) == {*EXPECTED, "a"}


@needs_pyinotify
def test_the_number_of_watches_is_bounded(pods: Path) -> None:
    for number in range(10):
        (pods / str(number)).mkdir()
    with contextlib.closing(PodsDirectoryWatch(str(pods), max_watches=4)) as watch:
        assert len(watch.watched) == 4
        assert watch.unwatched == 7


@needs_pyinotify
def test_a_mount_that_never_answers_blocks_nothing() -> None:
    """Every place where a driver may mount has a FUSE mount whose server never reads."""

    def body(world: PrivateWorld) -> list[str]:
        pods = Path(world.lab, "pods")
        places = [
            "u/volumes/kubernetes.io~csi/pv/mount",
            "u/volumes/kubernetes.io~csi/odd",
            "u/volumes/lab~bind/v",
            "u/volumes/whole~plugin",
            "u/volume-subpaths/pv/app/0",
            "u/volume-subpaths/pv/odd",
            "whole-pod",
        ]
        held = []
        for place in places:
            (pods / place).mkdir(parents=True)
            fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
            options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
            syscalls.mount("src", str(pods / place), "fuse", 0, options)
            held.append(fd)
        with contextlib.closing(PodsDirectoryWatch(str(pods))) as watch:
            (pods / "u/volumes/kubernetes.io~csi/next").mkdir()
            assert watch.drain() == {"u"}
            watch.rescan()
            watched = sorted(relative(pods, watch))
        for place in places:
            syscalls.umount2(str(pods / place), syscalls.MNT_DETACH)
        for fd in held:
            os.close(fd)
        return watched

    assert run_in_world(body) == [
        ".",
        "u",
        "u/volume-subpaths",
        "u/volume-subpaths/pv",
        "u/volume-subpaths/pv/app",
        "u/volumes",
        "u/volumes/kubernetes.io~csi",
        "u/volumes/kubernetes.io~csi/next",
        "u/volumes/kubernetes.io~csi/pv",
        "u/volumes/lab~bind",
    ]
