"""How many layers the judge allows."""

from __future__ import annotations

import pytest

from fusewatchd.model.mounts import Device, Mount
from tests.model.depth import Surplus, dead_below, living_below, most_layers, stuck_below

DEAD, LIVE, NEXT = Device(0, 1), Device(0, 2), Device(0, 3)
BENEATH, ON_TOP = 1, 2


def stack_of(*layers: tuple[Device, str]) -> list[Mount]:
    return [
        Mount(number, number - 1, device, "/", "/data", options, 0, 0, "fuse.demofs", "s", "rw")
        for number, (device, options) in enumerate(layers, 1)
    ]


def most(base: int, stack: list[Mount], theirs: set[int], *, is_read_only: bool) -> int:
    foreign = {(m.mount_id, m.device) for m in stack if m.mount_id in theirs}
    foreign |= living_below(stack, foreign, base, is_live)
    return most_layers(stack, foreign, {}, base, is_read_only=is_read_only)


@pytest.mark.parametrize(
    ("is_read_only", "top", "expected"),
    [(True, "ro", 4), (True, "rw", 3), (False, "ro", 3)],
    ids=["ours-is-needed", "no-use", "nobody-needs-it"],
)
def test_one_layer_of_ours_makes_theirs_read_only(
    is_read_only: bool, top: str, expected: int
) -> None:
    """Two that are dead, the living one of somebody else, and one on top of that."""
    stack = stack_of((DEAD, "ro"), (DEAD, "ro"), (LIVE, "rw"), (LIVE, top))
    assert most(ON_TOP, stack, {3}, is_read_only=is_read_only) == expected


def test_it_is_one_however_many_of_theirs_it_covers() -> None:
    layers = [(DEAD, "ro"), (DEAD, "ro"), *[(LIVE, "rw")] * 3, (LIVE, "ro"), (LIVE, "ro")]
    assert most(ON_TOP, stack_of(*layers), {3, 4, 5}, is_read_only=True) == len(layers) - 1


def test_it_goes_with_theirs() -> None:
    """Nothing is allowed for a layer of somebody else that is not there any more."""
    stack = stack_of((DEAD, "ro"), (DEAD, "ro"), (LIVE, "ro"))
    assert most(ON_TOP, stack, set(), is_read_only=True) == 2


def is_live(device: Device) -> bool:
    return device == LIVE


@pytest.mark.parametrize(
    ("cover", "expected"), [(LIVE, 2), (NEXT, 1)], ids=["in-place-of-theirs", "next-server"]
)
def test_what_theirs_covered_stays_as_long_as_ours_is_what_took_its_place(
    cover: Device, expected: int
) -> None:
    stack = stack_of((DEAD, "ro"), (LIVE, "rw"))
    stuck = stuck_below(stack, {(2, LIVE)}, is_live)
    assert most_layers(stack, {(2, LIVE)}, stuck, BENEATH, is_read_only=True) == 2
    now = stack_of((DEAD, "ro"), (cover, "ro"))
    assert most_layers(now, set(), stuck, BENEATH, is_read_only=True) == expected
    assert most_layers(now, set(), stuck, BENEATH, is_read_only=False) == 1


@pytest.mark.parametrize(
    ("below", "options"), [(LIVE, "rw"), (DEAD, "ro")], ids=["living", "as-it-shall-be"]
)
def test_what_can_be_taken_away_is_not_stuck(below: Device, options: str) -> None:
    stack = stack_of((below, "ro"), (LIVE, options))
    assert not stuck_below(stack, {(2, LIVE)}, is_live)


def test_beneath_nothing_of_ours_is_on_top() -> None:
    stack = stack_of((LIVE, "rw"), (LIVE, "ro"))
    assert most(BENEATH, stack, {1}, is_read_only=True) == 2
    assert most(BENEATH, stack[:1], set(), is_read_only=True) == 1


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ((DEAD, LIVE), 1),
        ((DEAD, DEAD, DEAD, LIVE), 3),
        ((DEAD, DEAD, LIVE, DEAD, LIVE), 1),
        ((DEAD, LIVE, LIVE), 0),
        ((LIVE,), 0),
    ],
    ids=["one", "pile", "what-a-living-one-covers-stays", "living", "alone"],
)
def test_dead_layers_are_those_right_below_the_top(devices: list[Device], expected: int) -> None:
    stack = stack_of(*((device, "rw") for device in devices))
    assert len(dead_below(stack, {DEAD})) == expected


def layers(*numbers: int) -> set[tuple[int, Device]]:
    return {(number, LIVE) for number in numbers}


def test_a_peer_that_was_left_takes_each_of_theirs_once_more() -> None:
    """Three binds over a place that has one more layer there than on the host."""
    surplus = Surplus()
    surplus.add(layers(3), layers(13))
    surplus.add(layers(4, 5, 6), layers(14, 15))
    surplus.add(layers(*range(7, 13)), layers(*range(16, 20)))
    assert surplus.left(layers(*range(1, 13))) == 3


def test_what_others_mounted_alike_is_no_surplus() -> None:
    surplus = Surplus()
    surplus.add(layers(3, 4), layers(13, 14))
    surplus.add(layers(5), layers(15, 16))
    assert surplus.left(layers(*range(9))) == 0


def test_a_surplus_makes_no_room_for_others_when_it_is_gone() -> None:
    surplus = Surplus()
    surplus.add(layers(3, 4, 5), layers(13))
    assert surplus.left(layers(1, 2, 5)) == 1
    assert surplus.left(layers(1, 2, 3, 4, 5)) == 1
    assert surplus.left(layers(1, 2)) == 0
