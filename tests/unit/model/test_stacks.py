"""Walking the mounts stacked at one path, and which of them may go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusewatchd.act.drop_layers import Rules, count_to_drop
from fusewatchd.model.actions import OwnLayer
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount
from fusewatchd.model.stacks import Grounds, Pile, covered_by, ground_of, inside

DEAD, OLDER, LIVE = Device(0, 40), Device(0, 41), Device(0, 42)
RULES = Rules(frozenset({DEAD, OLDER}))
GROUND = Mount(1, 0, Device(8, 1), "/", "/", "rw", 1, 0, "ext4", "/dev/sda1", "rw", 101)


def layers(*devices: Device, point: str = "/t") -> list[Mount]:
    """Stack mounts of these devices, the lowest first."""
    return [
        Mount(n, n - 1, device, "/", point, "rw", 0, 0, "fuse.x", "x", "rw", 100 + n)
        for n, device in enumerate(devices, 2)
    ]


def pile(mounts: list[Mount], *more: Mount) -> Pile:
    table = MountTable.of([GROUND, *mounts, *more])
    return Pile((mounts[-1], *covered_by(mounts[-1], table)), lambda _: table)


def child(of: Mount, name: str, number: int = 9000) -> Mount:
    point = f"{of.mount_point}/{name}"
    return replace(
        GROUND, mount_id=number, parent_id=of.mount_id, mount_point=point, unique_id=number
    )


@pytest.mark.parametrize("depth", [1, 2, 64, 65, 66, 5000])
def test_the_ground_is_below_the_lowest_layer_however_many_there_are(depth: int) -> None:
    mounts = layers(*[DEAD] * depth)
    table = MountTable.of([GROUND, *mounts])
    assert ground_of(mounts[-1], table) == GROUND
    assert covered_by(mounts[-1], table) == tuple(reversed(mounts[:-1]))


def test_a_walk_ends_in_a_table_that_shows_a_cycle_or_lacks_a_mount() -> None:
    mounts = layers(DEAD, DEAD, DEAD)
    torn = MountTable.of([replace(mounts[0], parent_id=3), *mounts[1:]])
    assert len(covered_by(mounts[-1], torn)) == 2
    assert covered_by(mounts[-1], MountTable.of(mounts[1:])) == (mounts[1],)
    assert ground_of(mounts[-1], MountTable.of(mounts[1:])) is None
    root = replace(GROUND, parent_id=GROUND.mount_id)
    assert covered_by(root, MountTable.of([root])) == ()


def test_what_is_inside_a_layer_is_not_what_is_stacked_on_it() -> None:
    mounts = layers(DEAD, DEAD)
    low, deep = child(mounts[0], "a"), child(mounts[0], "a/b", 9001)
    deep = replace(deep, parent_id=low.mount_id)
    table = MountTable.of([GROUND, *mounts, low, deep])
    assert inside(mounts[0], table) == (low, deep)
    assert inside(mounts[1], table) == ()


def test_all_go_but_the_last() -> None:
    assert count_to_drop(pile(layers(*[DEAD, OLDER] * 50)), RULES) == 99
    assert count_to_drop(pile(layers(DEAD)), RULES) == 0


def test_a_living_layer_is_neither_shown_nor_passed() -> None:
    assert count_to_drop(pile(layers(DEAD, LIVE, DEAD, DEAD)), RULES) == 1
    own = replace(RULES, own=(OwnLayer(4, 104, LIVE),))
    assert count_to_drop(pile(layers(LIVE, LIVE, LIVE)), own) == 1


def test_no_umount_is_copied_to_what_a_living_layer_stands_on() -> None:
    """The lowest layer and the second one from above are peers, or the one has it as master."""
    for name in ("peer_group", "master"):
        mounts = layers(DEAD, LIVE, DEAD, DEAD, DEAD)
        mounts[0] = replace(mounts[0], **{name: 7})
        mounts[3] = replace(mounts[3], peer_group=7)
        assert count_to_drop(pile(mounts), RULES) == 0
        mounts[3] = replace(mounts[3], peer_group=8)
        assert count_to_drop(pile(mounts), RULES) == 2


def test_what_a_pod_sees_inside_is_inside_of_all_that_is_shown() -> None:
    mounts = layers(DEAD, DEAD, DEAD)
    seen = child(mounts[2], "cache")
    point = frozenset({(seen.mount_point, seen.device, seen.root)})
    assert count_to_drop(pile(mounts, seen), RULES, point) == 0
    assert count_to_drop(pile(mounts, seen), RULES) == 2, "it is made again"
    below = child(mounts[1], "cache", 9001)
    assert count_to_drop(pile(mounts, seen, below), RULES, point) == 1
    lowest = child(mounts[0], "cache", 9002)
    assert count_to_drop(pile(mounts, seen, lowest), RULES, point) == 0
    assert count_to_drop(pile(mounts, seen, below, lowest), RULES, point) == 2


def test_what_a_covered_layer_has_inside_is_no_reason_to_keep_it() -> None:
    mounts = layers(DEAD, DEAD, DEAD)
    assert count_to_drop(pile(mounts, child(mounts[1], "cache")), RULES) == 2


class Counted(MountTable):
    """Counts how often it is asked for a mount by its id."""

    asked = 0

    def by_id(self, mount_id: int) -> Mount | None:
        self.asked += 1
        return super().by_id(mount_id)


def test_what_all_layers_stand_on_is_found_in_one_walk() -> None:
    stack = layers(*([DEAD] * 500))
    inner = layers(*([LIVE] * 20), point="/t/a")
    inner = [replace(m, mount_id=m.mount_id + 5000, parent_id=m.parent_id + 5000) for m in inner]
    inner[0] = replace(inner[0], parent_id=stack[-1].mount_id)
    mounts = [GROUND, *stack, *inner]
    table = Counted.of(mounts)
    assert isinstance(table, Counted)
    for order in (mounts, mounts[::-1]):
        table.asked, grounds = 0, Grounds(table)
        found = [grounds.of(mount) for mount in order]
        assert table.asked <= 2 * len(mounts)
        assert found == [ground_of(mount, table) for mount in order]
