"""A volume mounted inside another one comes back with it, and never as another volume."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodMount, PodVolume
from tests.lab import WAYS, in_lab

pytestmark = pytest.mark.kernel

DEADLINE = 30.0


@WAYS
@pytest.mark.parametrize("outer_first", [False, True])
@in_lab(timeout=120)
def test_what_the_kernel_unmounted_in_a_dead_volume(
    node: DemoNode, way: str, outer_first: bool
) -> None:
    """A look-up in the dead volume unmounts the inner one, and its device number is free again."""
    outer, inner = node.add_source("outer", files={"sub/x": "x"}), node.add_source("inner")
    volumes = [PodVolume("outer", outer), PodVolume("v", inner)]
    mounts = [PodMount("outer", "/data"), PodMount("v", "/data/sub")]
    container = node.start_container(node.add_pod("nested", volumes, mounts))
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(4, DEADLINE)
        inner.kill()
        outer.kill()
        daemon.wait_for(lambda d: all(b["verdict"] == "stale" for b in d["binds"]), DEADLINE)
        wait_until_unmounted(container, "/data/sub")
        first, second = (outer, inner) if outer_first else (inner, outer)
        first.restart()
        if not outer_first:
            daemon.wait_for(lambda d: is_back(d, inner.path), DEADLINE)
        second.restart()
        container.wait_until_readable("/data/sub/hello", DEADLINE)
        assert container.read("/data/sub/hello") == "inner"
        daemon.wait_for(lambda d: all(b["verdict"] == "healthy" for b in d["binds"]), DEADLINE)


def wait_until_unmounted(container: Container, path: str) -> None:
    """Look for it until the kernel does: the server's last answer on the directory must expire."""
    end = time.monotonic() + DEADLINE
    while f" {path} " in container.mountinfo():
        assert time.monotonic() < end, "the kernel leaves it there"
        with suppress(OSError):
            container.list(path)
        time.sleep(0.05)


def is_back(document: Any, path: str) -> bool:
    """True when the bind on the host shows the new file system."""
    binds = [b for b in document["binds"] if b["kind"] == "publish"]
    return any(b["source"]["path"] == path and b["verdict"] == "healthy" for b in binds)
