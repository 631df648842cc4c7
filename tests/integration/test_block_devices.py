"""FUSE servers of disks (``fuseblk``): ntfs-3g on loop devices, killed and started again.

Their superblock belongs to the block device and has its number.  While a bind holds a dead one the
kernel gives the same disk no other one, so a volume comes back only on another device: as a disk
that was attached anew.  Once nothing holds it, the same number comes back with another superblock.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume
from fusewatchd.demo.node.sources import Source
from fusewatchd.errors import FusewatchError
from fusewatchd.linux.syscalls import closing_fd
from tests.integration.test_recovery import DEADLINE, host_lines
from tests.lab import WAYS, in_lab

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

DRIVER, HANDLE = "disk.csi.demo", "disk-1"
MEGABYTES = 8


def run(*words: str) -> str:
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=30)
    return done.stdout.strip()


@dataclass
class Disks:
    """Images with NTFS, and the loop devices that were made of them."""

    directory: str
    attached: ExitStack = field(default_factory=ExitStack)

    def make(self, name: str) -> str:
        """Return a new image."""
        image = os.path.join(self.directory, name)
        with open(image, "wb") as file:
            file.truncate(MEGABYTES << 20)
        run("mkntfs", "--force", "--quick", "--quiet", image)
        return image

    def attach(self, image: str) -> str:
        """Return another loop device of an image: the disk under a number of its own."""
        device = run("losetup", "--find", "--show", image)
        # Somebody may hold it still: then the kernel does it after that.
        self.attached.callback(run, "losetup", "--detach", device)
        return device


@contextmanager
def disks(node: DemoNode) -> Iterator[Disks]:
    missing = [name for name in ("mkntfs", "ntfs-3g", "losetup") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}")
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("no loop devices")
    made = Disks(node.lab)
    with made.attached:
        yield made


class Disk:
    """A source that ntfs-3g serves from whichever device the disk has now."""

    def __init__(self, node: DemoNode, device: str, path: str) -> None:
        self._link = os.path.join(node.lab, "the-disk")
        self.plug(device)
        server = os.path.join(node.lab, "serve")
        with open(server, "w") as file:
            file.write(f'#!/bin/sh\nexec ntfs-3g -o no_detach "$(readlink {self._link})" "$1"\n')
        os.chmod(server, 0o755)
        command = (server, "{mount}")
        self.source: Source = node.add_source("disk", path=path, command=command, files={})
        with open(os.path.join(path, "hello"), "w") as hello:
            hello.write("one")

    def plug(self, device: str) -> None:
        """From now on the disk is this device."""
        if os.path.lexists(self._link):
            os.unlink(self._link)
        os.symlink(device, self._link)

    def die(self) -> None:
        """SIGKILL, and take away what the server had mounted, as drivers do."""
        self.source.kill()
        self.source.unmount()
        # What it had written is in the cache of that device, and not on the disk.
        with closing_fd(os.open(self._link, os.O_RDONLY | os.O_CLOEXEC)) as fd:
            os.fsync(fd)


def add_pod(node: DemoNode, name: str, disk: Disk) -> tuple[DemoPod, Container]:
    volume = PodVolume("v", disk.source, directory="pv", driver=DRIVER, handle=HANDLE)
    pod = node.add_pod(name, [volume], [PodMount("v", "/data")])
    return pod, node.start_container(pod)


def numbers() -> set[str]:
    """Return the device numbers of the disks that are mounted on the host."""
    return {line.split()[2] for line in host_lines() if " - fuseblk " in line}


def number_of(device: str) -> str:
    found = os.stat(device)
    assert stat.S_ISBLK(found.st_mode)
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"


def wait_for_refusals(daemon: DaemonProcess, reason: str, count: int) -> None:
    daemon.wait_for(lambda d: [b["refusal"] for b in d["binds"]] == [reason] * count)


@WAYS
@in_lab(timeout=90)
def test_a_disk_that_is_attached_anew_is_the_same_volume_at_its_staging_path(
    node: DemoNode, way: str
) -> None:
    with disks(node) as have:
        image = have.make("image")
        disk = Disk(node, have.attach(image), node.staging_path(DRIVER, HANDLE))
        _, container = add_pod(node, "web", disk)
        with DaemonProcess(node, way=way) as daemon:
            daemon.wait_until_watching(2)
            for _ in range(2):
                disk.die()
                wait_for_refusals(daemon, "block_device", 2)
                device = have.attach(image)
                disk.plug(device)
                disk.source.start()
                container.wait_until_readable("/data/hello", DEADLINE)
                assert container.read("/data/hello") == "one"
                daemon.wait_until_watching(2)
                assert number_of(device) in numbers()
            rules = {b["source"]["rule"] for b in daemon.status()["binds"]}
            assert rules == {"csi-staging"}


@in_lab(timeout=90)
def test_the_kernel_gives_the_same_disk_nothing_new_while_a_bind_holds_the_dead_one(
    node: DemoNode,
) -> None:
    with disks(node) as have:
        device = have.attach(have.make("image"))
        disk = Disk(node, device, node.staging_path(DRIVER, HANDLE))
        pod, container = add_pod(node, "web", disk)
        with DaemonProcess(node) as daemon:
            daemon.wait_until_watching(2)
            before = host_lines()
            disk.die()
            with pytest.raises(FusewatchError):  # "the NTFS volume is already exclusively opened"
                disk.source.start()
            wait_for_refusals(daemon, "block_device", 2)
            target = pod.volume_path("v")
            assert [x for x in host_lines() if target in x] == [x for x in before if target in x]
            with pytest.raises(OSError) as caught:
                container.read("/data/hello")
            assert caught.value.errno == errno.ENOTCONN


@pytest.mark.parametrize("sees_it", [True, False], ids=["watched", "not watched"])
@in_lab(timeout=90)
def test_the_same_number_with_another_superblock_has_no_past(node: DemoNode, sees_it: bool) -> None:
    """All pods end, and the disk is mounted again: alive, under the number of the dead one."""
    with disks(node) as have:
        device = have.attach(have.make("image"))
        disk = Disk(node, device, node.staging_path(DRIVER, HANDLE))
        first, _ = add_pod(node, "first", disk)
        with DaemonProcess(node) as daemon:
            daemon.wait_until_watching(2)
            disk.die()
            wait_for_refusals(daemon, "block_device", 2)
            if not sees_it:
                os.kill(daemon.pid, signal.SIGSTOP)
            node.remove_pod(first)
            disk.source.start()
            _, container = add_pod(node, "second", disk)
            os.kill(daemon.pid, signal.SIGCONT)
            assert numbers() == {number_of(device)}
            daemon.wait_until_watching(2)
            assert container.read("/data/hello") == "one"
            disk.die()
            wait_for_refusals(daemon, "block_device", 2)


@in_lab(timeout=90)
def test_another_disk_at_a_place_that_is_only_remembered_is_not_shown(node: DemoNode) -> None:
    with disks(node) as have:
        disk = Disk(node, have.attach(have.make("image")), os.path.join(node.lab, "mnt"))
        _, container = add_pod(node, "web", disk)
        with DaemonProcess(node) as daemon:
            daemon.wait_until_watching(2)
            disk.die()
            disk.plug(have.attach(have.make("of-somebody-else")))
            disk.source.start()
            with open(os.path.join(disk.source.path, "hello"), "w") as file:
                file.write("a secret")
            wait_for_refusals(daemon, "block_device", 2)
            with pytest.raises(OSError) as caught:
                container.read("/data/hello")
            assert caught.value.errno == errno.ENOTCONN
            daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == 2)
