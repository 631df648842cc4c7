"""A driver is one file: the example of CONTRIBUTING.md in a copy of the package, and no other."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import fusewatchd
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodMount, PodVolume
from tests.lab import in_lab

EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROOT = 'ROOT = "/var/lib/acmefs"'


@in_lab(timeout=60)
def test_a_driver_is_added_by_one_file(node: DemoNode) -> None:
    package = Path(fusewatchd.__file__).parent
    (example,) = EXAMPLE.findall((package.parent / "CONTRIBUTING.md").read_text())
    assert ROOT in example
    copy = Path(node.lab, "copy", "fusewatchd")
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    place = os.path.join(node.lab, "acmefs")
    (copy / "drivers/acmefs.py").write_text(example.replace(ROOT, f"ROOT = {place!r}"))

    source = node.add_source("one", path=os.path.join(place, "handle-1"))
    volume = PodVolume("v", source, driver="csi.acme.example", handle="handle-1")
    container = node.start_container(node.add_pod("app", [volume], [PodMount("v", "/data")]))
    source.kill()
    source.restart()
    environment = python_environment(str(copy.parent))
    with DaemonProcess(node, environment=environment) as daemon:
        container.wait_until_readable("/data/hello", 10.0)
        document = daemon.wait_until_watching(2)
    assert {bind["source"]["rule"] for bind in document["binds"]} == {"acmefs"}
