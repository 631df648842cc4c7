"""lxcfs over /proc and /sys in pods' containers: the real one of Debian, and what belongs to others."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import nullcontext

import pytest

from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume, VolumeKind
from fusewatchd.demo.node.sources import ServerOptions, Source
from tests.lab import WAYS, in_lab

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

NAMES = ("meminfo", "cpuinfo", "uptime")
DEADLINE = 20.0
OPTIONS = ServerOptions(fs_type="fuse.lxcfs")
FILES = {
    "hello": "",
    **{f"proc/{name}": f"{name} of lxcfs" for name in NAMES},
    "sys/cpu/online": "0",
}


def container_of(node: DemoNode, source: Source, *, is_in_spec: bool) -> tuple[DemoPod, Container]:
    """Start one with the files that a hook, or a webhook, puts into every container."""
    paths = [f"/proc/{name}" for name in NAMES]
    volumes = [
        PodVolume(f"v{n}", kind=VolumeKind.HOST_PATH, host_path=f"{source.path}{path}")
        for n, path in enumerate(paths)
    ]
    mounts = [PodMount(f"v{n}", path) for n, path in enumerate(paths)]
    pod = node.add_pod("p", volumes, mounts if is_in_spec else [])
    container = node.launch_container(pod, mounts=mounts)
    container.wait_ready()
    return pod, container


def until(container: Container, path: str, part: str) -> None:
    end = time.monotonic() + DEADLINE
    while True:
        try:
            if part in container.read(path):
                return
        except OSError:
            pass
        assert time.monotonic() < end, path
        time.sleep(0.05)


@WAYS
@pytest.mark.parametrize("with_kubelet", [True, False], ids=["kubelet", "alone"])
@in_lab(timeout=120)
def test_files_that_no_spec_has_are_recovered(node: DemoNode, way: str, with_kubelet: bool) -> None:
    source = node.add_source("lxcfs", files=FILES, options=OPTIONS)
    _, container = container_of(node, source, is_in_spec=False)
    kubelet = DemoKubelet(node.pod_list) if with_kubelet else None
    with kubelet or nullcontext():
        settings = {"kubelet.url": kubelet.url} if kubelet else {}
        with DaemonProcess(node, way=way, settings=settings) as daemon:
            daemon.wait_until_watching(len(NAMES))
            for _ in range(2):
                source.kill()
                source.restart()
                for name in NAMES:
                    until(container, f"/proc/{name}", f"{name} of lxcfs")
            assert container.mountinfo().count("fuse.lxcfs") <= 2 * len(NAMES)


@in_lab(timeout=120)
def test_a_daemon_that_starts_after_the_unmount_of_lxcfs_recovers_too(node: DemoNode) -> None:
    """Its unit unmounts what is left of it: then nothing on the host shows the dead one."""
    source = node.add_source("lxcfs", files=FILES, options=OPTIONS)
    _, container = container_of(node, source, is_in_spec=False)
    source.kill()
    subprocess.run(["fusermount3", "-u", source.path], check=True)
    with DaemonProcess(node) as daemon:
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == len(NAMES))
        source.restart()
        for name in NAMES:
            until(container, f"/proc/{name}", f"{name} of lxcfs")


@in_lab(timeout=120)
def test_another_file_system_at_its_place_is_not_taken(node: DemoNode) -> None:
    source = node.add_source("lxcfs", files=FILES, options=OPTIONS)
    _, container = container_of(node, source, is_in_spec=False)
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(len(NAMES))
        source.kill()
        source.unmount()
        other = node.add_source("other", files=FILES)
        subprocess.run(["mount", "--bind", other.path, source.path], check=True)
        document = daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == len(NAMES))
        assert {bind["source"]["rule"] for bind in document["binds"]} == {"lxcfs"}
        daemon.wait_for(lambda d: {b["refusal"] for b in d["binds"]} == {"source_type"})
    with pytest.raises(OSError, match="not connected"):
        container.read("/proc/uptime")


@pytest.mark.parametrize("is_in_spec", [True, False], ids=["webhook", "hook"])
@in_lab(timeout=120)
def test_real_lxcfs(node: DemoNode, is_in_spec: bool) -> None:
    if shutil.which("lxcfs") is None:
        pytest.skip("lxcfs is not installed")
    command = ("lxcfs", "-f", "-p", f"{node.lab}/lxcfs.pid", "{mount}")
    source = node.add_source("lxcfs", command=command)
    _, container = container_of(node, source, is_in_spec=is_in_spec)
    assert "MemTotal" in container.read("/proc/meminfo")
    parts = {"meminfo": "MemTotal", "cpuinfo": "processor", "uptime": "."}
    with (
        DemoKubelet(node.pod_list) as kubelet,
        DaemonProcess(node, settings={"kubelet.url": kubelet.url}) as daemon,
    ):
        daemon.wait_until_watching(len(NAMES))
        source.kill()
        with pytest.raises(OSError, match="not connected"):
            container.read("/proc/meminfo")
        subprocess.run(["fusermount3", "-u", source.path], check=True)
        source.restart()
        for name, part in parts.items():
            until(container, f"/proc/{name}", part)
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["healthy"] == len(NAMES))
    types = [line for line in container.mountinfo().splitlines() if " /proc/meminfo " in line]
    assert all("fuse.lxcfs" in line for line in types)
