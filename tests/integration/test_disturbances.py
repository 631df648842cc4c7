"""Recovery while everything around it goes wrong."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from fusewatchd.demo.cluster.loopback import free_port
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodVolume
from fusewatchd.demo.node.sources import ServerOptions, Source
from fusewatchd.linux import syscalls
from tests.lab import WAYS, in_lab, pod_with_container

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

DEADLINE = 10.0
ATTRIBUTES_EXPIRE = 1.2
INOTIFY_QUEUE = "/proc/sys/fs/inotify/max_queued_events"


def umount_at_the_worst_moment(path: str) -> None:
    """Unmount a source that is being copied just now.

    For the length of the one call that copies it there is a reference, as there is in any
    other program that opens the path.  A millisecond later there must be none.
    """
    try:
        syscalls.umount2(path, 0)
    except OSError as exc:
        assert exc.errno == errno.EBUSY
        time.sleep(0.001)
        syscalls.umount2(path, 0)


def crash(source: Source) -> None:
    source.kill()
    source.restart()


def lines_of(path: str = "/proc/self/mountinfo") -> list[str]:
    with open(path) as file:
        return file.read().splitlines()


@contextmanager
def repeating(step: Callable[[], object]) -> Iterator[list[int]]:
    """Run ``step`` again and again in a thread; the list's length says how often."""
    done: list[int] = []
    failures: list[Exception] = []
    is_over = threading.Event()

    def run() -> None:
        while not is_over.is_set() and not failures:
            try:
                step()
            except (OSError, AssertionError, subprocess.SubprocessError) as exc:
                failures.append(exc)
            done.append(1)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield done
    finally:
        is_over.set()
        thread.join()
    assert not failures, failures


@WAYS
@in_lab(timeout=110)
def test_killed_in_the_middle_of_a_recovery_and_started_again(node: DemoNode, way: str) -> None:
    """A driver of which nothing is known but lineage, learned before the crash."""
    source = node.add_source("one")
    containers = [pod_with_container(node, source, f"p{i}")[1] for i in range(20)]
    cut_short = 0
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(40)
        for number in range(4):
            time.sleep(1.5)  # until lineage is on the disk
            crash(source)
            time.sleep(0.008 * number)
            daemon.kill()
            stale = [c for c in containers if not _is_readable(c)]
            cut_short += len(stale) > 0
            daemon.start()
            for container in containers:
                container.wait_until_readable("/data/hello", DEADLINE)
            daemon.wait_until_watching(40)
    assert cut_short


def _is_readable(container: Container) -> bool:
    try:
        return container.read("/data/hello") == "one"
    except OSError:
        return False


@in_lab(timeout=60)
def test_started_after_the_server_died(node: DemoNode) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "p")
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(2)
        time.sleep(0.7)
        daemon.stop()
        source.kill()
        daemon.start()
        source.restart()
        container.wait_until_readable("/data/hello", DEADLINE)


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"version": 99}', b'{"version": 1, "boot_id": "other"}', b"[" * 100000]
)
@in_lab(timeout=60)
def test_a_state_file_that_cannot_be_believed_is_left_out(node: DemoNode, content: bytes) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "p")
    daemon = DaemonProcess(node)
    os.makedirs(daemon.values["state_dir"])
    with open(os.path.join(daemon.values["state_dir"], "state.json"), "wb") as file:
        file.write(content)
    with daemon:
        daemon.wait_until_watching(2)
        assert "the state file is left out" in daemon.log()
        crash(source)
        container.wait_until_readable("/data/hello", DEADLINE)


@WAYS
@in_lab(timeout=90)
def test_nothing_is_ever_busy(node: DemoNode, way: str) -> None:
    """A plain umount of a source or of a target works at any moment of a recovery."""
    source = node.add_source("one")
    other = os.path.join(node.lab, "other")
    os.mkdir(other)
    settings = {"probe.interval_seconds": "0.05", "look_seconds": "0.1"}

    def bind_and_unmount() -> None:
        syscalls.mount(source.path, other, None, syscalls.MS_BIND)
        done = subprocess.run(["umount", other], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def publish_and_unmount() -> None:
        pod = node.add_pod("guest", [PodVolume("w", source)], [])
        target = pod.volume_path("w")
        while any(f" {target} " in line for line in lines_of()):
            done = subprocess.run(["umount", target], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        node.remove_pod(pod)

    with DaemonProcess(node, way=way, settings=settings) as daemon:
        _, container = pod_with_container(node, source, "p")
        daemon.wait_until_watching(2)
        for step in (bind_and_unmount, publish_and_unmount):
            with repeating(step) as done:
                time.sleep(2.0)
            assert len(done) > 20
        for _ in range(10):
            # The new source itself: a driver may think better of it at once.
            source.kill()
            source.unmount()
            source.start()
            umount_at_the_worst_moment(source.path)
            source.server.kill()
            source.start()
            container.wait_until_readable("/data/hello", DEADLINE)


@in_lab(timeout=60)
def test_a_dead_mount_of_a_user_is_found_stale(node: DemoNode) -> None:
    """Where root may not look the kernel answers root's statfs by itself, dead or alive."""
    options = ServerOptions(user_id=1000, allows_other=False)
    source = node.add_source("one", options=options)
    pod = node.add_pod("p", [PodVolume("v", source)], [])
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(1)
        source.kill()
        os.statvfs(pod.volume_path("v"))  # or nothing is tested
        daemon.wait_for(lambda d: [b["verdict"] for b in d["binds"]] == ["stale"], DEADLINE)
        source.restart()
        daemon.wait_until_watching(1)


@in_lab(timeout=90)
def test_a_hung_server_is_named_and_left_alone(node: DemoNode) -> None:
    hung, other = node.add_source("hung"), node.add_source("other")
    hung_pod = node.add_pod("p1", [PodVolume("v", hung)], [])
    _, container = pod_with_container(node, other, "p2")
    settings = {
        "probe.interval_seconds": "0.2",
        "probe.deadline_seconds": "0.3",
        "hung.after_seconds": "0.6",
    }
    with DaemonProcess(node, settings=settings) as daemon:
        daemon.wait_until_watching(3)
        target = hung_pod.volume_path("v")
        before = [line for line in lines_of() if target in line]
        hung.pause()
        document = daemon.wait_for(lambda d: d["totals"]["verdicts"]["hung"] == 1)
        (bind,) = [b for b in document["binds"] if b["verdict"] == "hung"]
        assert bind["mount_point"] == target
        assert "waiting" in bind["evidence"]
        cycle = document["cycle"]
        for _ in range(3):
            crash(other)
            container.wait_until_readable("/data/hello", DEADLINE)
        assert daemon.status()["cycle"] > cycle + 3
        assert [line for line in lines_of() if target in line] == before
        daemon.stop(timeout=5)
        daemon.start()
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["hung"] == 1)
        hung.resume()
        daemon.wait_until_watching(3)


def cycles_of_a_second(daemon: DaemonProcess) -> int:
    before = daemon.status()["cycle"]
    time.sleep(1.0)
    return int(daemon.status()["cycle"] - before)


MOST_IDLE_CYCLES = 100
"""A loop that finds something due that nobody does makes thousands of them."""


@in_lab(timeout=60)
def test_a_hung_server_that_is_asked_first_holds_up_no_other_question(node: DemoNode) -> None:
    hung, others = node.add_source("hung"), [node.add_source(f"other{n}") for n in range(3)]
    hung_pod = node.add_pod("p", [PodVolume("v", hung)], [])
    containers = [pod_with_container(node, other, f"p{other.name}")[1] for other in others]
    hung.pause()
    with DaemonProcess(node, settings={"probe.interval_seconds": "3600"}) as daemon:
        daemon.wait_until_watching(6)
        assert cycles_of_a_second(daemon) < MOST_IDLE_CYCLES
        crash(others[0])
        containers[0].wait_until_readable("/data/hello", DEADLINE)
        hung.resume()
        daemon.wait_until_watching(7)
        assert hung_pod.volume_path("v") in str(daemon.status()["binds"])


@in_lab(timeout=60)
def test_sockets_that_are_there_before_the_daemon(node: DemoNode) -> None:
    """One server listens; another was killed and left its socket behind."""
    listening, left = (os.path.join(node.lab, name) for name in ("one.sock", "two.sock"))
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as dead:
        server.bind(listening)
        server.listen()
        server.settimeout(DEADLINE)
        dead.bind(left)
        dead.close()
        with DaemonProcess(node, settings={"sockets": f"[{listening}, {left}]"}) as daemon:
            held, _ = server.accept()
            held.close()
            assert cycles_of_a_second(daemon) < MOST_IDLE_CYCLES


def pid_of_worker(name: str) -> int:
    """Return the newest process with this name; nobody else's are in the lab's /proc."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{pid}/comm") as file:
            if file.read().strip() == name:
                found.append(int(pid))
    return max(found)


@in_lab(timeout=60)
def test_a_walk_through_proc_that_does_not_end_is_given_up(node: DemoNode) -> None:
    source = node.add_source("one")
    with DaemonProcess(node, settings={"look_seconds": "0.5"}) as daemon:
        daemon.wait_until_watching(0)
        first = pid_of_worker("fusewatchd-scan")
        os.kill(first, signal.SIGSTOP)
        daemon.wait_for(lambda _: "the walk through /proc did not end" in daemon.log(), 30.0)
        _, container = pod_with_container(node, source, "p")
        daemon.wait_until_watching(2, DEADLINE)
        assert pid_of_worker("fusewatchd-scan") != first
        crash(source)
        container.wait_until_readable("/data/hello", DEADLINE)


@in_lab(timeout=110)
def test_an_overflow_of_inotify_means_a_full_look(node: DemoNode) -> None:
    source = node.add_source("one")
    with open(INOTIFY_QUEUE) as file:
        count = int(file.read()) + 500
    settings = {"web.listen_address": f"127.0.0.1:{free_port()}"}
    with DaemonProcess(node, settings=settings) as daemon:
        daemon.wait_until_watching(0)
        os.kill(daemon.pid, signal.SIGSTOP)
        storm = os.path.join(node.pods_directory, "storm")
        for _ in range(count // 2 + 1):
            os.mkdir(storm)
            os.rmdir(storm)
        _, container = pod_with_container(node, source, "p")
        os.kill(daemon.pid, signal.SIGCONT)
        daemon.wait_until_watching(2)
        crash(source)
        container.wait_until_readable("/data/hello", DEADLINE)
        page = subprocess.run(
            ["curl", "-sf", f"http://{settings['web.listen_address']}/metrics"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    (line,) = [x for x in page.splitlines() if x.startswith("fusewatchd_inotify_overflows_total ")]
    assert float(line.split()[1]) >= 1


@WAYS
@in_lab(timeout=90)
def test_a_mount_table_that_never_rests(node: DemoNode, way: str) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "p")
    noise = os.path.join(node.lab, "noise")
    os.mkdir(noise)

    def change() -> None:
        syscalls.mount("noise", noise, "tmpfs", 0, "size=4k")
        time.sleep(0.0005)
        syscalls.umount2(noise, syscalls.MNT_DETACH)
        time.sleep(0.0005)

    with DaemonProcess(node, way=way) as daemon:
        first = daemon.wait_until_watching(2)["cycle"]
        with repeating(change) as done:
            for _ in range(12):
                time.sleep(0.8)
                crash(source)
                container.wait_until_readable("/data/hello", DEADLINE)
        document = daemon.wait_until_watching(2)
        assert len(done) > 1000
        # Every change alone would be a cycle of its own.
        assert document["cycle"] - first < len(done)
