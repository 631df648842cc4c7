"""A pod whose paths hang by the dozen costs itself: nobody else waits, and few workers are held."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fusewatchd.act.replace_mount import carry_out
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodMount, PodVolume
from fusewatchd.demo.node.sources import Source
from fusewatchd.linux import syscalls
from fusewatchd.linux.mount_kernel import WouldAsk
from fusewatchd.model.actions import Expect, OutcomeStatus, Propagation, ReplaceMount
from fusewatchd.model.mount_table import MountTable, parse_mount_table
from fusewatchd.model.mounts import TargetKey
from fusewatchd.model.quota import OF_POD
from tests.features import best_way
from tests.lab import in_lab, real_kernel
from tests.memorycgroups import begin_in, remove
from tests.rooted import rooted

pytestmark = pytest.mark.kernel

DEADLINE = 60.0
NAMESPACES, TARGETS = 8, 5
FLOOR = 0.5
"""Seconds: on a machine that does other things as well less than that is no difference."""
READY_WORKERS = 3
"""The two that are kept, and one more that is at something or ends."""
SETTINGS = {"recovery.back_off_max_seconds": "1", "look_seconds": "3"}


def attack(stack: ExitStack, node: DemoNode, name: str, root: Source, source: Source) -> str:
    """Make a pod that sees its volume behind directories of another server; return its uid."""
    pod = node.add_pod(name, [PodVolume("v", source)], [PodMount("v", "/!0")])
    places = {f"/!{number}": pod.volume_path("v") for number in range(TARGETS)}

    def make(path: str) -> None:
        syscalls.mount(root.path, path, None, syscalls.MS_BIND)

    for _ in range(NAMESPACES):
        stack.enter_context(rooted(node, pod, make, places))
    return pod.uid


def backend(node: DemoNode, name: str) -> Source:
    return node.add_source(name, files={f"!{number}/x": "" for number in range(TARGETS)})


def victim(node: DemoNode, name: str, source: Source) -> Container:
    pod = node.add_pod(name, [PodVolume("v", source)], [PodMount("v", "/srv/app/data")])
    return node.start_container(pod)


def gaps(document: Any) -> list[str]:
    return [gap["source"] for gap in document["gaps"]]


def seconds_to_recover(sources: Sequence[Source], victims: Sequence[Container]) -> float:
    """Have all sources crash and come back; return how long it takes the last victim to read."""
    for source in sources:
        source.kill()
    for source in sources:
        source.restart()
    began = time.monotonic()
    for container in victims:
        container.wait_until_readable("/srv/app/data/hello", DEADLINE)
    return time.monotonic() - began


def is_whole(document: Any) -> bool:
    return all(bind["verdict"] == "healthy" for bind in document["binds"])


def mount_workers() -> int:
    """Count the mount workers, alive or held, by the name that they give themselves."""
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                comm = (entry / "comm").read_text().strip()
            except OSError:
                continue
            count += comm == "fusewatchd-moun"
    return count


def limited(document: Any) -> list[str]:
    return [o["resource"] for o in document["refused_owners"]]


@pytest.mark.parametrize("as_old_kernel", [False, True], ids=["", "old"])
@in_lab(timeout=200)
def test_forty_targets_of_one_pod(node: DemoNode, *, as_old_kernel: bool) -> None:
    root, shared, other = backend(node, "root"), node.add_source("one"), node.add_source("two")
    victims = [victim(node, "beside", shared), victim(node, "elsewhere", other)]
    with ExitStack() as stack:
        bad = attack(stack, node, "bad", root, shared)
        daemon = stack.enter_context(
            DaemonProcess(node, settings=SETTINGS, as_old_kernel=as_old_kernel)
        )
        binds = 5 + NAMESPACES * TARGETS
        daemon.wait_until_watching(binds, DEADLINE)
        usual = []
        for _ in range(3):
            usual.append(seconds_to_recover([shared, other], victims))
            daemon.wait_for(is_whole, DEADLINE)
        root.hold()
        try:
            time.sleep(1.2)  # so long the kernel believes what it knows of a path
            took = seconds_to_recover([shared, other], victims)
            assert took <= max(FLOOR, 3 * max(usual)), (took, usual)
            document = daemon.wait_for(lambda d: "workers" in limited(d), DEADLINE)
            (one,) = (o for o in document["refused_owners"] if o["resource"] == "workers")
            assert one["pod"]["uid"] == bad
            for _ in range(3):
                took = seconds_to_recover([shared, other], victims)
                assert took <= max(FLOOR, 3 * max(usual)), (took, usual)
                assert mount_workers() <= OF_POD.stuck_workers + READY_WORKERS
                time.sleep(1.0)
        finally:
            root.release()
        daemon.wait_for(is_whole, DEADLINE)
        daemon.wait_for(lambda d: not limited(d), DEADLINE)


# ------------------------------------------------------------------- no worker to be had


@contextmanager
def pids_cgroup() -> Iterator[Path]:
    """Give the directory of a new cgroup that counts processes."""
    parents = [Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")]
    parent = next((p for p in parents if (p / "cgroup.procs").exists()), None)
    if parent is None:
        pytest.skip("nothing counts processes in cgroups here")
    if (parent / "cgroup.subtree_control").exists():
        (parent / "cgroup.subtree_control").write_text("+pids")
    directory = parent / f"fusewatchd-test.{os.getpid()}.{secrets.token_hex(4)}"
    directory.mkdir()
    try:
        yield directory
    finally:
        remove(directory)


@in_lab(timeout=200)
def test_no_worker_is_to_be_had(node: DemoNode) -> None:
    root, shared, other = backend(node, "root"), node.add_source("one"), node.add_source("two")
    victims = [victim(node, "beside", shared), victim(node, "elsewhere", other)]
    with ExitStack() as stack:
        for number in range(3):
            attack(stack, node, f"bad{number}", root, shared)
        cgroup = stack.enter_context(pids_cgroup())
        daemon = stack.enter_context(DaemonProcess(node, settings=SETTINGS, by=begin_in(cgroup)))
        daemon.wait_until_watching(4 + 3 * (1 + NAMESPACES * TARGETS), DEADLINE)
        usual = seconds_to_recover([shared, other], victims)
        daemon.wait_for(is_whole, DEADLINE)
        (cgroup / "pids.max").write_text((cgroup / "pids.current").read_text())
        root.hold()
        try:
            time.sleep(1.2)
            for _ in range(4):
                took = seconds_to_recover([shared, other], victims)
                assert took <= max(FLOOR, 3 * usual), (took, usual)
                time.sleep(1.0)
            daemon.wait_for(lambda d: "workers" in gaps(d), DEADLINE)
            assert daemon.log().count("no mount worker: Resource temporarily unavailable") == 1
        finally:
            (cgroup / "pids.max").write_text("max")
            root.release()
        daemon.wait_for(lambda d: is_whole(d) and not gaps(d), DEADLINE)


# ----------------------------------------------------------------- what the kernel knows


KNOWS_WHAT_IS_CACHED = tuple(map(int, os.uname().release.split(".")[:2])) >= (5, 12)


@in_lab(timeout=60)
def test_a_mount_that_is_not_found_without_an_answer_is_left_until_that_is_allowed(
    node: DemoNode,
) -> None:
    """Of plain file systems the kernel knows the way to every mount; of others for a while."""
    root, source = backend(node, "root"), node.add_source("one")
    plain = node.add_pod("p", [PodVolume("v", source)], []).volume_path("v")
    behind = f"{root.path}/!0"
    syscalls.mount(source.path, behind, None, syscalls.MS_BIND)
    kernel = real_kernel(best_way())
    before = table()
    old, new = before.top_at(behind), before.top_at(source.path)
    assert old is not None and new is not None
    action = ReplaceMount(
        TargetKey(0, behind), Expect.of(old), Expect.of(new), Propagation.OWN_GROUP
    )
    time.sleep(1.2)
    try:
        for path in (plain, source.path):
            kernel.close(kernel.open_mount(path, may_ask=False))
        if KNOWS_WHAT_IS_CACHED:
            with pytest.raises(WouldAsk):
                carry_out(kernel, action, may_ask=False)
            assert table() == before
        assert carry_out(kernel, action).status is OutcomeStatus.RECOVERED
        # What was asked just now is known.
        kernel.close(kernel.open_mount(behind, may_ask=False))
    finally:
        syscalls.umount2(behind, syscalls.MNT_DETACH)


def table() -> MountTable:
    with open("/proc/self/mountinfo", "rb") as file:
        return parse_mount_table(file.read())
