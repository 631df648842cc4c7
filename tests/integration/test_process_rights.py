"""What each process of the daemon may do, read from the kernel and tried."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import urllib.request
from collections.abc import Mapping

import pytest

from fusewatchd.daemon.front.user import front_user
from fusewatchd.demo.cluster.loopback import free_port
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.world import PrivateWorld
from fusewatchd.demo.timeouts import patient
from fusewatchd.linux import seccomp
from fusewatchd.linux.syscall_numbers import number_of
from fusewatchd.workers.channel import Channel
from fusewatchd.workers.fork_server import Credentials, ForkServer, WorkerKind
from fusewatchd.workers.privileges import PRIVILEGES, Kind
from tests.integration.test_fork_server import ask
from tests.lab import in_lab, pod_with_container, run_in_world

pytestmark = pytest.mark.kernel

_libc = ctypes.CDLL(None, use_errno=True)
USERS = {Kind.USER_PROBE: 1000, Kind.FRONT: (front_user().credentials or Credentials(0, 0)).uid}
ROOTS_KINDS = tuple(kind for kind in Kind if kind is not Kind.USER_PROBE)
WORKERS = tuple(kind for kind in Kind if kind not in (Kind.CORE, Kind.FORK_SERVER))


def errno_of(number: int) -> int:
    """Make a call with arguments that no call takes."""
    ctypes.set_errno(0)
    done = _libc.syscall(*map(ctypes.c_long, (number, *(-1,) * 6)))
    return ctypes.get_errno() if done < 0 else 0


def try_calls(channel: Channel) -> None:
    """Answer with the error of each system call that is asked for."""
    channel.serve(lambda numbers: channel.send([errno_of(number) for number in numbers]))


def status_of(pid: int | str) -> dict[str, str]:
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return status_in(file.read())


def status_in(text: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text.splitlines() if line)


def kind_of(status: dict[str, str], daemon: int) -> Kind:
    """Return which kind a process of the daemon is of; its name says the first letters."""
    if int(status["Pid"]) == daemon:
        return Kind.CORE
    name = status["Name"].removeprefix("fusewatchd-")
    (kind,) = (k for k in ROOTS_KINDS if k.value.startswith(name))
    is_user = status["Uid"].split()[0] != "0"
    return Kind.USER_PROBE if kind is Kind.PROBE and is_user else kind


def bits_of(kind: Kind) -> int:
    return sum(1 << bit for bit in PRIVILEGES[kind].keeps)


def require_rights(kind: Kind, status: dict[str, str], users: Mapping[Kind, int] = USERS) -> None:
    kept = bits_of(kind)
    assert (int(status["CapEff"], 16), int(status["CapPrm"], 16)) == (kept, kept), kind
    assert (int(status["CapInh"], 16), int(status["CapAmb"], 16)) == (0, 0), kind
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), kind
    user = users.get(kind, 0)
    assert status["Uid"].split() == [str(user)] * 4, kind


def test_there_are_filters_here() -> None:
    assert seccomp.problem() == ""


@pytest.mark.parametrize("kind", WORKERS)
def test_a_worker_has_the_rights_of_its_kind_and_denied_calls_fail(kind: Kind) -> None:
    denied = {call for call, only in PRIVILEGES[kind].denied().items() if only is None}
    denied |= PRIVILEGES[Kind.FORK_SERVER].denied().keys()
    machine = platform.machine()
    numbers = {call: number_of(call, machine) for call in sorted(denied)}
    known = {call: number for call, number in numbers.items() if number is not None}

    def body(world: PrivateWorld) -> None:
        server = ForkServer.start({"any": WorkerKind(try_calls, PRIVILEGES[kind])})
        uid = USERS.get(kind, 0)
        worker = server.spawn("any", Credentials(uid, uid) if uid else None)
        found = ask(worker, list(known.values()))
        expected = {call: errno.ENOSYS if call == "clone3" else errno.EPERM for call in known}
        assert dict(zip(known, found, strict=True)) == expected
        require_rights(kind, status_of(worker.pid))
        require_rights(Kind.FORK_SERVER, status_of(server.pid))
        server.close()

    run_in_world(body)


def processes_of(daemon: int) -> list[dict[str, str]]:
    """Return the status of the daemon and of each process below it."""
    found = [status_of(daemon)]
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        status = status_of(pid)
        if status["PPid"] in {each["Pid"] for each in found}:
            found.append(status)
    return found


@in_lab()
def test_every_process_of_a_running_daemon_has_the_rights_of_its_kind(node: DemoNode) -> None:
    source = node.add_source("data")
    pod_with_container(node, source, "web")
    address = f"127.0.0.1:{free_port()}"
    with DaemonProcess(node, settings={"web.listen_address": address}) as daemon:
        daemon.wait_until_watching(2)
        with urllib.request.urlopen(f"http://{address}/healthz", timeout=patient(30)):
            found = processes_of(daemon.pid)
        kinds = [kind_of(status, daemon.pid) for status in found]
        for kind, status in zip(kinds, found, strict=True):
            require_rights(kind, status)
        for thread in os.listdir(f"/proc/{daemon.pid}/task"):
            require_rights(Kind.CORE, status_of(f"{daemon.pid}/task/{thread}"))
        wanted = {Kind.CORE, Kind.FORK_SERVER, Kind.MOUNT, Kind.PROBE, Kind.SCAN, Kind.FRONT}
        assert set(kinds) >= wanted
