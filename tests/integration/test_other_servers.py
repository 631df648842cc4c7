"""The main job with FUSE servers that others wrote, on libfuse."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fusewatchd.demo.containerspec import Access, MountPropagation
from fusewatchd.demo.daemonprocess import DaemonProcess
from fusewatchd.demo.node import DemoNode
from fusewatchd.demo.pods import PodMount, PodVolume
from tests.lab import WAYS, in_lab

pytestmark = pytest.mark.kernel

SERVERS = Path(__file__).parents[1] / "servers"
SYSTEM_PYTHON = "/usr/bin/python3"
COMMANDS = {
    "bindfs": ("bindfs", "-f", "{backing}", "{mount}"),
    "bindfs-single-threaded": ("bindfs", "-f", "-s", "{backing}", "{mount}"),
    "pyfuse3": (SYSTEM_PYTHON, str(SERVERS / "pyfuse3_directory.py"), "{backing}", "{mount}"),
}
DEADLINE = 10.0


def why_not(server: str) -> str:
    if server.startswith("bindfs"):
        return "" if shutil.which("bindfs") else "bindfs is not installed"
    command = [SYSTEM_PYTHON, "-c", "import pyfuse3"]
    done = subprocess.run(command, capture_output=True, check=False)
    return "" if done.returncode == 0 else "python3-pyfuse3 is not installed"


@WAYS
@pytest.mark.parametrize("server", COMMANDS)
@in_lab(timeout=90)
def test_crashes_and_recovers(node: DemoNode, server: str, way: str) -> None:
    if problem := why_not(server):
        pytest.skip(problem)
    source = node.add_source("one", command=COMMANDS[server])
    mounts = [PodMount("v", "/data", access=Access.READ_ONLY)]
    if server != "pyfuse3":
        source.put("sub/hello", "inner")
        mounts.append(
            PodMount("v", "/sub", sub_path="sub", propagation=MountPropagation.HOST_TO_CONTAINER)
        )
    pod = node.add_pod("p", [PodVolume("v", source)], mounts)
    container = node.start_container(pod)
    binds = 2 * len(mounts)
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(binds)
        for _ in range(3):
            source.kill()
            source.restart()
            container.wait_until_readable("/data/hello", DEADLINE)
            assert container.read("/data/hello") == "one"
            if len(mounts) > 1:
                container.wait_until_readable("/sub/hello", DEADLINE)
                assert container.read("/sub/hello") == "inner"
        daemon.wait_until_watching(binds)
