"""A new file system that allows more, or is called otherwise, than the one before it."""

from __future__ import annotations

import errno
import time
from dataclasses import replace

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.container_spec import MountPropagation
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume
from fusewatchd.demo.node.sources import ServerOptions, Source
from fusewatchd.linux import syscalls
from tests.integration.test_dead_sources import DETACH, layers_at, wait_for_layers
from tests.integration.test_wrong_source import UNTIL_ON_DISK, refusals, wait_for_refusal
from tests.lab import in_lab

pytestmark = pytest.mark.kernel

DEADLINE = 10.0
KEEP = {"recovery.keep_read_only": "true"}
NONE, FOLLOWS = MountPropagation.NONE, MountPropagation.HOST_TO_CONTAINER


def make_superblock_read_only(source: Source) -> None:
    """As a kernel does after errors, and ``mount -o remount,ro`` of an old mount(8)."""
    flags = syscalls.MS_REMOUNT | syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount(None, source.path, None, flags | syscalls.MS_RDONLY)
    syscalls.mount(None, source.path, None, flags | syscalls.MS_BIND)


def can_write(container: Container, name: str = "/data/new") -> bool:
    try:
        container.write(name, "x")
    except OSError as exc:
        assert exc.errno == errno.EROFS
        return False
    return True


def crash(source: Source, container: Container) -> None:
    source.kill()
    source.restart()
    container.wait_until_readable("/data/hello", DEADLINE)


def pod_of(node: DemoNode, source: Source, propagation: MountPropagation) -> DemoPod:
    mount = PodMount("v", "/data", propagation=propagation)
    return node.add_pod("web", [PodVolume("v", source)], [mount])


@in_lab(timeout=60)
def test_that_writing_works_by_now_is_told(node: DemoNode) -> None:
    source = node.add_source("one")
    make_superblock_read_only(source)
    container = node.start_container(pod_of(node, source, NONE))
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(2)
        assert not can_write(container)
        crash(source, container)
        assert can_write(container)
        document = daemon.wait_for(lambda d: all(b["last_recovery"] for b in d["binds"]))
        assert {b["last_recovery"]["wider"] for b in document["binds"]} == {"with rw"}
        assert 'event=wider detail="with rw"' in daemon.log()
        make_superblock_read_only(source)
        crash(source, container)
        daemon.wait_until_watching(2)


@pytest.mark.parametrize("propagation", [NONE, FOLLOWS])
@in_lab(timeout=90)
def test_who_could_never_write_goes_on_like_that(
    node: DemoNode, propagation: MountPropagation
) -> None:
    source = node.add_source("one")
    make_superblock_read_only(source)
    pod = pod_of(node, source, propagation)
    container = node.start_container(pod)
    with DaemonProcess(node, settings=KEEP) as daemon:
        daemon.wait_until_watching(2)
        for _ in range(2):
            time.sleep(UNTIL_ON_DISK)
            crash(source, container)
            daemon.wait_until_watching(2)
            assert not can_write(container)
            time.sleep(UNTIL_ON_DISK)
            daemon.stop()
            daemon.start()
            daemon.wait_until_watching(2)
        assert "event=wider" not in daemon.log()
        container.stop()
        if propagation is NONE:
            assert can_write(node.start_container(pod))


@in_lab(timeout=90)
def test_a_server_that_is_read_only_for_a_while_takes_nothing_away(node: DemoNode) -> None:
    source = node.add_source("one")
    container = node.start_container(pod_of(node, source, NONE))
    with DaemonProcess(node, settings=KEEP) as daemon:
        daemon.wait_until_watching(2)
        usual = source.options
        source.options = replace(usual, is_read_only=True)
        crash(source, container)
        daemon.wait_until_watching(2)
        assert not can_write(container)
        source.options = usual
        crash(source, container)
        assert can_write(container)


# ------------------------------------------------------------------------------- types


@pytest.mark.parametrize("subtype", ["other", ""])
@in_lab(timeout=60)
def test_another_version_of_a_server_may_call_its_type_otherwise(
    node: DemoNode, subtype: str
) -> None:
    source = node.add_source("one")
    pod = pod_of(node, source, NONE)
    container = node.start_container(pod)
    changed = f"fuse.{subtype}" if subtype else "fuse"
    with DaemonProcess(node, settings=DETACH) as daemon:
        daemon.wait_until_watching(2)
        source.options = replace(source.options, fs_type=changed)
        for _ in range(2):
            crash(source, container)
            daemon.wait_until_watching(2)
        time.sleep(UNTIL_ON_DISK)
        assert daemon.log().count("event=type_changed") == 1
        assert f"type changed fuse.demofs -> {changed}" in daemon.log()
        source.kill()
        wait_for_layers(source.path, 0)


@in_lab(timeout=60)
def test_what_is_there_and_is_not_taken_is_told_as_that(node: DemoNode) -> None:
    source = node.add_source("one")
    pod = pod_of(node, source, NONE)
    node.start_container(pod)
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(2)
        source.stop()
        syscalls.mount("tmpfs", source.path, "tmpfs", 0, "size=64k")
        wait_for_refusal(daemon, pod, "source_type")
        # The outage learns of it in the cycle after that.
        daemon.wait_for(lambda _: "source is back, refused: source_type" in daemon.table())
        assert "source_missing" not in daemon.table()
        assert layers_at(source.path) and "source_type" in refusals(daemon.status(), pod)
        source.unmount()


@pytest.mark.slow
@in_lab(timeout=60)
def test_so_may_one_whose_place_its_driver_names(node: DemoNode) -> None:
    """Nobody saw it healthy: the daemon starts when the server is gone."""
    driver = "blob.csi.azure.com"
    volume = PodVolume("v", directory="pv-1", driver=driver)
    options = ServerOptions(fs_type="fuse.blobfuse")
    path = node.staging_path(driver, volume.volume_handle)
    source = node.add_source(
        "one", path=path, options=options, files={"hello": "one", "sub/x": "x"}
    )
    mounts = [PodMount("v", "/data"), PodMount("v", "/sub", sub_path="sub")]
    container = node.start_container(node.add_pod("web", [replace(volume, source=source)], mounts))
    source.kill()
    with DaemonProcess(node) as daemon:
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == 4)
        source.options = ServerOptions(fs_type="fuse.blobfuse2")
        source.restart()
        container.wait_until_readable("/data/hello", DEADLINE)
        container.wait_until_readable("/sub/x", DEADLINE)
        daemon.wait_for(lambda d: all(b["last_recovery"] for b in d["binds"]))
        time.sleep(UNTIL_ON_DISK)
        assert "type changed fuse.blobfuse -> fuse.blobfuse2" in daemon.log()
