"""Whoever can connect to the daemon cannot hold it up: floods on its port and its socket."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fusewatchd.demo.cluster.loopback import free_port
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodVolume
from fusewatchd.demo.node.sources import Source
from tests.certificates import make_authority, make_certificate
from tests.lab import in_lab, pod_with_container

pytestmark = pytest.mark.kernel

DEADLINE = 20.0
CROWD = 1000
FEW = 8
"""So few that each of them is served as fast as it asks."""

FLOOD = """
import os, resource, socket, sys, time
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
address, what, crowd = sys.argv[1], sys.argv[2], int(sys.argv[3])
payload = {
    "nothing": b"", "drip": b"G", "garbage": os.urandom(1 << 16), "deaf": b"",
    "metrics": b"GET /metrics HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n",
    "guesses": b"GET /metrics HTTP/1.1\\r\\nHost: x\\r\\nAuthorization: Basic YTpi\\r\\n\\r\\n",
    "pipeline": b"GET /healthz HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" * 200,
}[what]
host, _, port = address.rpartition(":")
family, where = (socket.AF_UNIX, address) if "/" in address else (socket.AF_INET, (host, int(port)))
held, turns = {}, 0
print("flooding", flush=True)
while True:
    for place in range(crowd):
        if place not in held:
            fresh = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                fresh.connect(where)
            except BlockingIOError:
                if family == socket.AF_UNIX:
                    fresh.close()
                    continue
            except OSError:
                fresh.close()
                continue
            held[place] = fresh
        try:
            if payload:
                held[place].send(payload)
            if what not in ("deaf", "nothing") and not held[place].recv(1 << 16):
                held.pop(place).close()
        except BlockingIOError:
            pass
        except OSError:
            held.pop(place).close()
        # The crowd comes and goes.
        if (place + turns) % 50 == 0 and place in held:
            held.pop(place).close()
    turns += 1
    time.sleep(0.01 if crowd > 100 else 0)
"""


@contextmanager
def flood(address: str, what: str, crowd: int = CROWD) -> Iterator[None]:
    """A process that keeps this many connections busy, as well as it is let."""
    process = subprocess.Popen(
        [sys.executable, "-c", FLOOD, address, what, str(crowd)],
        stdout=subprocess.PIPE,
        env=python_environment(),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"flooding\n"
        time.sleep(0.5)
        assert process.poll() is None
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def crash(source: Source) -> None:
    source.kill()
    source.restart()


def crash_and_recover(source: Source, container: Container) -> None:
    crash(source)
    container.wait_until_readable("/data/hello", DEADLINE)


def health(address: str) -> int:
    """Status of ``/healthz``; 0: nobody was let through."""
    try:
        with urllib.request.urlopen(f"http://{address}/healthz", timeout=DEADLINE) as page:
            return int(page.status)
    except urllib.error.HTTPError as exc:
        return exc.code
    except OSError:
        return 0


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def processor_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def a_part_of_a_processor(daemon: DaemonProcess) -> Iterator[None]:
    """What spins, or lets a crowd outbid it, takes a whole one."""
    began, used = time.monotonic(), processor_seconds(daemon.pid)
    yield
    time.sleep(max(0.0, began + 2.0 - time.monotonic()))
    assert processor_seconds(daemon.pid) - used < 0.4 * (time.monotonic() - began)


@pytest.mark.parametrize(
    ("what", "crowd"),
    [
        ("nothing", CROWD),
        ("drip", CROWD),
        ("garbage", CROWD),
        ("pipeline", CROWD),
        ("metrics", CROWD),
        ("metrics", FEW),
    ],
)
@pytest.mark.slow
@in_lab(timeout=120)
def test_a_crowd_on_the_metrics_port(node: DemoNode, what: str, crowd: int) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "p")
    address = f"127.0.0.1:{free_port()}"
    with DaemonProcess(node, settings={"web.listen_address": address}) as daemon:
        daemon.wait_until_watching(2)
        assert health(address) == 200
        before = descriptors(daemon.pid), threads(daemon.pid)
        with flood(address, what, crowd), a_part_of_a_processor(daemon):
            for _ in range(3):
                crash_and_recover(source, container)
                assert health(address) in (0, 200)
                # 16 places, and what a recovery takes.
                assert descriptors(daemon.pid) <= before[0] + 32
                assert threads(daemon.pid) <= before[1] + 2
            daemon.wait_until_watching(2)
        assert health(address) == 200


WEB_CONFIG = """
tls_server_config: {cert_file: server.crt, key_file: server.key}
basic_auth_users: {a: $2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi}
"""


@pytest.mark.parametrize(
    ("what", "crowd", "has_tls"),
    [
        ("guesses", CROWD, False),
        ("guesses", FEW, False),
        ("garbage", CROWD, True),
        ("nothing", FEW, True),
    ],
)
@pytest.mark.slow
@in_lab(timeout=120)
def test_a_crowd_that_guesses_passwords_or_speaks_no_tls(
    node: DemoNode, what: str, crowd: int, has_tls: bool
) -> None:
    directory = Path(node.lab)
    authority = make_authority(directory)
    make_certificate(authority, "server", "server", "IP:127.0.0.1")
    (directory / "server.key").chmod(0o600)
    config = directory / "web.yml"
    lines = WEB_CONFIG.strip().splitlines()
    config.write_text(lines[0] if has_tls else lines[1])
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "p")
    address = f"127.0.0.1:{free_port()}"
    settings = {"web.listen_address": address, "web.config_file": str(config)}
    with DaemonProcess(node, settings=settings) as daemon:
        daemon.wait_until_watching(2)
        before = descriptors(daemon.pid), threads(daemon.pid)
        with flood(address, what, crowd), a_part_of_a_processor(daemon):
            for _ in range(3):
                crash_and_recover(source, container)
                assert descriptors(daemon.pid) <= before[0] + 32
                assert threads(daemon.pid) <= before[1] + 3
            daemon.wait_until_watching(2)


@pytest.mark.parametrize("what", ["deaf", "garbage"])
@pytest.mark.slow
@in_lab(timeout=120)
def test_a_crowd_on_the_status_socket(node: DemoNode, what: str) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "p")
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(2)
        before = descriptors(daemon.pid), threads(daemon.pid)
        address = os.path.join(daemon.runtime_dir, "fusewatchd.sock")
        with flood(address, what), a_part_of_a_processor(daemon):
            for _ in range(3):
                crash_and_recover(source, container)
                assert descriptors(daemon.pid) <= before[0] + 24
                assert threads(daemon.pid) <= before[1] + 2
        daemon.wait_until_watching(2)


def workers_of(daemon: DaemonProcess) -> list[int]:
    """The processes that the daemon's fork server has made."""

    def children(pid: int) -> list[int]:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]

    (fork_server,) = children(daemon.pid)
    return children(fork_server)


@pytest.mark.parametrize("as_old_kernel", [False, True])
@pytest.mark.slow
@in_lab(timeout=120)
def test_without_descriptors_and_workers(node: DemoNode, as_old_kernel: bool) -> None:
    """Nothing can be opened for a while, and every worker is killed; then all is well."""
    source, other = node.add_source("one"), node.add_source("two")
    _, container = pod_with_container(node, source, "p")
    node.add_pod("q", [PodVolume("v", other)], [])
    port = free_port()
    address = f"127.0.0.1:{port}"
    settings = {
        "web.listen_address": address,
        "look_seconds": "0.3",
        "probe.interval_seconds": "0.2",
        "probe.deadline_seconds": "0.2",
        "sockets": f"[{node.lab}/*.sock]",
    }
    with DaemonProcess(node, settings=settings, as_old_kernel=as_old_kernel) as daemon:
        daemon.wait_until_watching(3)
        other.pause()  # a probe hangs, and another worker is wanted for the others
        soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        taken = {int(fd) for fd in os.listdir(f"/proc/{daemon.pid}/fd")}
        first_free = min(set(range(len(taken) + 1)) - taken)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (first_free, hard))
        with a_part_of_a_processor(daemon), ExitStack() as held:
            for worker in workers_of(daemon):
                os.kill(worker, signal.SIGKILL)
            crash(source)
            node.add_pod("r", [PodVolume("v", source)], [])
            listener = held.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(f"{node.lab}/new.sock")
            listener.listen()
            for _ in range(50):
                held.enter_context(socket.create_connection(("127.0.0.1", port), DEADLINE))
            status = held.enter_context(socket.socket(socket.AF_UNIX))
            status.connect(os.path.join(daemon.runtime_dir, "fusewatchd.sock"))
            time.sleep(3.0)
            assert daemon.is_running, daemon.log()
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (soft, hard))
        other.resume()
        container.wait_until_readable("/data/hello", DEADLINE)
        daemon.wait_until_watching(4)
        assert health(address) == 200
