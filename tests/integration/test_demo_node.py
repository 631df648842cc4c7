"""The demo node itself: what the other integration tests stand on."""

from __future__ import annotations

import errno
import os
import time

import pytest

from fusewatchd.demo.container import Access, MountPropagation, UserNamespace
from fusewatchd.demo.node import DemoNode, ForeignKind
from fusewatchd.demo.pods import PodMount, PodVolume, VolumeKind
from fusewatchd.demo.sources import OldServer, ServerOptions
from tests.lab import in_lab


@in_lab(timeout=60)
def test_reads(node: DemoNode) -> None:
    source = node.add_source("one")
    pod = node.add_pod("app", [PodVolume("v", source)], [PodMount("v", "/data")])
    assert node.start_container(pod).read("/data/hello") == "one"
