"""Dead mounts in the place of held ones, and the mount table as it would be without them.

The host must see what it sees today when a server ends: a dead mount that answers ENOTCONN at once.
So a dead file system takes the place of each mount of a held connection there.  For everything that
is decided, such a *stand-in* is the mount that it replaced: ``as_before`` shows a table so.  Only
what changes the node goes by the real one, ``real``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fusewatchd.model.actions import (
    Action,
    DetachDeadSource,
    DetachOrphan,
    DetachOwnLayer,
    DropLayers,
    Expect,
    ReplaceMount,
)
from fusewatchd.model.ledger import Fact, Facts
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount
from fusewatchd.model.stand_in import StandIn, StandIns


def as_before(table: MountTable, known: Iterable[StandIn]) -> tuple[MountTable, StandIns]:
    """Return the table with the mounts that stand-ins took the place of, and those that are there.

    A copy that was made of a stand-in counts as one itself: as one of the mount that it shows.

    The number of a connection that has ended may be another's.  It is, where a mount has it that
    is younger than the stand-ins of it: then those keep their own number.
    """
    present: dict[int, StandIn] = {}
    for one in known:
        mount = table.by_id(one.mount_id)
        if mount is not None and one.is_about(mount):
            present[one.mount_id] = one
    if not present:
        return table, present
    for device in {one.device for one in present.values()}:
        made = [one for one in present.values() if one.device == device]
        for mount in table.on_device(device):
            if mount.mount_id not in present:
                found = _bind_of(mount, made, table)
                present |= {mount.mount_id: found} if found is not None else {}
    reused = {
        was
        for was in {one.was.device for one in present.values()}
        if _is_reused(table, was, [o for o in present.values() if o.was.device == was])
    }
    shown = [_shown(table, number, one, reused) for number, one in present.items()]
    return table.with_changes((), shown), present


def _bind_of(mount: Mount, made: Iterable[StandIn], table: MountTable) -> StandIn | None:
    """Describe a copy that was made of a stand-in; None where it could be of several.

    A stand-in has one directory, its root: which one of the file system that meant, only the one
    tells that it was made of.
    """
    made = tuple(made)
    there = {one: table.by_id(one.mount_id) for one in made}
    groups = {one: real.peer_group for one, real in there.items() if real is not None}
    peers = [one for one in made if mount.peer_group and groups.get(one) == mount.peer_group]
    roots = {one.was.root for one in peers or made}
    if len(roots) != 1:
        return None
    was = replace(mount, device=made[0].was.device, root=roots.pop())
    return StandIn(was, mount.mount_id, mount.unique_id, mount.device)


def _is_reused(table: MountTable, device: Device, made: Iterable[StandIn]) -> bool:
    oldest = min(one.unique_id for one in made)
    return any(mount.unique_id > oldest for mount in table.on_device(device))


def merged(*several: Iterable[StandIn]) -> tuple[StandIn, ...]:
    """Return the stand-ins of all, each one once."""
    return tuple({one.unique_id: one for those in several for one in those}.values())


def _shown(table: MountTable, number: int, one: StandIn, reused: set[Device]) -> Mount:
    real = table.by_id(number)
    assert real is not None
    was = one.was
    return replace(
        real,
        device=one.device if was.device in reused else was.device,
        root=was.root,
        source=was.source,
        super_options=was.super_options,
        unique_id=was.unique_id,
    )


def moved(facts: Facts, table: MountTable, stand_ins: StandIns) -> Facts:
    """Return what is known of the mounts that were replaced as known of their stand-ins.

    ``table`` is one that ``as_before`` returned.
    """
    if not stand_ins:
        return facts
    by_unique: dict[int, Fact] = {f.unique_id: f for f in facts.values() if f.unique_id}
    after = dict(facts)
    for number, one in stand_ins.items():
        fact, mount = by_unique.get(one.was.unique_id), table.by_id(number)
        if fact is None or mount is None or fact.mount_point != mount.mount_point:
            continue
        if after.get(fact.mount_id) is fact:
            del after[fact.mount_id]
        after[number] = replace(fact, mount_id=number, device=mount.device)
    return after


def real(action: Action, stand_ins: StandIns) -> Action:
    """Return the action about what is mounted now, in the place of what was mounted before."""
    match action:
        case ReplaceMount() | DropLayers():
            expect = _real_expect(action.expect, stand_ins)
            if expect is action.expect:
                return action
            stale = tuple(sorted({*action.stale_devices, expect.device}))
            return replace(action, expect=expect, stale_devices=stale)
        case DetachOwnLayer() | DetachOrphan() | DetachDeadSource():
            expect = _real_expect(action.expect, stand_ins)
            return action if expect is action.expect else replace(action, expect=expect)
        case _:
            return action


def _real_expect(expect: Expect, stand_ins: StandIns) -> Expect:
    one = stand_ins.get(expect.mount_id)
    if one is None or expect.unique_id != one.was.unique_id:
        return expect
    return Expect(expect.mount_point, one.device, one.mount_id, one.unique_id)
