"""What hinders a replacement may be a dead file system on the way: it is named, by itself."""

from __future__ import annotations

from typing import Any

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.sources import ServerOptions
from tests.integration.test_hanging_paths import fuse_root, good_pods, nested, overlay_root
from tests.lab import WAYS, in_lab, run_fusewatchd

pytestmark = pytest.mark.kernel

DEADLINE = 30.0
NEVER_CACHED = ServerOptions(attr_timeout=0.0)


def path_dead(document: Any) -> list[Any]:
    """Return the binds whose last attempt ended so."""
    last = [(bind, bind["last_attempt"]) for bind in document["binds"]]
    return [bind for bind, attempt in last if attempt and attempt["reason"] == "path_dead"]


@WAYS
@pytest.mark.parametrize("kind", ["overlay", "fuse"])
@in_lab(timeout=120)
def test_the_root_of_a_container_is_dead(node: DemoNode, way: str, kind: str) -> None:
    """All others of the same source recover meanwhile."""
    root = node.add_source("root", files={"data/x": ""}, options=NEVER_CACHED)
    source = node.add_source("one")
    good = good_pods(node, source, 2)
    if kind == "overlay":
        made = overlay_root(node, root, source)
    else:
        made = fuse_root(node, root, source, "/data")
    with made, DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(6, DEADLINE)
        root.kill()
        source.kill()
        source.restart()
        for container in good:
            container.wait_until_readable("/srv/app/data/hello", DEADLINE)
        (bind,) = daemon.wait_for(path_dead, DEADLINE) and path_dead(daemon.status())
        fs_type = "overlay" if kind == "overlay" else "fuse.demofs"
        assert f"the root of the container ({fs_type})" in bind["last_attempt"]["detail"]
        said = run_fusewatchd("explain", bind["pod"]["uid"], *daemon._sets).stdout
        assert "the root of the container" in said and "system call" not in said
        assert f"the root of the container ({fs_type})" in daemon.log()
        assert "system_call" not in daemon.log()


@in_lab(timeout=120)
def test_a_volume_inside_a_dead_one(node: DemoNode) -> None:
    outer = node.add_source("outer", files={"sub/x": "x"}, options=NEVER_CACHED)
    source = node.add_source("one")
    container = nested(node, outer, source)
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(4, DEADLINE)
        outer.kill()
        source.kill()
        source.restart()
        document = daemon.wait_for(
            lambda d: sum(b["verdict"] == "healthy" for b in d["binds"]) == 1, DEADLINE
        )
        assert all(
            (bind["last_attempt"] or {"reason": ""})["reason"] != "system_call"
            for bind in document["binds"]
        )
        outer.restart()
        container.wait_until_readable("/data/sub/hello", DEADLINE)
        daemon.wait_until_watching(4, DEADLINE)
