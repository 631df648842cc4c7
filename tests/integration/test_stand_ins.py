"""Dead mounts in the place of held ones, on real mounts; the test holds the connections itself."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from fusewatchd.act.place_stand_ins import place_stand_ins
from fusewatchd.act.stand_in_journal import NotedStandIns, StandInJournal
from fusewatchd.act.take_descriptor import taken
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.sources import Source
from fusewatchd.linux import statmount, syscalls
from fusewatchd.linux.mount_kernel import Way
from fusewatchd.linux.procfs import process_start_time
from fusewatchd.model.actions import Expect, OutcomeStatus, PlaceStandIns
from fusewatchd.model.mount_table import MountTable, parse_mount_table
from fusewatchd.model.mounts import Device, Mount, TargetKey
from fusewatchd.model.stand_in import StandIn
from fusewatchd.model.stand_ins import as_before
from fusewatchd.model.verdicts import Reason
from tests.features import Feature, needs
from tests.integration.test_hung import connection_of
from tests.lab import in_lab, pod_with_container, real_kernel

pytestmark = [pytest.mark.kernel, needs(Feature.BENEATH), needs(Feature.STATMOUNT)]

_CLONE = 0x8004E500
"""<linux/fuse.h> ``FUSE_DEV_IOC_CLONE``."""
AT_ONCE = 1.0
LIMIT = 30.0
"""Then the connection is let go, whatever happens: callers must not wait for the test to end."""


@contextmanager
def held(source: Source) -> Iterator[None]:
    """Hold a clone of the connection for the length of a block, as a keeper does."""
    device = Device(0, connection_of(source))
    pid = source.server.pid
    start_time = process_start_time(pid)
    assert start_time is not None
    clone = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    with taken(device, pid, start_time) as found:
        assert found.is_of_host
        fcntl.ioctl(clone, _CLONE, found.descriptor.to_bytes(4, "little"))
    abort = f"/sys/fs/fuse/connections/{device.minor}/abort"

    def end() -> None:
        with open(abort, "w", encoding="ascii") as file:
            file.write("1")

    timer = threading.Timer(LIMIT, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        os.close(clone)


def table() -> MountTable:
    """Read the mount table with its unique ids."""
    ids = {m: u for u in statmount.listmount() for m in [statmount.statmount(u).mount_id]}
    with open("/proc/self/mountinfo", "rb") as file:
        return parse_mount_table(file.read(), None, ids)


def action_for(mounts: tuple[Mount, ...], *known: StandIn) -> PlaceStandIns:
    key = TargetKey(0, mounts[0].mount_point)
    return PlaceStandIns(key, Expect.of(mounts[0]), mounts, known)


def answer_of(path: str) -> int:
    """Return the errno of stat(2), which must not take long."""
    began = time.monotonic()
    try:
        os.stat(path)
    except OSError as exc:
        assert time.monotonic() - began < AT_ONCE
        return exc.errno or 0
    return 0


def all_of(source: Source) -> tuple[Mount, ...]:
    return table().on_device(Device(0, connection_of(source)))


@in_lab(timeout=60)
def test_every_mount_of_the_host_is_replaced_and_no_container_is(node: DemoNode) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "web")
    device = Device(0, connection_of(source))
    with held(source):
        mounts = all_of(source)
        assert len(mounts) == 2
        source.kill()
        noted: list[StandIn] = []
        done = place_stand_ins(real_kernel(Way.BENEATH), action_for(mounts), noted.append)
        assert done.status is OutcomeStatus.PLACED, done.detail
        assert done.stand_ins == tuple(noted)
        now = table()
        assert not now.on_device(device)
        for one in noted:
            there = now.by_id(one.mount_id)
            assert there is not None and one.is_about(there)
            assert len(now.stack_at(one.was.mount_point)) == 1
            assert (there.fs_type, there.source) == (one.was.fs_type, one.was.source)
            assert there.options == one.was.options
            assert bool(there.peer_group) == bool(one.was.peer_group)
            assert answer_of(one.was.mount_point) == errno.ENOTCONN
        assert len({one.device for one in noted}) == 1
        assert f"0:{device.minor} " in container.mountinfo()
        # For all that is decided, nothing has happened.
        shown, present = as_before(now, noted)
        assert {m.mount_point for m in shown.on_device(device)} == {m.mount_point for m in mounts}
        assert {m.unique_id for m in shown.on_device(device)} == {m.unique_id for m in mounts}
        assert set(present) == {one.mount_id for one in noted}


@in_lab(timeout=60)
def test_what_is_not_the_mount_that_was_seen_is_left_alone(node: DemoNode) -> None:
    source, other = node.add_source("one"), node.add_source("two")
    pod_with_container(node, source, "web")
    with held(source):
        mounts = all_of(source)
        source.kill()
        wrong = tuple(replace(mount, unique_id=mount.unique_id + 100_000) for mount in mounts)
        done = place_stand_ins(real_kernel(Way.BENEATH), action_for(wrong))
        assert (done.status, done.reason) == (OutcomeStatus.SKIPPED, Reason.RACED)
        (living,) = all_of(other)
        lie = replace(living, device=mounts[0].device)
        done = place_stand_ins(real_kernel(Way.BENEATH), action_for((lie,)))
        assert (done.status, done.reason) == (OutcomeStatus.SKIPPED, Reason.RACED)
        assert all_of(source) == mounts and all_of(other) == (living,)
        assert answer_of(living.mount_point) == 0


@in_lab(timeout=60)
def test_a_mount_with_something_inside_is_refused_and_the_others_are_replaced(
    node: DemoNode,
) -> None:
    source = node.add_source("one")
    pod_with_container(node, source, "web")
    os.mkdir(f"{source.path}/inner")
    syscalls.mount(None, source.path, None, syscalls.MS_PRIVATE)  # or it is inside the pod's, too
    with node_mount(f"{source.path}/inner"), held(source):
        mounts = all_of(source)
        source.kill()
        done = place_stand_ins(real_kernel(Way.BENEATH), action_for(mounts))
        assert (done.status, done.reason) == (OutcomeStatus.REFUSED, Reason.CHILD_MOUNT)
        left = {m.mount_point for m in all_of(source)}
        assert source.path in left and len(left) < len(mounts)


@contextmanager
def node_mount(path: str) -> Iterator[None]:
    syscalls.mount("inner", path, "tmpfs", 0, "size=64k")
    try:
        yield
    finally:
        syscalls.umount2(path, syscalls.MNT_DETACH)


class _Cut(Exception):
    """The worker ends here."""


@pytest.mark.parametrize("step", range(12))
@in_lab(timeout=60)
def test_a_worker_that_ends_at_any_step_leaves_what_the_next_one_finishes(
    node: DemoNode, step: int
) -> None:
    source = node.add_source("one")
    pod_with_container(node, source, "web")
    journal = StandInJournal(node.lab, "boot")
    noted = NotedStandIns(node.lab, "boot")
    kernel = real_kernel(Way.BENEATH)
    left = [step]
    for name in ("attach_beneath", "detach", "configure", "ids_of"):
        setattr(kernel, name, _cut_at(getattr(kernel, name), left))
    with held(source):
        mounts = all_of(source)
        source.kill()
        before = {m.mount_point for m in mounts}
        with suppress(_Cut):
            place_stand_ins(kernel, action_for(mounts), journal.note)
        now, present = as_before(table(), noted.recall())
        # Whatever is mounted there now, it is known what it was.
        fuse = [m for m in now.fuse_mounts() if m.mount_point in before]
        assert {m.device for m in fuse} == {mounts[0].device}
        rest = tuple(
            m
            for m in now.on_device(mounts[0].device)
            if m.mount_id not in present and now.top_at(m.mount_point) == m
        )
        if rest:
            done = place_stand_ins(
                real_kernel(Way.BENEATH), action_for(rest, *present.values()), journal.note
            )
            assert done.status is OutcomeStatus.PLACED, done.detail
        after = table()
        assert not after.on_device(mounts[0].device)
        for point in before:
            assert len(after.stack_at(point)) == 1
            assert answer_of(point) == errno.ENOTCONN
        shown, present = as_before(after, noted.recall())
        assert {m.unique_id for m in shown.on_device(mounts[0].device)} == {
            m.unique_id for m in mounts
        }


def _cut_at(call, left: list[int]):  # type: ignore[no-untyped-def]
    def cut(*args: object, **more: object) -> object:
        if not left[0]:
            left[0] -= 1
            raise _Cut
        left[0] -= 1
        return call(*args, **more)

    return cut


@in_lab(timeout=60)
def test_a_bind_of_a_stand_in_is_one_itself(node: DemoNode) -> None:
    source = node.add_source("one")
    pod_with_container(node, source, "web")
    device = Device(0, connection_of(source))
    with held(source):
        mounts = all_of(source)
        source.kill()
        done = place_stand_ins(real_kernel(Way.BENEATH), action_for(mounts))
        target = f"{node.lab}/new"
        os.mkdir(target)
        syscalls.mount(source.path, target, None, syscalls.MS_BIND)
        shown, present = as_before(table(), done.stand_ins)
        (bind,) = [m for m in shown.on_device(device) if m.mount_point == target]
        assert bind.root == "/" and bind.mount_id in present
        assert len(present) == len(mounts) + 1
        syscalls.umount2(target, syscalls.MNT_DETACH)
