"""Lineage that lasts: whatever happened to daemon and source, the bind finds its own again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.sources import OldServer, Source
from fusewatchd.demo.timeouts import patient
from fusewatchd.linux import syscalls
from tests.lab import in_lab, pod_with_container

pytestmark = pytest.mark.kernel

DEADLINE = 10.0


def state_file(daemon: DaemonProcess) -> Path:
    return Path(daemon.values["state_dir"], "state.json")


def wait_for_state(daemon: DaemonProcess, condition: Callable[[Any], bool]) -> None:
    """Wait until what is written down is so."""
    end = time.monotonic() + patient(DEADLINE)
    file = state_file(daemon)
    while not (file.exists() and condition(json.loads(file.read_text()))):
        assert time.monotonic() < end, file.read_text() if file.exists() else "no file"
        time.sleep(0.02)


def points(state: Any) -> set[str]:
    return {fact["mount_point"] for fact in state["lineage"]}


def bind_outside(node: DemoNode, source: Source) -> str:
    """What an administrator does to have a look, and forgets."""
    place = os.path.join(node.lab, "outside", source.name)
    os.makedirs(place)
    syscalls.mount(source.path, place, None, syscalls.MS_BIND)
    return place


def sources_of(document: Any) -> set[str | None]:
    return {bind["source"]["path"] for bind in document["binds"]}


@in_lab(timeout=60)
def test_started_after_the_crash_it_finds_the_source_while_the_dead_one_is_there(
    node: DemoNode,
) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "p")
    bind_outside(node, source)
    source.kill()
    with DaemonProcess(node) as daemon:
        document = daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == 2)
        assert sources_of(document) == {source.path}
        assert "never seen healthy" in document["binds"][0]["source"]["why"]
        source.restart()
        container.wait_until_readable("/data/hello", DEADLINE)


def as_first_written(state: Any) -> None:
    """Leave out what the first version did not write yet."""
    for fact in state["lineage"]:
        del fact["tied"], fact["seen_working"]
        for place in fact["candidates"]:
            del place["unique_id"]
    del state["owners"]


@pytest.mark.slow
@pytest.mark.parametrize("change", [None, as_first_written], ids=["restarted", "upgraded"])
@in_lab(timeout=60)
def test_restarted_or_upgraded_between_crash_and_recovery(
    node: DemoNode, change: Callable[[Any], None] | None
) -> None:
    source = node.add_source("one")
    pod, container = pod_with_container(node, source, "p")
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(2)
        wait_for_state(daemon, lambda state: pod.volume_path("v") in points(state))
        daemon.kill()
        source.stop()  # nothing on the node says any more where it was
        if change is not None:
            state = json.loads(state_file(daemon).read_text())
            change(state)
            state_file(daemon).write_text(json.dumps(state))
        daemon.start()
        document = daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == 2)
        assert sources_of(document) == {source.path}
        assert "left out" not in daemon.log()
        source.start()
        container.wait_until_readable("/data/hello", DEADLINE)


@in_lab(timeout=60)
def test_a_bind_that_somebody_left_outside_is_not_taken_for_the_source(node: DemoNode) -> None:
    source = node.add_source("one")
    place = bind_outside(node, source)
    with DaemonProcess(node) as daemon:
        wait_for_state(daemon, lambda state: place in points(state))
        daemon.kill()
        # The pod, its server's death and the new server: all while nobody looked.
        _, container = pod_with_container(node, source, "p")
        source.kill()
        source.restart()
        daemon.start()
        container.wait_until_readable("/data/hello", DEADLINE)
        daemon.wait_for(lambda d: sources_of(d) == {source.path})


@pytest.mark.slow
@in_lab(timeout=60)
def test_what_a_foreign_layer_covered_is_known_when_it_comes_to_light(node: DemoNode) -> None:
    source = node.add_source("one")
    pod, container = pod_with_container(node, source, "p")
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(2)
        source.kill()
        source.restart()  # from here on nothing propagates between bind and source
        daemon.wait_for(lambda d: all(b["last_recovery"] for b in d["binds"]))
        bind = pod.volume_path("v")
        syscalls.mount(source.path, bind, None, syscalls.MS_BIND)
        daemon.wait_for(lambda d: any(b["depth"] == 2 for b in d["binds"]))
        source.restart(old=OldServer.DRAINING)
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["superseded"] == 2)
        syscalls.umount2(bind, syscalls.MNT_DETACH)
        daemon.wait_for(lambda d: all(b["depth"] == 1 for b in d["binds"]))
        source.draining[0].kill()
        container.wait_until_readable("/data/hello", DEADLINE)


@pytest.mark.slow
@in_lab(timeout=60)
def test_what_is_known_of_a_volume_goes_with_it(node: DemoNode) -> None:
    source = node.add_source("one")
    pod, _ = pod_with_container(node, source, "p")
    with DaemonProcess(node) as daemon:
        wait_for_state(daemon, lambda state: points(state) == {source.path, pod.volume_path("v")})
        node.remove_pod(pod)
        wait_for_state(daemon, lambda state: points(state) == {source.path})
        source.stop()
        wait_for_state(daemon, lambda state: not state["lineage"] and not state["containers"])
