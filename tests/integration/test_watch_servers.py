"""Exits by pidfd, hang-ups by socket, and the counters of the FUSE control file system."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fusewatchd.demo.node.world import PrivateWorld
from fusewatchd.linux import fusectl, syscalls
from fusewatchd.linux.inotify import UNAVAILABLE
from fusewatchd.linux.procfs import process_start_time
from fusewatchd.model.mounts import Device
from fusewatchd.model.servers import FuseServer
from fusewatchd.observe.servers import pidfd, sockets
from fusewatchd.observe.servers.pidfd import ServerWatch
from fusewatchd.observe.servers.sockets import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, SocketWatch
from tests.lab import run_in_world

SLEEPER = [sys.executable, "-c", "import sys; sys.stdin.read()"]
DEVICE = Device(0, 77)


@contextlib.contextmanager
def running() -> Iterator[tuple[subprocess.Popen[bytes], FuseServer]]:
    with subprocess.Popen(SLEEPER, stdin=subprocess.PIPE) as process:
        start_time = process_start_time(process.pid)
        assert start_time is not None
        try:
            yield process, FuseServer(process.pid, start_time, (DEVICE,))
        finally:
            process.kill()


class Registrations:
    def __init__(self) -> None:
        self.fds: set[int] = set()

    def register(self, fd: int) -> None:
        assert fd not in self.fds
        self.fds.add(fd)

    def unregister(self, fd: int) -> None:
        os.fstat(fd)  # not closed before it is taken out of the selector
        self.fds.remove(fd)


@pytest.fixture
def registrations() -> Registrations:
    return Registrations()


@pytest.fixture
def watch(registrations: Registrations) -> Iterator[ServerWatch]:
    made = ServerWatch(registrations.register, registrations.unregister)
    yield made
    made.close()
    assert not registrations.fds


# ---------------------------------------------------------------------------- pidfd


def test_an_exit_wakes_and_is_told_once(watch: ServerWatch, registrations: Registrations) -> None:
    with running() as (process, server), running() as (_, other):
        watch.update({DEVICE: (server,), Device(0, 78): (other,)})
        assert set(watch.filenos()) == registrations.fds
        assert len(registrations.fds) == 2
        assert watch.exited() == []
        os.kill(process.pid, signal.SIGKILL)
        assert select.select(watch.filenos(), [], [], 20)[0]
        # Not waited for: a zombie has exited all the same.
        assert watch.exited() == [server]
        assert watch.exited() == []
        watch.update({DEVICE: (server,), Device(0, 78): (other,)})
        assert watch.exited() == []
        assert len(watch.filenos()) == 1


def test_servers_no_longer_named_are_let_go(
    watch: ServerWatch, registrations: Registrations
) -> None:
    with running() as (process, server):
        watch.update({DEVICE: (server,)})
        (fd,) = watch.filenos()
        watch.update({})
        assert not registrations.fds
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        process.kill()
        process.wait()
        assert watch.exited() == []


def test_one_process_that_serves_two_devices_has_one_descriptor(watch: ServerWatch) -> None:
    with running() as (_, server):
        watch.update({DEVICE: (server,), Device(0, 78): (server,)})
        assert len(watch.filenos()) == 1
        before = watch.filenos()
        watch.update({DEVICE: (server,)})
        assert watch.filenos() == before


def test_one_that_nothing_can_be_opened_of_has_not_ended(
    watch: ServerWatch, registrations: Registrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), f"/proc/{pid}")

    with running() as (process, server):
        with monkeypatch.context() as patch:
            patch.setattr(pidfd, "process_start_time", fail)
            watch.update({DEVICE: (server,)})
            assert watch.exited() == []
            assert watch.unwatched == (server,)
            assert not registrations.fds
        watch.update({DEVICE: (server,)})
        process.kill()
        assert select.select(watch.filenos(), [], [], 20)[0]
        assert watch.exited() == [server]


def test_a_server_that_is_gone_already_counts_as_exited(watch: ServerWatch) -> None:
    with running() as (process, server):
        process.kill()
        process.wait()
        watch.update({DEVICE: (server,)})
        assert watch.exited() == [server]
        watch.update({DEVICE: (server,)})
        assert watch.exited() == []
        assert watch.unwatched == ()


def test_a_pid_that_is_another_process_now_counts_as_exited(watch: ServerWatch) -> None:
    with running() as (_, server):
        former = replace(server, start_time=server.start_time - 1)
        watch.update({DEVICE: (former,)})
        assert watch.exited() == [former]
        watch.update({DEVICE: (former, server)})
        assert watch.exited() == []
        assert len(watch.filenos()) == 1


def test_a_server_that_cannot_be_watched_is_named(watch: ServerWatch) -> None:
    nonsense = FuseServer(-1, 5, (DEVICE,))  # EINVAL stands for every other refusal
    watch.update({DEVICE: (nonsense,)})
    assert watch.exited() == []
    assert watch.unwatched == (nonsense,)


def test_a_name_with_brackets_hides_no_start_time() -> None:
    child = os.fork()
    if child == 0:
        try:
            Path("/proc/self/comm").write_text(") R 1 2 (x")
            signal.pause()
        finally:
            os._exit(0)
    try:
        plain = process_start_time(os.getpid())
        odd = process_start_time(child)
        assert odd is not None and plain is not None
        assert odd >= plain
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# --------------------------------------------------------------------------- fusectl


@pytest.mark.parametrize(
    ("device", "number"), [(Device(0, 133), 133), (Device(8, 1), 8388609), (Device(0, 1 << 19), 1 << 19)]
)  # fmt: skip
def test_connection_number(device: Device, number: int) -> None:
    assert device.connection == number


@pytest.mark.parametrize(
    ("content", "expected"), [(b"0\n", 0), (b"12\n", 12), (b"", None), (b"x\n", None)]
)
def test_waiting_reads_the_counter(tmp_path: Path, content: bytes, expected: int | None) -> None:
    (tmp_path / "133").mkdir()
    (tmp_path / "133" / "waiting").write_bytes(content)
    assert fusectl.waiting(Device(0, 133), str(tmp_path)) == expected
    assert fusectl.waiting(Device(0, 134), str(tmp_path)) is None


def test_a_directory_without_the_file_system_is_not_available(tmp_path: Path) -> None:
    assert not fusectl.is_available(str(tmp_path))
    assert not fusectl.is_available(str(tmp_path / "nothing"))


def test_waiting_of_a_connection_that_nobody_serves() -> None:
    def body(world: PrivateWorld) -> list[object]:
        if world.fusectl_problem:
            pytest.skip(f"no fusectl here: {world.fusectl_problem}")
        target = os.path.join(world.lab, "f")
        os.mkdir(target)
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
        syscalls.mount("src", target, "fuse", 0, options)
        with open("/proc/self/mountinfo", encoding="utf-8") as file:
            number = next(line.split()[2] for line in file if f" {target} " in line)
        device = Device(*map(int, number.split(":")))
        unanswered = fusectl.waiting(device)  # the kernel's own INIT request
        os.close(fd)
        syscalls.umount2(target)
        return [fusectl.is_available(), unanswered, fusectl.waiting(device)]

    assert run_in_world(body) == [True, 1, None]


# --------------------------------------------------------------------------- sockets


def listen(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, kind)
    made.bind(str(path))
    if kind is not socket.SOCK_DGRAM:
        made.listen(4)
    return made


@pytest.fixture
def socket_watch(tmp_path: Path, registrations: Registrations) -> Iterator[SocketWatch]:
    made = SocketWatch(
        [f"{tmp_path}/*.sock", f"{tmp_path}/sub*/server"],
        registrations.register,
        registrations.unregister,
    )
    yield made
    made.close()
    assert not registrations.fds


def wakes(watch: SocketWatch) -> bool:
    return bool(select.select(watch.filenos(), [], [], 20)[0])


def test_a_listener_that_goes_away_hangs_up(
    socket_watch: SocketWatch, tmp_path: Path, registrations: Registrations
) -> None:
    path = str(tmp_path / "a.sock")
    with listen(tmp_path / "a.sock") as listener:
        assert socket_watch.drain(0.0).connected == (path,)
        assert set(socket_watch.filenos()) == registrations.fds
        assert socket_watch.drain(0.0) == sockets.SocketChanges()
        accepted, _ = listener.accept()
        assert socket_watch.drain(0.0) == sockets.SocketChanges()
    accepted.close()
    assert wakes(socket_watch)
    changes = socket_watch.drain(0.0)
    assert changes.hung_up == (path,)
    assert changes.connected == ()
    assert socket_watch.connected == ()


def test_a_listener_that_never_accepted_hangs_up_too(
    socket_watch: SocketWatch, tmp_path: Path
) -> None:
    with listen(tmp_path / "a.sock"):
        assert socket_watch.drain(0.0).connected
    assert wakes(socket_watch)
    assert socket_watch.drain(0.0).hung_up == (str(tmp_path / "a.sock"),)


def test_a_server_that_comes_back_is_connected_at_once(
    socket_watch: SocketWatch, tmp_path: Path
) -> None:
    if UNAVAILABLE:
        pytest.skip(UNAVAILABLE)
    path = tmp_path / "a.sock"
    with listen(path):
        socket_watch.drain(0.0)
    socket_watch.drain(0.0)
    now = 0.0
    for _ in range(5):  # the file of the old one refuses, and is left alone for a while
        due = socket_watch.due_at
        assert due is not None
        now = due
        socket_watch.drain(now)
    path.unlink()
    with listen(path):
        assert wakes(socket_watch)
        assert socket_watch.drain(now).connected == (str(path),)
        assert socket_watch.due_at is None


def test_a_socket_without_a_listener_is_tried_ever_more_rarely(
    socket_watch: SocketWatch, tmp_path: Path
) -> None:
    listen(tmp_path / "a.sock").close()
    waits, now = [], 100.0
    for _ in range(14):
        socket_watch.drain(now)
        due = socket_watch.due_at
        assert due is not None
        assert socket_watch.drain(now) == sockets.SocketChanges()
        assert socket_watch.due_at == due  # nothing is tried before its time
        waits.append(round(due - now, 6))
        now = due
    assert waits[0] == FIRST_RETRY_SECONDS
    assert waits == sorted(waits)
    assert waits[-1] == LAST_RETRY_SECONDS
    (tmp_path / "a.sock").unlink()
    socket_watch.drain(now)
    assert socket_watch.due_at is None


def test_new_directories_are_followed(socket_watch: SocketWatch, tmp_path: Path) -> None:
    if UNAVAILABLE:
        pytest.skip(UNAVAILABLE)
    socket_watch.drain(0.0)
    (tmp_path / "sub1").mkdir()
    assert wakes(socket_watch)
    socket_watch.drain(0.0)
    with listen(tmp_path / "sub1" / "server"):
        assert wakes(socket_watch)
        assert socket_watch.drain(0.0).connected == (str(tmp_path / "sub1" / "server"),)


def test_a_directory_that_is_not_there_yet(tmp_path: Path) -> None:
    if UNAVAILABLE:
        pytest.skip(UNAVAILABLE)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    watch = SocketWatch([f"{tmp_path}/link/deep/er/s.sock"])
    with contextlib.closing(watch):
        watch.drain(0.0)
        for part in ("deep", "deep/er"):
            (tmp_path / "real" / part).mkdir()
            assert wakes(watch)
            watch.drain(0.0)
        with listen(tmp_path / "real/deep/er/s.sock"):
            assert wakes(watch)
            assert watch.drain(0.0).connected == (f"{tmp_path}/link/deep/er/s.sock",)


def test_other_files_and_sockets_are_left_alone(socket_watch: SocketWatch, tmp_path: Path) -> None:
    (tmp_path / "plain.sock").touch()
    (tmp_path / "dir.sock").mkdir()
    (tmp_path / "link.sock").symlink_to("gone")
    with listen(tmp_path / "dgram.sock", socket.SOCK_DGRAM):
        assert socket_watch.drain(0.0) == sockets.SocketChanges()
    assert socket_watch.connected == ()


def test_what_a_server_says_is_thrown_away(socket_watch: SocketWatch, tmp_path: Path) -> None:
    with listen(tmp_path / "a.sock") as listener:
        socket_watch.drain(0.0)
        with listener.accept()[0] as accepted:
            accepted.send(b"x" * 10000)
            assert wakes(socket_watch)
            assert socket_watch.drain(0.0) == sockets.SocketChanges()
            assert not select.select(socket_watch.filenos(), [], [], 0)[0]


def test_a_listener_that_accepts_nobody_blocks_nothing(
    socket_watch: SocketWatch, tmp_path: Path
) -> None:
    with listen(tmp_path / "a.sock") as listener, contextlib.ExitStack() as stack:
        listener.listen(0)
        for _ in range(4):
            client = stack.enter_context(
                socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            )
            with contextlib.suppress(BlockingIOError):
                client.connect(str(tmp_path / "a.sock"))
        assert socket_watch.drain(0.0).connected == ()
        assert socket_watch.due_at == FIRST_RETRY_SECONDS


def test_the_number_of_connections_is_bounded(tmp_path: Path) -> None:
    watch = SocketWatch([f"{tmp_path}/*"])
    with contextlib.closing(watch), contextlib.ExitStack() as stack:
        for number in range(sockets.MAX_SOCKETS + 3):
            stack.enter_context(listen(tmp_path / str(number)))
        watch.drain(0.0)
        assert len(watch.connected) == sockets.MAX_SOCKETS
        assert watch.left_out == 3
