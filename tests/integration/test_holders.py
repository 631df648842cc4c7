"""Who still holds files of a dead mount: found in every way of holding, and without a request."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fusewatchd.demo.cluster.apiserver import DemoApiServer
from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.linux import fusectl
from fusewatchd.model.mount_table import parse_mount_table
from fusewatchd.model.mounts import Device, Mount
from fusewatchd.model.servers import DeadMount
from fusewatchd.observe.holders.scan import (
    DEADLINE_SECONDS,
    HolderScanner,
    look,
    serve_holder_looks,
)
from fusewatchd.observe.holders.targets import HolderJob, HolderLook
from fusewatchd.workers.fork_server import ForkServer, Worker, WorkerKind
from fusewatchd.workers.privileges import PRIVILEGES, Kind
from tests.lab import in_lab, pod_with_container, run_fusewatchd
from tests.waiting import wait_until

pytestmark = pytest.mark.kernel


def mounts_of(device: Device, pid: str) -> list[Mount]:
    table = parse_mount_table(Path(f"/proc/{pid}/mountinfo").read_bytes())
    return [mount for mount in table.fuse_mounts() if mount.device == device]


def device_at(path: str) -> Device:
    top = parse_mount_table(Path("/proc/self/mountinfo").read_bytes()).top_at(path)
    assert top is not None
    return top.device


def job_for(device: Device, *containers: Container) -> HolderJob:
    """All mounts of a device, as the daemon would have seen them."""
    pids = ["self", *(str(container.pid) for container in containers)]
    ids = {mount.mount_id for pid in pids for mount in mounts_of(device, pid)}
    namespaces = tuple(container.mount_namespace for container in containers)
    return HolderJob((DeadMount(device, tuple(sorted(ids))),), namespaces)


def hold_everything(container: Container) -> int:
    """Open, map and enter the volume; returns the number of the open file."""
    number = int(container.call("open", path="/data/hello"))
    container.call("map", path="/data/hello")
    container.call("chdir", path="/data")
    return number


def close_dead(container: Container, number: int) -> None:
    with suppress(OSError):  # the server cannot be told; it is closed all the same
        container.call("close", fd=number)


def only_holding(document: Any) -> Any:
    (holding,) = document["dead_mount_holders"]
    return holding


@in_lab(timeout=90)
def test_who_has_to_open_its_files_anew_is_named_by_pod_and_container(node: DemoNode) -> None:
    source = node.add_source("one")
    _, holding = pod_with_container(node, source, "web")
    _, retrying = pod_with_container(node, source, "batch")
    retrying.read("/data/hello")
    with DemoKubelet(node.pod_list) as kubelet:
        settings = {"kubelet.url": kubelet.url}
        with DaemonProcess(node, settings=settings) as daemon:
            daemon.wait_until_watching(4)
            hold_everything(holding)
            source.kill()
            source.restart()
            found = only_holding(daemon.wait_for(lambda d: d["dead_mount_holders"]))
            log = daemon.log()
            table = daemon.table()
    (holder,) = found["holders"]
    assert (found["processes"], found["not_looked_at"]) == (1, 0)
    assert found["source"] == source.path
    assert holder["pid"] == holding.pid
    assert (holder["pod"]["namespace"], holder["pod"]["name"]) == ("demo", "web")
    assert holder["container"] == holding.spec.container_id
    assert (holder["open_files"], holder["mapped_areas"], holder["directory"]) == (1, 1, True)
    named = f"pod demo/web, container {holding.spec.container_id[:12]}, pid {holding.pid} "
    (line,) = [x for x in log.splitlines() if "event=holders" in x]
    assert f"1 process still holds files of the dead mount: {named}" in line
    assert "namespace=demo pod=web " in line
    assert f"  {named}" in table


@pytest.mark.slow
@in_lab(timeout=120)
def test_a_pod_that_holds_the_root_of_a_dead_mount_needs_a_restart(node: DemoNode) -> None:
    """As gVisor's gofer does: all that it opens is opened by that descriptor."""
    source = node.add_source("one")
    pod, container = pod_with_container(node, source, "web")
    other, _ = pod_with_container(node, source, "other")
    with (
        DemoKubelet(node.pod_list) as kubelet,
        DemoApiServer() as api,
        DaemonProcess(
            node, settings={"kubelet.url": kubelet.url, "apiserver.url": api.url}
        ) as daemon,
    ):
        daemon.wait_until_watching(4)
        number = int(container.call("open", path="/data"))
        source.kill()
        source.restart()
        document = daemon.wait_for(lambda d: d["needs_restart"])
        assert [pod["name"] for pod in document["needs_restart"]] == [pod.name]
        sets = [
            word for key, value in daemon.values.items() for word in ("--set", f"{key}={value}")
        ]
        assert run_fusewatchd("status", *sets).returncode == 1
        assert "restart the pod" in run_fusewatchd("explain", pod.uid, *sets).stdout
        assert "root directory of a dead" not in run_fusewatchd("explain", other.uid, *sets).stdout
        wait_until(lambda: "FuseMountNeedsRestart" in api.reasons(), daemon.log)
        close_dead(container, number)
        daemon.wait_for(lambda d: not d["needs_restart"], 60)


@pytest.mark.slow
@in_lab(timeout=120)
def test_they_are_looked_for_until_the_last_one_has_let_go(node: DemoNode) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "web")
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(2)
        number = hold_everything(container)
        source.kill()
        source.restart()
        daemon.wait_for(lambda d: d["dead_mount_holders"])
        # A second outage, whose holder is the same process with another file.
        container.wait_until_readable("/data/hello", 10)
        other = int(container.call("open", path="/data/hello"))
        source.kill()
        source.restart()
        daemon.wait_for(lambda d: len(d["dead_mount_holders"]) == 2)
        close_dead(container, number)
        container.call("unmap")
        container.call("chdir", path="/")
        last = only_holding(daemon.wait_for(lambda d: len(d["dead_mount_holders"]) == 1, 30))
        assert last["holders"][0]["open_files"] == 1
        close_dead(container, other)
        daemon.wait_for(lambda d: not d["dead_mount_holders"], 60)
        assert daemon.log().count("event=holders_gone") == 2


@in_lab(timeout=60)
def test_no_server_is_ever_asked(node: DemoNode) -> None:
    """It stands still: whoever sent it a request would wait, and be counted."""
    source, other = node.add_source("one"), node.add_source("other")
    _, container = pod_with_container(node, source, "web")
    _, bystander = pod_with_container(node, other, "bystander")
    for one in (container, bystander):
        hold_everything(one)
    device = device_at(source.path)
    for stopped in (source, other):
        stopped.pause()
    found = look(job_for(device, container, bystander))
    assert [fusectl.waiting(d) for d in (device, device_at(other.path))] == [0, 0]
    (holder,) = found.holders
    assert (holder.pid, holder.files, holder.mapped, holder.has_directory) == (
        container.pid, 1, 1, True,
    )  # fmt: skip
    for stopped in (source, other):
        stopped.resume()


@in_lab(timeout=60)
def test_a_detached_mount_is_known_by_its_id(node: DemoNode) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "web")
    hold_everything(container)
    job = job_for(device_at(source.path), container)
    source.kill()
    container.call("detach", path="/data")
    assert look(job).counts == (1,)
    container.call("chdir", path="/")
    container.call("unmap")
    (holder,) = look(job).holders
    assert (holder.files, holder.mapped, holder.has_directory) == (1, 0, False)
    # Outside the namespaces that showed it a process is looked at for its open files only.
    assert look(HolderJob(job.dead)).counts == (1,)


@in_lab(timeout=60)
def test_a_number_that_another_mount_has_by_now_is_nobody(node: DemoNode) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "web")
    hold_everything(container)
    job = job_for(device_at(source.path), container)
    (dead,) = job.dead
    assert look(job).counts == (1,)
    other = DeadMount(Device(0, dead.device.minor + 1_000_000), dead.mount_ids)
    assert look(HolderJob((other,), job.namespaces)).counts == (0,)


@in_lab(timeout=60)
def test_what_there_is_no_time_for_is_counted(node: DemoNode) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "web")
    hold_everything(container)
    job = job_for(device_at(source.path), container)
    found = look(job, seconds=0.0)
    assert found.holders == ()
    assert found.unseen > 1
    # Over at the second descriptor of the first process, which is the likely one.
    ticks = iter(range(10_000))
    in_the_middle = look(job, lambda: float(next(ticks)), seconds=3.0)
    assert (in_the_middle.holders, in_the_middle.unseen > 1) == ((), True)


@in_lab(timeout=60)
def test_without_the_closer_look_open_files_are_found_all_the_same(node: DemoNode) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "web")
    hold_everything(container)
    job = job_for(device_at(source.path), container)
    (holder,) = look(HolderJob(job.dead, job.namespaces, is_shallow=True)).holders
    assert (holder.files, holder.mapped, holder.has_directory) == (1, 0, False)


def result_of(scanner: HolderScanner) -> HolderLook:
    for now in range(1, 2000):
        found = scanner.collect(now / 1000)
        if found is not None:
            return found
        select.select([scanner.fileno()], [], [], 0.05)
    raise TimeoutError


def test_a_worker_that_ends_is_replaced() -> None:
    forks = ForkServer.start({"holders": WorkerKind(serve_holder_looks, PRIVILEGES[Kind.HOLDERS])})
    workers: list[Worker] = []

    def spawn() -> Worker:
        workers.append(forks.spawn("holders"))
        return workers[-1]

    scanner = HolderScanner(spawn)
    assert not workers
    job = HolderJob((DeadMount(Device(0, 1), (1 << 30,)),))
    assert scanner.request(job, 0.0)
    assert result_of(scanner).counts == (0,)
    assert os.getpriority(os.PRIO_PROCESS, workers[0].pid) > 0
    os.kill(workers[0].pid, signal.SIGSTOP)
    assert scanner.request(job, 1.0)
    assert scanner.next_deadline() == 1.0 + DEADLINE_SECONDS
    with pytest.raises(TimeoutError):
        scanner.collect(1.0 + DEADLINE_SECONDS)
    assert scanner.request(job, 30.0)
    assert result_of(scanner).counts == (0,)
    assert len(workers) == 2
    scanner.close()
    forks.close()
