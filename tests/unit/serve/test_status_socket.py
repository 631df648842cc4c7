"""The status socket over real connections: who may ask, and what unfriendly clients can do."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fusewatchd.demo.environment import python_environment
from fusewatchd.errors import ConfigError, ParseError
from fusewatchd.serve.status_socket import MAX_CLIENTS, NAME, StatusSocket, ask
from fusewatchd.state.runtime_dir import GROUP_FILE

PATIENCE = 20.0
UNIT = Path(__file__).parents[3] / "systemd" / "fusewatchd.service"


def a_group() -> tuple[str, int]:
    """A local group that is not root's."""
    for line in Path(GROUP_FILE).read_text().splitlines():
        name, _, gid, _ = line.split(":")
        if gid not in ("0", "65534"):
            return name, int(gid)
    raise AssertionError("no group but root's")


@contextmanager
def serving(directory: Path, document: Callable[[], Any] = dict) -> Iterator[StatusSocket]:
    server = StatusSocket(str(directory), document)
    with closing(server):
        server.start()
        yield server


def connect(directory: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(directory / NAME))
    client.settimeout(PATIENCE)
    return client


def read_all(client: socket.socket) -> bytes:
    received = b""
    while data := client.recv(65536):
        received += data
    return received


def asked_as(directory: Path, uid: int, gid: int, groups: tuple[int, ...] = ()) -> str:
    """Ask as somebody else; return what came back, or the name of the error."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            answer = repr(ask(str(directory)))
        except (OSError, ParseError) as exc:
            answer = type(exc).__name__
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        answer = file.read()
    os.waitpid(pid, 0)
    return answer


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A runtime directory as systemd makes it, where everybody gets as far as its door."""
    for parent in tmp_path.parents:
        if str(parent).startswith("/tmp/") and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    tmp_path.chmod(0o711)
    made = tmp_path / "run"
    made.mkdir()
    made.chmod(0o750)
    yield made


# --------------------------------------------------------------------------- document


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_the_whole_document_arrives(tmp_path: Path, size: int) -> None:
    with serving(tmp_path, lambda: {"text": "x" * size}):
        for _ in range(3):
            assert ask(str(tmp_path)) == {"text": "x" * size}


def test_a_socket_that_a_killed_daemon_left_is_taken_over(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / NAME))
    left.close()
    with serving(tmp_path, lambda: {"is": "new"}):
        assert ask(str(tmp_path)) == {"is": "new"}
    assert not os.path.exists(tmp_path / NAME)


def test_nobody_is_answered_before_the_start(tmp_path: Path) -> None:
    calls: list[int] = []
    server = StatusSocket(str(tmp_path), lambda: calls.append(1))
    with closing(server), connect(tmp_path) as client:
        time.sleep(0.1)
        assert calls == []
        server.start()
        assert read_all(client) == b"null"


# ------------------------------------------------------------------------ who may ask


@pytest.mark.root
def test_only_root_may_ask(directory: Path) -> None:
    with serving(directory):
        assert stat.S_IMODE(os.stat(directory / NAME).st_mode) == 0o600
        assert asked_as(directory, 0, 0) == "{}"
        assert asked_as(directory, 65534, 65534) == "PermissionError"


@pytest.mark.root
@pytest.mark.parametrize("mode", [0o750, 0o700, 0o755])
def test_a_group_may_ask_too(directory: Path, mode: int) -> None:
    name, gid = a_group()
    directory.chmod(mode)
    groups = os.getgroups()
    with serving(directory) as server:
        server.let_in(name)
        assert os.getgroups() == groups
        found = os.stat(directory / NAME)
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, gid, 0o660)
        assert asked_as(directory, 65534, 65534, (gid,)) == "{}"
        assert asked_as(directory, 65534, gid) == "{}"
        assert asked_as(directory, 65534, 65534) == "PermissionError"
        assert asked_as(directory, 0, 0) == "{}"
    others = stat.S_IMODE(os.stat(directory).st_mode) & 0o007
    assert others == mode & 0o007


@pytest.mark.root
def test_a_directory_that_everybody_can_enter_stays_as_it_is(directory: Path) -> None:
    directory.chmod(0o711)
    with serving(directory) as server:
        server.let_in(a_group()[0])
        found = os.stat(directory)
        assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 0o711)


@pytest.mark.root
@pytest.mark.parametrize("is_with_group", [False, True])
def test_a_mode_that_somebody_changed_lets_nobody_in(directory: Path, is_with_group: bool) -> None:
    name, gid = a_group()
    with serving(directory) as server:
        if is_with_group:
            server.let_in(name)
        directory.chmod(0o777)
        (directory / NAME).chmod(0o666)
        assert asked_as(directory, 65534, 65534) == "ParseError"
        allowed = "{}" if is_with_group else "ParseError"
        assert asked_as(directory, 65534, 65534, (gid,)) == allowed
        assert asked_as(directory, 0, 0) == "{}"


def test_an_unknown_group_is_said_and_lets_nobody_in(directory: Path) -> None:
    with serving(directory) as server:
        with pytest.raises(ConfigError, match="no group 'nobody-has-this'"):
            server.let_in("nobody-has-this")
        assert stat.S_IMODE(os.stat(directory / NAME).st_mode) == 0o600


@pytest.mark.root
def test_a_group_is_let_in_with_the_rights_of_the_unit_alone(directory: Path) -> None:
    (line,) = (ln for ln in UNIT.read_text().splitlines() if ln.startswith("CapabilityBounding"))
    kept = ["+" + word.removeprefix("CAP_").lower() for word in line.partition("=")[2].split()]
    code = (
        "import os, sys\n"
        "from fusewatchd.serve.status_socket import StatusSocket\n"
        f"StatusSocket({str(directory)!r}, dict).let_in({a_group()[0]!r})\n"
        "status = open('/proc/self/status').read()\n"
        "print([ln.split()[1] for ln in status.splitlines() if ln.startswith('CapEff')][0])\n"
    )
    limit = ["setpriv", "--bounding-set", ",".join(["-all", *kept]), "--no-new-privs", "--"]
    done = subprocess.run(
        [*limit, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=python_environment(),
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout, 16).bit_count() == len(kept)
    assert os.stat(directory / NAME).st_gid == a_group()[1]
    assert os.stat(directory).st_gid == a_group()[1]


# ---------------------------------------------------------------------------- crowds


def test_clients_that_do_not_read_hold_nobody_up(tmp_path: Path) -> None:
    with serving(tmp_path, lambda: {"text": "x" * 2_000_000}), ExitStack() as idle:
        before = threading.active_count()
        for _ in range(3 * MAX_CLIENTS):
            idle.enter_context(connect(tmp_path))
        assert len(ask(str(tmp_path))["text"]) == 2_000_000
        assert threading.active_count() == before


def test_megabytes_of_garbage_are_no_request(tmp_path: Path) -> None:
    with serving(tmp_path, lambda: {"a": 1}), connect(tmp_path) as client:
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 8 << 20:
                sent += client.send(b"\xff\x00{[" * 16384)
        assert ask(str(tmp_path)) == {"a": 1}


def test_a_thousand_clients_leave_neither_thread_nor_descriptor(tmp_path: Path) -> None:
    with serving(tmp_path, lambda: {"a": 1}):
        assert ask(str(tmp_path)) == {"a": 1}
        threads = threading.active_count()
        before = len(os.listdir("/proc/self/fd"))
        for number in range(1000):
            client = connect(tmp_path)
            if number % 3 == 0:
                client.send(b"x" * (number % 7))
            client.close()
        assert ask(str(tmp_path)) == {"a": 1}
        assert threading.active_count() == threads
        end = time.monotonic() + PATIENCE
        while len(os.listdir("/proc/self/fd")) > before:
            assert time.monotonic() < end, "descriptors stay open"
            time.sleep(0.02)
