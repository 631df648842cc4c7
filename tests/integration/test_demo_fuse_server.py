"""The demo's FUSE server: what a program sees through it is what the backing directory has."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.fuse import protocol
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.sources import ServerOptions, Source, detach_all, mount_id_at
from fusewatchd.linux import syscalls
from tests.features import Feature, needs
from tests.lab import in_lab

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


def fresh(node: DemoNode) -> tuple[Path, Path]:
    """Return the mount and the backing directory of a new server without caches."""
    source = node.add_source("one", options=ServerOptions(attr_timeout=0.0))
    return Path(source.path), Path(source.backing)


def errno_of(action: Callable[[], object]) -> int:
    try:
        action()
    except OSError as error:
        return error.errno or -1
    return 0


def renameat2(old: Path, new: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (syscalls.AT_FDCWD, os.fsencode(old), syscalls.AT_FDCWD, os.fsencode(new), flags)
    if libc.renameat2(*arguments) < 0:
        syscalls.raise_errno(str(old))


def idmap(clone: int, user_namespace: int) -> None:
    syscalls.mount_setattr(clone, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns_fd=user_namespace)


def mount_line(path: str) -> list[str]:
    rows = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [row for row in rows if row[4] == path][-1]


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the server in the foreground until it ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "fusewatchd.demo.fuse.server", *arguments],
        env=python_environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


# ---------------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        (protocol.IN_HEADER, 40),
        (protocol.OUT_HEADER, 16),
        (protocol.INIT_OUT, 64),
        (protocol.ENTRY_OUT, 128),
        (protocol.ATTR_OUT, 104),
        (protocol.OPEN_OUT, 16),
        (protocol.WRITE_OUT, 8),
        (protocol.STATFS_OUT, 80),
        (protocol.GETATTR_IN, 16),
        (protocol.SETATTR_IN, 88),
        (protocol.MKNOD_IN, 16),
        (protocol.RENAME2_IN, 16),
        (protocol.CREATE_IN, 16),
        (protocol.TRANSFER_IN, 40),
        (protocol.DIRENT, 24),
    ],
)
def test_structures_have_the_sizes_of_the_header(layout: object, size: int) -> None:
    assert layout.size == size  # type: ignore[attr-defined]


# ------------------------------------------------------------------- pass-through


@in_lab()
def test_files(node: DemoNode) -> None:
    mount, backing = fresh(node)
    assert (mount / "hello").read_text() == "one"
    (mount / "new").write_bytes(b"x" * 300_000)
    assert (backing / "new").stat().st_size == 300_000
    with (mount / "new").open("r+b") as file:
        file.seek(299_999)
        file.write(b"yz")
        os.fsync(file.fileno())
    assert (backing / "new").read_bytes()[-3:] == b"xyz"
    os.truncate(mount / "new", 5)
    assert (mount / "new").read_bytes() == b"xxxxx"
    with (mount / "new").open("ab") as file:
        file.write(b"end")
    assert (backing / "new").read_bytes() == b"xxxxxend"
    (mount / "new").unlink()
    assert not (backing / "new").exists()
    assert errno_of((mount / "new").read_bytes) == errno.ENOENT


@in_lab()
def test_open_file_outlives_its_name(node: DemoNode) -> None:
    mount, _ = fresh(node)
    with (mount / "hello").open("r+b") as file:
        (mount / "hello").unlink()
        file.write(b"two")
        file.flush()
        assert os.pread(file.fileno(), 10, 0) == b"two"
        assert os.fstat(file.fileno()).st_nlink == 0


@in_lab()
def test_directories(node: DemoNode) -> None:
    mount, backing = fresh(node)
    (mount / "a" / "b").mkdir(parents=True)
    assert (backing / "a" / "b").is_dir()
    assert errno_of((mount / "a").rmdir) == errno.ENOTEMPTY
    (mount / "a" / "b").rmdir()
    for number in range(500):
        (backing / "a" / f"{number:0200}").touch()
    assert sorted(os.listdir(mount / "a")) == sorted(os.listdir(backing / "a"))
    kinds = {entry.name: entry.is_dir(follow_symlinks=False) for entry in os.scandir(mount)}
    assert kinds == {"a": True, "hello": False}


@in_lab()
def test_names_are_bytes(node: DemoNode) -> None:
    mount, backing = fresh(node)
    name = b"sp ace\ttab\nline\\back\xff\xfe"
    with open(os.fsencode(mount) + b"/" + name, "wb") as file:
        file.write(b"odd")
    assert os.listdir(os.fsencode(backing)) == os.listdir(os.fsencode(mount))
    assert name in os.listdir(os.fsencode(mount))


@in_lab()
def test_links_and_special_files(node: DemoNode) -> None:
    mount, backing = fresh(node)
    (mount / "link").symlink_to("hello")
    assert (mount / "link").readlink() == Path("hello")
    assert (mount / "link").read_text() == "one"
    os.link(mount / "hello", mount / "hard")
    assert (backing / "hard").stat().st_nlink == 2
    os.mkfifo(mount / "fifo")
    assert stat.S_ISFIFO((backing / "fifo").stat().st_mode)


@in_lab()
def test_renames(node: DemoNode) -> None:
    mount, backing = fresh(node)
    (mount / "sub").mkdir()
    (mount / "two").write_text("two")
    os.rename(mount / "hello", mount / "sub" / "moved")
    assert (backing / "sub" / "moved").read_text() == "one"
    renameat2(mount / "sub" / "moved", mount / "two", RENAME_EXCHANGE)
    assert (mount / "two").read_text() == "one"
    assert (mount / "sub" / "moved").read_text() == "two"
    both = (mount / "two", mount / "sub" / "moved")
    assert errno_of(partial(renameat2, *both, RENAME_NOREPLACE)) == errno.EEXIST
    (mount / "sub" / "deep").write_text("deep")
    os.rename(mount / "sub", mount / "other")
    assert (mount / "other" / "deep").read_text() == "deep"


@in_lab()
def test_attributes(node: DemoNode) -> None:
    mount, backing = fresh(node)
    os.chmod(mount / "hello", 0o640)
    os.chown(mount / "hello", 1234, 2345)
    os.utime(mount / "hello", ns=(1_000_000_001, 2_000_000_002))
    for path in (mount, backing):
        found = (path / "hello").stat()
        assert stat.S_IMODE(found.st_mode) == 0o640
        assert (found.st_uid, found.st_gid) == (1234, 2345)
        assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    assert os.statvfs(mount).f_blocks == os.statvfs(backing).f_blocks


@in_lab()
def test_creator_owns_what_he_creates(node: DemoNode) -> None:
    mount, backing = fresh(node)
    backing.chmod(0o777)
    pid = os.fork()
    if pid == 0:
        os.setresgid(4321, 4321, 4321)
        os.setresuid(4321, 4321, 4321)
        os._exit(errno_of((mount / "dir").mkdir) or errno_of((mount / "file").touch))
    assert os.waitpid(pid, 0)[1] == 0
    assert (backing / "dir").stat().st_uid == 4321
    assert (backing / "file").stat().st_gid == 4321


NAMES = st.sampled_from(["a", "b", "c", "d/a", "d/b", "d", "missing/x"])
OPERATIONS = st.one_of(
    st.tuples(st.just("write"), NAMES, st.binary(max_size=20)),
    st.tuples(st.just("append"), NAMES, st.binary(max_size=20)),
    st.tuples(st.just("truncate"), NAMES, st.integers(0, 30)),
    st.tuples(st.just("rename"), NAMES, NAMES),
    st.tuples(st.just("exchange"), NAMES, NAMES),
    st.tuples(st.just("link"), NAMES, NAMES),
    st.tuples(st.just("symlink"), NAMES, NAMES),
    st.tuples(st.just("unlink"), NAMES, st.none()),
    st.tuples(st.just("mkdir"), NAMES, st.none()),
    st.tuples(st.just("rmdir"), NAMES, st.none()),
)


def apply(root: Path, operation: tuple[str, str, object]) -> int:
    """Do one operation below ``root``; returns its errno."""
    do, name, value = operation
    path = root / name
    actions: dict[str, Callable[[], object]] = {
        "write": lambda: path.write_bytes(value),  # type: ignore[arg-type]
        "append": lambda: _append(path, value),  # type: ignore[arg-type]
        "truncate": lambda: os.truncate(path, value),  # type: ignore[arg-type]
        "rename": lambda: os.rename(path, root / str(value)),
        "exchange": lambda: renameat2(path, root / str(value), RENAME_EXCHANGE),
        "link": lambda: os.link(path, root / str(value), follow_symlinks=False),
        "symlink": lambda: os.symlink(str(value), path),
        "unlink": lambda: os.unlink(path),
        "mkdir": lambda: os.mkdir(path),
        "rmdir": lambda: os.rmdir(path),
    }
    return errno_of(actions[do])


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def tree(root: Path) -> dict[str, object]:
    """Return everything below ``root`` as one value."""
    found: dict[str, object] = {}
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = Path(directory, name)
            status = path.lstat()
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            kind = stat.S_IFMT(status.st_mode)
            links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
            found[str(path.relative_to(root))] = (kind, links, content)
    return found


@in_lab(timeout=120)
def test_any_sequence_of_operations_is_as_on_a_plain_directory(node: DemoNode) -> None:
    mount, backing = fresh(node)
    plain = Path(node.lab, "plain")

    @settings(max_examples=80, deadline=None, database=None, derandomize=True)
    @given(st.lists(OPERATIONS, max_size=25))
    def compare(operations: list[tuple[str, str, object]]) -> None:
        (backing / "work").mkdir()
        plain.mkdir()
        try:
            for operation in operations:
                assert apply(mount / "work", operation) == apply(plain, operation), operation
            assert tree(mount / "work") == tree(plain) == tree(backing / "work")
        finally:
            shutil.rmtree(mount / "work")
            shutil.rmtree(plain)

    compare()
    assert os.listdir(mount) == ["hello"]


@in_lab()
def test_forgotten_nodes_are_closed(node: DemoNode) -> None:
    source = node.add_source("one", options=ServerOptions(attr_timeout=0.0))
    mount = Path(source.path)
    for number in range(300):
        (mount / f"{number}").touch()
        (mount / f"{number}").unlink()
    # Unlinked inodes are evicted at once, and each sends a FORGET.
    os.statvfs(mount)
    assert len(os.listdir(f"/proc/{source.server.pid}/fd")) < 50


# ---------------------------------------------------------------------- mounting


@in_lab()
def test_mount_as_the_table_shows_it(node: DemoNode) -> None:
    source = node.add_source("one", options=ServerOptions(fs_type="fuse.x", source="name"))
    line = mount_line(source.path)
    assert line[5] == "rw,nosuid,nodev,relatime"
    options = "rw,user_id=0,group_id=0,default_permissions,allow_other"
    assert line[line.index("-") + 1 :] == ["fuse.x", "name", options]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (ServerOptions(fs_type="fuse"), "rw,user_id=0,group_id=0,default_permissions,allow_other"),
        (ServerOptions(allows_other=False), "rw,user_id=0,group_id=0,default_permissions"),
        (
            ServerOptions(allows_other=False, user_id=1000),
            "rw,user_id=1000,group_id=1000,default_permissions",
        ),
        (
            ServerOptions(is_read_only=True),
            "ro,user_id=0,group_id=0,default_permissions,allow_other",
        ),
    ],
)
@in_lab()
def test_mount_options(node: DemoNode, options: ServerOptions, wanted: str) -> None:
    source = node.add_source("one", options=options)
    assert mount_line(source.path)[-1] == wanted
    if options.is_read_only:
        assert errno_of((Path(source.path) / "x").touch) == errno.EROFS


@in_lab()
def test_mount_of_another_user_answers_root_by_itself(node: DemoNode) -> None:
    source = node.add_source("one", options=ServerOptions(allows_other=False, user_id=1000))
    source.kill()
    assert os.statvfs(source.path).f_bsize == 0
    assert errno_of(lambda: os.listdir(source.path)) == errno.EACCES


@needs(Feature.FUSE_IDMAP)
@in_lab()
def test_idmap_is_negotiated_or_not(node: DemoNode) -> None:
    space = os.open("/proc/self/ns/user", os.O_RDONLY)
    child = subprocess.Popen(["unshare", "--user", "sleep", "60"])
    try:
        while os.stat(f"/proc/{child.pid}/ns/user").st_ino == os.fstat(space).st_ino:
            pass
        Path(f"/proc/{child.pid}/uid_map").write_text("0 100000 1000")
        Path(f"/proc/{child.pid}/gid_map").write_text("0 100000 1000")
        for allows, wanted in ((True, 0), (False, errno.EINVAL)):
            source = node.add_source(f"{allows}", options=ServerOptions(allows_idmap=allows))
            clone = syscalls.open_tree(syscalls.AT_FDCWD, source.path, syscalls.OPEN_TREE_CLONE)
            fd = os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY)
            with syscalls.closing_fd(clone), syscalls.closing_fd(fd):
                assert errno_of(partial(idmap, clone, fd)) == wanted
    finally:
        os.close(space)
        child.kill()
        child.wait()


@in_lab()
def test_dead_mount_point_is_refused(node: DemoNode) -> None:
    source = node.add_source("one")
    source.kill()
    again = serve("--mount", source.path, "--backing", source.backing)
    assert again.returncode == 1
    assert "Transport endpoint is not connected" in again.stderr
    assert source.unmount() == 1


@pytest.mark.parametrize(
    ("mount", "backing", "wanted"),
    [
        ("{lab}/missing", "{lab}", "No such file or directory"),
        ("{lab}", "{lab}/missing", "No such file or directory"),
        ("/proc/version", "{lab}", "Not a directory"),
    ],
)
@in_lab()
def test_unusable_paths(node: DemoNode, mount: str, backing: str, wanted: str) -> None:
    paths = [text.format(lab=node.lab) for text in (mount, backing)]
    run = serve("--mount", paths[0], "--backing", paths[1])
    assert run.returncode == 1
    assert wanted in run.stderr


@in_lab()
def test_ends_when_unmounted(node: DemoNode) -> None:
    source = node.add_source("one")
    assert source.unmount() == 1
    assert source.server.exit_status() == 0


@in_lab()
def test_sigterm_unmounts(node: DemoNode) -> None:
    source = node.add_source("one")
    source.server.terminate()
    assert source.server.exit_status() == 0
    assert not os.path.ismount(source.path)


@in_lab()
def test_sigterm_leaves_a_successor_alone(node: DemoNode) -> None:
    old = node.add_source("one")
    successor = Source("two", old.path, old.backing, ServerOptions())
    successor.start()
    old.server.terminate()
    assert mount_id_at(old.path) == int(mount_line(old.path)[0])
    assert (Path(old.path) / "hello").read_text() == "one"
    successor.kill()
    # The old server's own mount is still below: nobody could have named it.
    assert detach_all(old.path) == 2


@in_lab()
def test_init_delay_holds_back_the_first_answer(node: DemoNode) -> None:
    source = node.add_source("one", options=ServerOptions(init_delay=0.5), starts=False)
    visible = source.start()
    child = subprocess.run(["stat", "-f", source.path], capture_output=True, timeout=30, check=True)
    assert b"fuse" in child.stdout
    assert visible > 0


@in_lab()
def test_answer_delay_keeps_a_caller_waiting(node: DemoNode) -> None:
    """Not timed: a caller of a server that takes an hour to answer is found waiting."""
    source = node.add_source("one", options=ServerOptions(answer_delay=3600.0))
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, b"asking")
        os._exit(errno_of(lambda: os.statvfs(source.path)))
    os.read(read, 6)
    connection = mount_line(source.path)[2].partition(":")[2]
    waiting = Path(f"/sys/fs/fuse/connections/{connection}/waiting")
    while int(waiting.read_text()) == 0:
        pass
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    source.kill()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (errno.ECONNABORTED, errno.ENOTCONN)


@in_lab()
def test_killed_server_means_not_connected(node: DemoNode) -> None:
    mount, _ = fresh(node)
    node.sources["one"].kill()
    for action in (
        lambda: os.statvfs(mount),
        lambda: os.listdir(mount),
        lambda: (mount / "hello").read_text(),
    ):
        assert errno_of(action) in (errno.ENOTCONN, errno.ECONNABORTED)


@in_lab()
def test_a_file_can_be_served(node: DemoNode) -> None:
    backing = Path(node.lab, "file")
    backing.write_text("content")
    target = Path(node.lab, "target")
    target.touch()
    command = [sys.executable, "-m", "fusewatchd.demo.fuse.server"]
    process = subprocess.Popen(
        [*command, "--mount", target, "--backing", backing],
        env=python_environment(),
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"READY mounted_at=")
        assert target.read_text() == "content"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert target.read_text() == ""
