"""The main job: real servers killed for real, the real daemon, containers that work again."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress

import pytest

from fusewatchd.act import layer_journal
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.container_spec import Access, MountPropagation
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodMount, PodVolume, VolumeKind
from fusewatchd.demo.node.sources import OldServer, Source
from fusewatchd.linux.mount_kernel import Way
from fusewatchd.model.mount_table import parse_mount_table
from fusewatchd.model.mounts import Mount
from tests.features import best_way
from tests.lab import WAYS, in_lab

pytestmark = pytest.mark.kernel

DEADLINE = 10.0
ENTRIES_EXPIRE = 1.2


def fuse_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if " - fuse" in line and "fusectl" not in line]


def host_lines() -> list[str]:
    with open("/proc/self/mountinfo") as file:
        return fuse_lines(file.read())


def options_at(lines: list[str], mount_point: str) -> str:
    return [line.split()[5] for line in lines if line.split()[4] == mount_point][-1]


def crash(node: DemoNode, name: str = "one") -> None:
    node.sources[name].kill()
    node.sources[name].restart()


@WAYS
@in_lab(timeout=90)
def test_every_propagation_recovers(node: DemoNode, way: str) -> None:
    source = node.add_source("one")
    containers: list[Container] = []
    for propagation in MountPropagation:
        mounts = [PodMount("v", "/data", propagation=propagation)]
        pod = node.add_pod(f"p-{propagation.name.lower()}", [PodVolume("v", source)], mounts)
        containers.append(node.start_container(pod))
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(6)
        for _ in range(3):
            crash(node)
            for container in containers:
                container.wait_until_readable("/data/hello", DEADLINE)
                assert container.read("/data/hello") == "one"
        daemon.wait_until_watching(6)


@WAYS
@in_lab(timeout=90)
def test_no_crash_makes_a_stack_deeper(node: DemoNode, way: str) -> None:
    """Also where no other mount on the node still shows what the layers below show."""
    source = node.add_source("one")
    pod = node.add_pod("p", [PodVolume("v", source)], [PodMount("v", "/data")])
    container = node.start_container(pod)
    most = 1 if way == "beneath" else 2
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(2)
        for _ in range(4):
            crash(node)
            container.wait_until_readable("/data/hello", DEADLINE)
            daemon.wait_until_watching(2)
            for lines in (host_lines(), fuse_lines(container.mountinfo())):
                places = [line.split()[4] for line in lines]
                assert max(map(places.count, places)) <= most, lines


@WAYS
@in_lab(timeout=90)
def test_subpaths_of_directories_and_files_recover(node: DemoNode, way: str) -> None:
    source = node.add_source("one", files={"sub/dir/hello": "inner", "single": "file"})
    mounts = [
        PodMount("v", "/data", sub_path="sub/dir"),
        PodMount("v", "/file", sub_path="single"),
    ]
    pod = node.add_pod("p", [PodVolume("v", source)], mounts)
    container = node.start_container(pod)
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(5)
        crash(node)
        container.wait_until_readable("/data/hello", DEADLINE)
        container.wait_until_readable("/file", DEADLINE)
        assert container.read("/data/hello") == "inner"
        assert container.read("/file") == "file"


@WAYS
@in_lab(timeout=90)
def test_read_only_and_flags_stay(node: DemoNode, way: str) -> None:
    source = node.add_source("one")
    volume = PodVolume("v", source, flags="noexec,noatime")
    mounts = [PodMount("v", "/data", access=Access.READ_ONLY)]
    pod = node.add_pod("p", [volume], mounts)
    container = node.start_container(pod)
    target = pod.volume_path("v")
    before = options_at(host_lines(), target)
    inside = options_at(fuse_lines(container.mountinfo()), "/data")
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(2)
        crash(node)
        container.wait_until_readable("/data/hello", DEADLINE)
        assert options_at(host_lines(), target) == before
        assert options_at(fuse_lines(container.mountinfo()), "/data") == inside
        with pytest.raises(OSError) as error:
            container.write("/data/new", "x")
        assert error.value.errno == errno.EROFS
        daemon.wait_until_watching(2)


@pytest.mark.slow
@WAYS
@in_lab(timeout=120)
def test_a_look_in_the_middle_of_a_recovery_finds_no_outage(node: DemoNode, way: str) -> None:
    """Neither in a mount that is gone by now, nor in a dead one that was uncovered for a moment."""
    source = node.add_source("one")
    pods = [
        node.add_pod(f"p{n}", [PodVolume("v", source)], [PodMount("v", "/d")]) for n in range(30)
    ]
    containers = [node.start_container(pod) for pod in pods]
    crashes = 8
    with DaemonProcess(node, way=way, settings={"look_seconds": "0.01"}) as daemon:
        for _ in range(crashes):
            daemon.wait_until_watching(60)
            crash(node)
            for container in containers:
                container.wait_until_readable("/d/hello", DEADLINE)
        daemon.wait_for(lambda d: not d["incidents"] and d["totals"]["verdicts"]["healthy"] == 60)
        told = {name: daemon.log().count(f"event={name} ") for name in ("server_gone", "recovered")}
        assert told == dict.fromkeys(told, crashes)
        assert "event=skipped" not in daemon.log()


@pytest.mark.slow
@WAYS
@in_lab(timeout=120)
def test_a_daemon_that_is_killed_after_every_crash_leaves_no_layer(
    node: DemoNode, way: str
) -> None:
    """Neither what it was about to write down is lost, nor what a mount covers unknown."""
    source = node.add_source("one")
    pod = node.add_pod("app", [PodVolume("v", source)], [PodMount("v", "/data")])
    container = node.start_container(pod)
    with DaemonProcess(node, way=way) as daemon:
        for number in range(4):
            daemon.wait_until_watching(2)
            crash(node)
            container.wait_until_readable("/data/hello", DEADLINE)
            daemon.kill()
            if number == 2:
                # Without its notes it finds out what is dead.
                shutil.rmtree(daemon.values["state_dir"], ignore_errors=True)
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(daemon.runtime_dir, layer_journal.NAME))
            daemon.start()
        daemon.wait_until_watching(2)
        most = 1 if way == "beneath" else 2
        on_host = [line.split()[4] for line in host_lines()].count(pod.volume_path("v"))
        inside = [line.split()[4] for line in fuse_lines(container.mountinfo())].count("/data")
        assert (on_host <= most, inside <= most) == (True, True), (on_host, inside)


@WAYS
@in_lab(timeout=90)
def test_a_volume_inside_that_the_kernel_unmounts_meanwhile_comes_back(
    node: DemoNode, way: str
) -> None:
    """It does when somebody looks for the directory in the dead file system below."""
    source = node.add_source("one", files={"hello": "one", "cache/.keep": ""})
    volumes = [PodVolume("v", source), PodVolume("e", kind=VolumeKind.EMPTY_DIR)]
    pod = node.add_pod("app", volumes, [PodMount("v", "/data"), PodMount("e", "/data/cache")])
    container = node.start_container(pod)
    container.write("/data/cache/mine", "kept")
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(2)
        for number in range(2):
            kill_and_look(source, container, pod.volume_path("v"))
            if number:
                daemon.kill()
                daemon.start()
            source.restart()
            container.wait_until_readable("/data/hello", DEADLINE)
            assert container.read("/data/cache/mine") == "kept"
            daemon.wait_until_watching(2)


def kill_and_look(source: Source, container: Container, bind: str) -> None:
    """Look for the directory just when it is not known any more, and the root still is."""
    end = time.monotonic() + DEADLINE
    time.sleep(ENTRIES_EXPIRE)
    os.stat(bind)
    source.kill()
    while any(mount.mount_point == "/data/cache" for mount in mounts_of(container)):
        assert time.monotonic() < end, "what is mounted there stays"
        with suppress(OSError):
            os.stat(f"{bind}/cache")
        time.sleep(0.01)


def mounts_of(container: Container) -> Iterable[Mount]:
    with open(f"/proc/{container.pid}/mountinfo", "rb") as file:
        return parse_mount_table(file.read())


@WAYS
@in_lab(timeout=90)
def test_a_volume_inside_the_volume_survives(node: DemoNode, way: str) -> None:
    source = node.add_source("one", files={"hello": "one", "cache/.keep": ""})
    volumes = [PodVolume("v", source), PodVolume("e", kind=VolumeKind.EMPTY_DIR)]
    mounts = [PodMount("v", "/data"), PodMount("e", "/data/cache")]
    container = node.start_container(node.add_pod("p", volumes, mounts))
    container.write("/data/cache/mine", "kept")
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(2)
        source.kill()
        time.sleep(1.2)  # beyond the entry timeout: the path through the dead one is closed
        source.restart()
        container.wait_until_readable("/data/hello", DEADLINE)
        assert container.read("/data/cache/mine") == "kept"


@in_lab(timeout=60)
def test_an_old_server_that_drains_and_dies(node: DemoNode) -> None:
    source = node.add_source("one")
    pod = node.add_pod("p", [PodVolume("v", source)], [PodMount("v", "/data")])
    container = node.start_container(pod)
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(2)
        source.restart(old=OldServer.DRAINING)
        daemon.wait_for(lambda d: all(b["verdict"] == "superseded" for b in d["binds"]))
        assert container.read("/data/hello") == "one"
        time.sleep(1.0)  # nobody lacks anything meanwhile
        for old in source.draining:
            old.kill()
        container.wait_until_readable("/data/hello", DEADLINE)
        (outage,) = daemon.wait_for(lambda d: d["outages"])["outages"]
        assert outage["source_up_at"] < outage["server_gone_at"]
        assert outage["recovery_ms"] <= outage["lasted_ms"]


@in_lab(timeout=90)
def test_a_hung_server_harms_nobody_else(node: DemoNode) -> None:
    hung, other = node.add_source("hung"), node.add_source("other")
    node.add_pod("p1", [PodVolume("v", hung)], [])
    pod = node.add_pod("p2", [PodVolume("v", other)], [PodMount("v", "/data")])
    container = node.start_container(pod)
    quick = {
        "probe.interval_seconds": "0.2",
        "probe.deadline_seconds": "0.3",
        "hung.after_seconds": "0.6",
    }
    with DaemonProcess(node, settings=quick) as daemon:
        daemon.wait_until_watching(3)
        before = host_lines()
        hung.pause()
        daemon.wait_for(lambda d: any(b["verdict"] == "hung" for b in d["binds"]))
        crash(node, "other")
        container.wait_until_readable("/data/hello", DEADLINE)
        # The older ways leave a layer below the replaced one.
        assert len(host_lines()) == len(before) + (best_way() is not Way.BENEATH)
        hung.resume()
        daemon.wait_until_watching(3)


@in_lab(timeout=60)
def test_restarted_and_stopped_daemon_changes_no_mount(node: DemoNode) -> None:
    source = node.add_source("one")
    node.start_container(node.add_pod("p", [PodVolume("v", source)], [PodMount("v", "/data")]))
    before = host_lines()
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(2)
        daemon.kill()
        daemon.start()
        daemon.wait_until_watching(2)
    assert host_lines() == before


@in_lab(timeout=60)
def test_killed_in_between_and_started_again_finishes_the_containers(node: DemoNode) -> None:
    path = node.fluid_path("juicefs", "demo", "data")
    source = node.add_source("one", path=path)
    volume = PodVolume("v", source, directory="demo-data", driver="fuse.csi.fluid.io")
    container = node.start_container(node.add_pod("p", [volume], [PodMount("v", "/data")]))
    settings = {"recovery.containers": "false"}
    with DaemonProcess(node, settings=settings) as daemon:
        daemon.wait_until_watching(2)
        time.sleep(0.7)  # until it is on the disk which bind the container has
        crash(node)
        daemon.wait_for(lambda d: any(b["verdict"] == "healthy" for b in d["binds"]))
        daemon.kill()
        with pytest.raises(OSError):
            container.read("/data/hello")
        daemon.values["recovery.containers"] = "true"
        daemon.start()
        container.wait_until_readable("/data/hello", DEADLINE)


@in_lab(timeout=60)
def test_report_mode_touches_nothing(node: DemoNode) -> None:
    source = node.add_source("one")
    node.add_pod("p", [PodVolume("v", source)], [])
    with DaemonProcess(node, settings={"recovery.mode": "report"}) as daemon:
        daemon.wait_until_watching(1)
        crash(node)
        daemon.wait_for(lambda d: any(b["verdict"] == "stale" for b in d["binds"]))
        lines = host_lines()
        time.sleep(0.5)
        assert host_lines() == lines


@in_lab(timeout=60)
def test_a_plain_umount_is_never_busy(node: DemoNode) -> None:
    source = node.add_source("one")
    with DaemonProcess(node, settings={"probe.interval_seconds": "0.05"}) as daemon:
        for number in range(20):
            pod = node.add_pod(f"p{number}", [PodVolume("v", source)], [])
            daemon.wait_for(lambda d: len(d["binds"]) == 1)
            done = subprocess.run(["umount", pod.volume_path("v")], capture_output=True)
            assert done.returncode == 0, done.stderr
            node.remove_pod(pod)
            assert not os.path.exists(pod.directory)


@WAYS
@in_lab(timeout=60)
def test_without_what_newer_kernels_tell(node: DemoNode, way: str) -> None:
    """Mounts by poll alone, servers of which the connection is not told."""
    source = node.add_source("one")
    pod = node.add_pod("p", [PodVolume("v", source)], [PodMount("v", "/data")])
    container = node.start_container(pod)
    settings = {"probe.interval_seconds": "3600"}
    with DaemonProcess(node, way=way, settings=settings, as_old_kernel=True) as daemon:
        daemon.wait_until_watching(2)
        time.sleep(1.0)  # the server is known by then
        for _ in range(2):
            source.kill()
            daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == 2, DEADLINE)
            source.restart()
            container.wait_until_readable("/data/hello", DEADLINE)
            daemon.wait_until_watching(2)
            time.sleep(2.0)
