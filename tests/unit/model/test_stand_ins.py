"""The mount table as it would be without stand-ins, and orders about what is really there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusewatchd.model.actions import (
    DetachDeadSource,
    DetachOrphan,
    Expect,
    Propagation,
    ReplaceMount,
)
from fusewatchd.model.ledger import Fact, Place
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount, TargetKey
from fusewatchd.model.stand_in import StandIn
from fusewatchd.model.stand_ins import as_before, merged, moved, real

HELD, DEAD, NEW = Device(0, 50), Device(0, 60), Device(0, 70)
SUPER = "rw,user_id=0,group_id=0,allow_other"


def mount(number: int, point: str, device: Device = HELD, **more: object) -> Mount:
    made = Mount(
        number, 1, device, "/", point, "rw", 0, 0, "fuse.demofs", "demofs", SUPER, 10_000 + number
    )
    return replace(made, **more)  # type: ignore[arg-type]


SOURCE = mount(20, "/mnt/source")
BIND = mount(21, "/pods/a/mount", root="/sub")
SOURCE_DEAD = mount(30, "/mnt/source", DEAD, peer_group=7)
BIND_DEAD = mount(31, "/pods/a/mount", DEAD, peer_group=8)
KNOWN = (
    StandIn(SOURCE, 30, SOURCE_DEAD.unique_id, DEAD),
    StandIn(BIND, 31, BIND_DEAD.unique_id, DEAD),
)


def table(*mounts: Mount) -> MountTable:
    return MountTable.of(mounts)


def test_a_stand_in_is_shown_as_what_it_took_the_place_of() -> None:
    shown, present = as_before(table(SOURCE_DEAD, BIND_DEAD), KNOWN)
    assert set(present) == {30, 31}
    for before, number in ((SOURCE, 30), (BIND, 31)):
        there = shown.by_id(number)
        assert there is not None
        assert (there.device, there.root, there.unique_id, there.mount_point) == (
            before.device, before.root, before.unique_id, before.mount_point,
        )  # fmt: skip
    assert not shown.on_device(DEAD) and len(shown.on_device(HELD)) == 2


def test_one_that_is_gone_or_anothers_changes_nothing() -> None:
    for there in (
        table(mount(5, "/elsewhere")),
        table(replace(SOURCE_DEAD, unique_id=99_999)),
        table(replace(SOURCE_DEAD, device=NEW)),
    ):
        shown, present = as_before(there, KNOWN)
        assert shown is there and not present


def test_an_id_that_a_table_lacks_for_a_moment_is_not_missed() -> None:
    _, present = as_before(table(replace(SOURCE_DEAD, unique_id=0)), KNOWN)
    assert set(present) == {30}
    elsewhere = replace(SOURCE_DEAD, unique_id=0, mount_point="/x")
    assert not as_before(table(elsewhere), KNOWN)[1]


def test_a_bind_of_a_stand_in_is_known_by_its_peers() -> None:
    new = mount(40, "/pods/b/mount", DEAD, peer_group=8)
    shown, present = as_before(table(SOURCE_DEAD, BIND_DEAD, new), KNOWN)
    there = shown.by_id(40)
    assert there is not None and (there.device, there.root) == (HELD, "/sub")
    assert there.unique_id == new.unique_id and 40 in present
    # Of several that show other directories, it could be of any.
    alone = replace(new, peer_group=0)
    shown, present = as_before(table(SOURCE_DEAD, BIND_DEAD, alone), KNOWN)
    assert shown.by_id(40) == alone and 40 not in present


def test_a_number_that_another_connection_got_is_not_mixed_up_with_it() -> None:
    living = mount(50, "/mnt/source2", HELD)
    shown, _ = as_before(table(SOURCE_DEAD, BIND_DEAD, living), KNOWN)
    assert shown.on_device(HELD) == (living,)
    assert {m.mount_id for m in shown.on_device(DEAD)} == {30, 31}
    bind = shown.by_id(31)
    assert bind is not None and bind.root == "/sub"
    # What is older than the stand-ins is still the held one.
    waits = mount(22, "/pods/c/mount", HELD)
    shown, _ = as_before(table(SOURCE_DEAD, BIND_DEAD, waits), KNOWN)
    assert len(shown.on_device(HELD)) == 3


@pytest.mark.parametrize("is_reused", [False, True])
def test_what_was_learned_of_a_mount_is_known_of_its_stand_in(is_reused: bool) -> None:
    fact = Fact(
        BIND.mount_point, 21, BIND.unique_id, HELD, "/sub", "fuse.demofs",
        (Place("/mnt/source", "/", SOURCE.unique_id),),
    )  # fmt: skip
    more = (mount(50, "/mnt/source2", HELD),) if is_reused else ()
    shown, present = as_before(table(SOURCE_DEAD, BIND_DEAD, *more), KNOWN)
    after = moved({21: fact}, shown, present)
    assert set(after) == {31}
    there = shown.by_id(31)
    assert there is not None and after[31].is_about(there)
    assert after[31].candidates == fact.candidates
    assert moved(after, shown, present) == after


def test_an_order_is_about_what_is_there_now() -> None:
    _, present = as_before(table(SOURCE_DEAD, BIND_DEAD), KNOWN)
    key = TargetKey(0, BIND.mount_point)
    virtual = replace(BIND, mount_id=31)
    order = ReplaceMount(
        key, Expect.of(virtual), Expect("/mnt/source", NEW), Propagation.OWN_GROUP, "sub", (HELD,)
    )
    done = real(order, present)
    assert isinstance(done, ReplaceMount)
    assert done.expect.is_met_by(BIND_DEAD) and not done.expect.is_met_by(BIND)
    assert done.subpath == "sub" and set(done.stale_devices) == {HELD, DEAD}
    detach = real(DetachOrphan(key, Expect.of(virtual)), present)
    assert detach.expect.is_met_by(BIND_DEAD)
    source = replace(SOURCE, mount_id=30)
    dead_source = DetachDeadSource(TargetKey(0, SOURCE.mount_point), Expect.of(source))
    assert real(dead_source, present).expect.is_met_by(SOURCE_DEAD)
    # One about another mount, though with the same number, is as it was.
    other = DetachOrphan(key, Expect.of(mount(31, BIND.mount_point, NEW, unique_id=5)))
    assert real(other, present) is other


def test_each_is_remembered_once() -> None:
    assert merged(KNOWN, KNOWN[:1], KNOWN) == KNOWN
