"""Nodes that hide the mounts of kubelet and runtime in a mount namespace of their own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node import cgroups
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.timeouts import patient
from fusewatchd.linux import syscalls
from tests.lab import in_lab, pod_with_container, run_fusewatchd

pytestmark = pytest.mark.kernel
DEADLINE = 20.0


def asked(daemon: DaemonProcess, *words: str) -> subprocess.CompletedProcess[str]:
    sets = [word for key, value in daemon.values.items() for word in ("--set", f"{key}={value}")]
    return run_fusewatchd(*words, *sets)


@contextmanager
def hidden() -> Iterator[None]:
    """Act in a namespace that receives what the host mounts and sends nothing back."""
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_SLAVE | syscalls.MS_REC)
    syscalls.mount(None, "/", None, syscalls.MS_SHARED | syscalls.MS_REC)
    try:
        yield
    finally:
        syscalls.setns(home, syscalls.CLONE_NEWNS)
        os.close(home)
        os.chdir("/")


@contextmanager
def holder(
    node: DemoNode,
    cgroup: str = "system.slice/kubelet.service",
    user: int = 0,
    name: str = "sleep",
) -> Iterator[int]:
    """Keep a process in the namespace in which this is called."""
    directory = cgroups.create(f"/{node.world.cgroup}/{cgroup}")
    process = subprocess.Popen([name, "600"], executable="/bin/sleep", user=user)
    if directory is not None:
        with open(f"{directory}/cgroup.procs", "w") as file:
            file.write(str(process.pid))
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@in_lab(timeout=90)
def test_the_daemon_goes_to_the_kubelets_namespace(node: DemoNode) -> None:
    source = node.add_source("one")
    daemon = DaemonProcess(node)
    with ExitStack() as stack:
        with hidden():
            pod, container = pod_with_container(node, source, "web")
            stack.enter_context(holder(node))
        with daemon:
            assert daemon.wait_until_watching(2)["gaps"] == []
            source.kill()
            source.restart()
            container.wait_until_readable("/data/hello", DEADLINE)
            daemon.wait_until_watching(2)
            assert asked(daemon, "explain", pod.volume_path("v")).returncode == 0
            found = asked(daemon, "doctor").stdout
            assert "the kubelet's mounts are seen and changed" in found
        assert asked(daemon, "check").returncode == 0


@pytest.mark.parametrize(
    ("cgroup", "user"),
    [("system.slice/kubelet.service", 1000), (f"kubepods/pod{'1' * 32}/{'2' * 64}", 0)],
    ids=["a-user", "a-container"],
)
@in_lab(timeout=60)
def test_who_is_not_the_hosts_own_is_not_followed(node: DemoNode, cgroup: str, user: int) -> None:
    source = node.add_source("one")
    with ExitStack() as stack:
        with hidden():
            pod_with_container(node, source, "web")
            stack.enter_context(holder(node, cgroup, user))
        with DaemonProcess(node) as daemon:
            document = daemon.wait_for(lambda d: bool(d["gaps"]))
            assert {gap["source"] for gap in document["gaps"]} == {"kubelet_namespace"}
            assert document["binds"] == []


@in_lab(timeout=60)
def test_two_that_fit_are_refused_and_named(node: DemoNode) -> None:
    source = node.add_source("one")
    with ExitStack() as first, ExitStack() as second:
        with hidden():
            pod, _ = pod_with_container(node, source, "a")
            first.enter_context(holder(node, "system.slice/a.service"))
        with hidden():
            _, container = pod_with_container(node, source, "b")
            pid = second.enter_context(holder(node, "system.slice/b.service"))
        with DaemonProcess(node) as daemon:
            document = daemon.wait_for(lambda d: bool(d["gaps"]))
            (gap,) = document["gaps"]
            assert gap["source"] == "kubelet_namespace"
            assert gap["reason"].startswith("several mount namespaces have pods' mounts")
            assert f"process {pid}" in gap["reason"]
            assert asked(daemon, "status").returncode == 2
            assert asked(daemon, "doctor").returncode == 1
            # One of them ends, and what is left is the kubelet's.
            pod.containers["app"].stop()
            first.close()
            wait_until_watching(daemon, 2)
            source.kill()
            source.restart()
            container.wait_until_readable("/data/hello", DEADLINE)


@in_lab(timeout=60)
def test_mounts_left_in_the_hosts_namespace_do_not_hide_the_kubelets(node: DemoNode) -> None:
    """As after a change of the node to hidden mounts without a boot."""
    source = node.add_source("one")
    pod_with_container(node, source, "old")
    with ExitStack() as stack:
        with hidden():
            pod_with_container(node, source, "new")
            pid = stack.enter_context(holder(node, name="kubelet"))
        with DaemonProcess(node) as daemon:
            document = daemon.wait_until_watching(2)
            (gap,) = document["gaps"]
            assert gap["source"] == "kubelet_namespace"
            assert f"process {pid}" in gap["reason"]


def wait_until_watching(daemon: DaemonProcess, binds: int) -> None:
    """As the daemon's own, while it begins again and answers nobody."""
    end = time.monotonic() + patient(DEADLINE)
    while True:
        try:
            daemon.wait_until_watching(binds)
            return
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


@in_lab(timeout=90)
def test_it_waits_for_the_kubelet_and_goes_there(node: DemoNode) -> None:
    source = node.add_source("one")
    with DaemonProcess(node) as daemon:
        document = daemon.wait_for(lambda d: bool(d["gaps"]))
        (gap,) = document["gaps"]
        assert gap["reason"].startswith("no mount namespace has a pod's mount so far")
        assert asked(daemon, "status").returncode == 2
        with ExitStack() as stack:
            with hidden():
                _, container = pod_with_container(node, source, "web")
                stack.enter_context(holder(node))
            wait_until_watching(daemon, 2)
            assert daemon.is_running
            assert rights(daemon.pid) == 1
            source.kill()
            source.restart()
            container.wait_until_readable("/data/hello", DEADLINE)
            assert "event=begins_again" in daemon.log()


@in_lab(timeout=60)
def test_a_kubelet_in_the_hosts_namespace_ends_the_wait(node: DemoNode) -> None:
    with DaemonProcess(node) as daemon:
        daemon.wait_for(lambda d: bool(d["gaps"]))
        assert rights(daemon.pid) > 1
        _, container = pod_with_container(node, node.add_source("one"), "web")
        daemon.wait_until_watching(2)
        daemon.wait_for(lambda d: not d["gaps"])
        assert container.read("/data/hello") == "one"
        assert rights(daemon.pid) == 1, "what it waited with is given up"
        assert "event=begins_again" not in daemon.log()


def rights(pid: int) -> int:
    """Return how many capabilities every thread of a process has at most."""
    most = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/status") as file:
            found = next(line for line in file if line.startswith("CapPrm:"))
        most = max(most, bin(int(found.split()[1], 16)).count("1"))
    return most
