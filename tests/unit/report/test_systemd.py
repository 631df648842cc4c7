"""What arrives at a notification socket.

``sdnotify`` takes the socket from the environment of the process, so each test runs the
notifier in a process of its own, with an environment of its own.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]

PRELUDE = """
import os, socket, sys
from dataclasses import replace
from fusewatchd.model.findings import Gap
from fusewatchd.model.verdicts import Verdict
from fusewatchd.report.systemd import SystemdNotifier
from tests.unit.cycles import bind, cycle, finding, outage
notifier = SystemdNotifier(monotonic=lambda: 25.0, wall=lambda: 1_700_000_000.0)
"""


@pytest.fixture
def notify_socket(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(0)
        yield systemd


def run(code: str, **environ: str) -> str:
    """Run code after the prelude, and return what it prints."""
    variables = {"PATH": os.environ["PATH"], "TZ": "UTC", **environ}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        cwd=REPOSITORY,
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def received(systemd: socket.socket) -> list[str]:
    """Return all messages of a process that has ended."""
    messages: list[str] = []
    for _ in range(10_000):
        try:
            messages.append(systemd.recv(65536).decode())
        except BlockingIOError:
            break
    return messages


def path_of(systemd: socket.socket) -> str:
    return str(systemd.getsockname())


def test_the_life_of_a_service(notify_socket: socket.socket) -> None:
    code = """
notifier.ready()
notifier.reloading()
notifier.ready()
notifier.stopping()
notifier.close()
notifier.stopping()
"""
    run(code, NOTIFY_SOCKET=path_of(notify_socket))
    assert received(notify_socket) == [
        "READY=1",
        "RELOADING=1\nMONOTONIC_USEC=25000000",
        "READY=1",
        "STOPPING=1",
    ]


def test_abstract_socket(tmp_path: Path) -> None:
    name = f"fusewatchd-test-{os.getpid()}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{name}")
        systemd.settimeout(0)
        run("notifier.ready()", NOTIFY_SOCKET=f"@{name}")
        assert received(systemd) == ["READY=1"]


def test_status_line_tells_volumes_trouble_and_the_last_recovery(
    notify_socket: socket.socket,
) -> None:
    run("for c in outage(): notifier.report(c)", NOTIFY_SOCKET=path_of(notify_socket))
    assert received(notify_socket) == [
        "STATUS=2 volumes",
        "STATUS=2 volumes, 2 stale",
        "STATUS=2 volumes",
        "STATUS=2 volumes, last recovery 22:13:15 in 3.1 ms",
    ]


def test_status_is_utf8_one_line_and_names_gaps(notify_socket: socket.socket) -> None:
    code = """
notifier.status("läuft…")
notifier.status("läuft…")
notifier.status("a\\nWATCHDOG=trigger")
notifier.report(cycle(gaps=[Gap("namespaces", "no"), Gap("kubelet", "no")]))
"""
    run(code, NOTIFY_SOCKET=path_of(notify_socket))
    assert received(notify_socket) == [
        "STATUS=läuft…",
        "STATUS=a\\x0aWATCHDOG=trigger",
        "STATUS=0 volumes, cannot see: kubelet namespaces",
    ]


@pytest.mark.parametrize(
    ("watchdog", "kicks"),
    [
        ({"WATCHDOG_USEC": "8000000"}, 5),
        ({"WATCHDOG_USEC": "8000000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "0"}, 0),
        ({"WATCHDOG_USEC": "often"}, 0),
        ({}, 0),
    ],
)
def test_watchdog_hears_of_completed_cycles_at_a_quarter_of_its_limit(
    notify_socket: socket.socket, watchdog: dict[str, str], kicks: int
) -> None:
    # Cycles end at 0.001, 0.501 … 9.501; a quarter of eight seconds is four of them.
    code = "for n in range(20): notifier.report(cycle(at=n / 2))"
    run(code, NOTIFY_SOCKET=path_of(notify_socket), **watchdog)
    assert received(notify_socket).count("WATCHDOG=1") == kicks


def test_own_pid_in_the_environment_counts(notify_socket: socket.socket) -> None:
    code = """
os.environ["WATCHDOG_PID"] = str(os.getpid())
own = SystemdNotifier()
print(own.watchdog_seconds)
"""
    out = run(code, NOTIFY_SOCKET=path_of(notify_socket), WATCHDOG_USEC="30000000")
    assert out == "30.0\n"


def test_without_systemd_nothing_happens() -> None:
    code = """
notifier.ready()
for c in outage(): notifier.report(c)
notifier.close()
print(notifier.watchdog_seconds)
"""
    assert run(code) == "None\n"


def test_a_socket_that_cannot_be_reached_is_an_error_at_the_start(tmp_path: Path) -> None:
    code = f"""
os.environ["NOTIFY_SOCKET"] = {str(tmp_path / "nobody")!r}
try:
    SystemdNotifier()
except OSError as exc:
    print(type(exc).__name__)
"""
    assert run(code) == "FileNotFoundError\n"


def test_a_full_socket_is_not_waited_for_and_a_new_one_is_found(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    code = f"""
path = {path!r}
def listen():
    systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    systemd.bind(path)
    systemd.settimeout(10)
    return systemd
first = listen()
os.environ["NOTIFY_SOCKET"] = path
own = SystemdNotifier()
for n in range(5000):
    own.status(f"line {{n}}")
print(first.recv(100).decode())
first.close()
os.unlink(path)
own.ready()
second = listen()
own.stopping()
print(second.recv(100).decode())
"""
    assert run(code) == "STATUS=line 0\nSTOPPING=1\n"
