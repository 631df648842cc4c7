"""The mount table kept up to date, by fanotify and by poll, against what mountinfo says."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import selectors
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from fusewatchd.demo.node.world import PrivateWorld
from fusewatchd.linux import statmount, syscalls
from fusewatchd.linux.syscalls import closing_fd, mount
from fusewatchd.model.mount_table import MountTable, parse_mount_table
from fusewatchd.observe.mounts import table_reader
from fusewatchd.observe.mounts.fanotify import MountEvent, MountEventKind, parse_events
from fusewatchd.observe.mounts.table_reader import MountTableSource
from tests.features import Feature, lacking, needs
from tests.integration.test_watch_statmount import refuse
from tests.lab import run_in_world

MS_MOVE = 0x2000
HAS_EVENTS = Feature.STATMOUNT not in lacking()


def read_table() -> MountTable:
    return parse_mount_table(Path("/proc/self/mountinfo").read_bytes())


def without_unique_ids(table: MountTable) -> MountTable:
    return MountTable.of(replace(mount, unique_id=0) for mount in table)


def unmount_all(lab: str) -> None:
    """Leave nothing in the lab: what was hidden by a detached mount takes another round."""
    for _ in range(500):
        inside = read_table().below(lab)
        if not inside:
            return
        for mount_ in reversed(inside):
            try:
                syscalls.umount2(mount_.mount_point, syscalls.MNT_DETACH)
            except OSError as exc:
                if exc.errno not in (errno.EINVAL, errno.ENOENT):
                    raise


def directory(lab: str, name: str) -> str:
    path = os.path.join(lab, name)
    os.makedirs(path, exist_ok=True)
    return path


def tmpfs(lab: str, name: str) -> str:
    path = directory(lab, name)
    mount("t", path, "tmpfs", 0)
    return path


class Clock:
    """Stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


needs_events = needs(Feature.MOUNT_EVENTS)


@pytest.fixture(
    params=[pytest.param(True, id="fanotify", marks=needs_events), pytest.param(False, id="poll")]
)
def use_fanotify(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def in_world(use_fanotify: bool, body: Callable[[str, MountTableSource, Clock], Any]) -> Any:
    """Run a body with a source that never has to wait between updates."""

    def with_source(world: PrivateWorld) -> Any:
        clock = Clock()
        with contextlib.closing(MountTableSource(use_fanotify=use_fanotify, clock=clock)) as source:
            assert source.uses_fanotify == use_fanotify
            value = body(world.lab, source, clock)
        unmount_all(world.lab)
        return value

    return run_in_world(with_source)


# ------------------------------------------------------------------------ one change


def test_first_table_is_complete(use_fanotify: bool) -> None:
    def body(lab: str, source: MountTableSource, clock: Clock) -> None:
        assert source.drain()
        assert source.due_at is not None
        table = source.table()
        assert without_unique_ids(table) == read_table()
        assert not source.drain()
        assert source.due_at is None
        assert source.table() is table
        assert not source.audit()
        assert source.table() is table

    in_world(use_fanotify, body)


CHANGES: dict[str, Callable[[str], None]] = {
    "attach": lambda lab: mount("t", directory(lab, "new"), "tmpfs", 0),
    "detach": lambda lab: syscalls.umount2(f"{lab}/one"),
    "detach a tree": lambda lab: syscalls.umount2(f"{lab}/tree", syscalls.MNT_DETACH),
    "stack": lambda lab: mount("t", f"{lab}/one", "tmpfs", 0),
    "bind": lambda lab: mount(f"{lab}/one", directory(lab, "b"), None, syscalls.MS_BIND),
    "recursive bind": lambda lab: mount(
        f"{lab}/tree", directory(lab, "b"), None, syscalls.MS_BIND | syscalls.MS_REC
    ),
    "remount": lambda lab: mount(
        None, f"{lab}/one", None, syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY
    ),
    "super block remount": lambda lab: mount(
        None, f"{lab}/one", None, syscalls.MS_REMOUNT, "size=1m"
    ),
    "mount_setattr": lambda lab: set_attributes(f"{lab}/one", syscalls.MOUNT_ATTR_NOSUID),
    "make private": lambda lab: set_attributes(f"{lab}/one", 0, syscalls.MS_PRIVATE),
    "move": lambda lab: mount(f"{lab}/private/tree", f"{lab}/private/place", None, MS_MOVE),
    "beneath": lambda lab: attach_beneath(f"{lab}/tree", f"{lab}/one"),
    "take the layer below": lambda lab: take_layer_below(lab),
    "last peer goes": lambda lab: syscalls.umount2(f"{lab}/group"),
    "bind and remount": lambda lab: bind_read_only(lab),
    "attach and detach": lambda lab: mount_briefly(lab),
    "replace, old id reused": lambda lab: mount_anew(lab),
}


def bind_read_only(lab: str) -> None:
    mount(f"{lab}/one", directory(lab, "b"), None, syscalls.MS_BIND)
    flags = syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY
    mount(None, f"{lab}/b", None, flags)


def mount_briefly(lab: str) -> None:
    syscalls.umount2(tmpfs(lab, "brief"))


def mount_anew(lab: str) -> None:
    syscalls.umount2(f"{lab}/one")
    tmpfs(lab, "one")


def furnish(lab: str) -> None:
    for name in ("one", "tree", "tree/inner", "stack", "stack", "group", "private"):
        tmpfs(lab, name)
    mount(f"{lab}/group", directory(lab, "slave"), None, syscalls.MS_BIND)
    mount(None, f"{lab}/slave", None, syscalls.MS_SLAVE)
    # A mount may be moved only from below a private one.
    mount(None, f"{lab}/private", None, syscalls.MS_PRIVATE)
    for name in ("tree", "tree/inner"):
        tmpfs(f"{lab}/private", name)
    directory(lab, "private/place")


def set_attributes(target: str, attributes: int, propagation: int = 0) -> None:
    with closing_fd(os.open(target, os.O_PATH)) as fd:
        syscalls.mount_setattr(fd, attributes, propagation=propagation)


def attach_beneath(source: str, target: str) -> None:
    flags = syscalls.OPEN_TREE_CLONE
    with closing_fd(syscalls.open_tree(syscalls.AT_FDCWD, source, flags)) as clone:
        syscalls.mount_setattr(clone, propagation=syscalls.MS_PRIVATE)
        with closing_fd(os.open(target, os.O_PATH)) as place:
            syscalls.move_mount(clone, place, syscalls.MOVE_MOUNT_BENEATH)


def take_layer_below(lab: str) -> None:
    """Unmount a slave's copy from beneath another mount, as propagation does."""
    peer = tmpfs(lab, "peer")
    mount(peer, directory(lab, "copy"), None, syscalls.MS_BIND)
    os.mkdir(f"{peer}/x")
    mount("t", f"{peer}/x", "tmpfs", 0)
    attach_beneath(f"{lab}/one", f"{lab}/copy/x")
    syscalls.umount2(f"{peer}/x")


CHANGE_NEEDS = {
    "mount_setattr": [Feature.MOUNT_SETATTR],
    "make private": [Feature.MOUNT_SETATTR],
    "beneath": [Feature.BENEATH],
    "take the layer below": [Feature.BENEATH],
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs(*CHANGE_NEEDS.get(name, []))) for name in CHANGES]
)
def test_one_change(use_fanotify: bool, name: str) -> None:
    def body(lab: str, source: MountTableSource, clock: Clock) -> None:
        furnish(lab)
        before = source.table()
        assert not source.drain()
        CHANGES[name](lab)
        assert source.drain()
        after = source.table()
        assert without_unique_ids(after) == read_table()
        assert after != before or name in ("attach and detach", "make private")
        assert unique_ids_are_right(after)
        assert not source.audit()

    in_world(use_fanotify, body)


def unique_ids_are_right(table: MountTable) -> bool:
    if not HAS_EVENTS:
        return all(mount.unique_id == 0 for mount in table)
    described = map(statmount.statmount, statmount.listmount())
    return {m.mount_id: m.unique_id for m in described} == {m.mount_id: m.unique_id for m in table}


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))]
)
def test_any_sequence_of_changes(use_fanotify: bool, seed: int) -> None:
    """Mounts, binds, unmounts and flags at random; looked at now and then."""

    def body(lab: str, source: MountTableSource, clock: Clock) -> int:
        chance = random.Random(seed)
        places = [directory(lab, f"{a}/{b}") for a in "abc" for b in "xy"]
        places += [directory(lab, a) for a in "abc"]
        furnish(lab)
        applied = 0
        for _ in range(150):
            if chance.random() < 0.2:
                clock.now += table_reader.SETTLE_SECONDS
                check(source)
            with contextlib.suppress(OSError):
                if change_something(chance, places) is Changed.FLAGS:
                    source.table()
                    clock.now += table_reader.SETTLE_SECONDS
                    check(source)
            if chance.random() < 0.3:
                applied += 1
                check(source)
        check(source)
        return applied

    assert in_world(use_fanotify, body) > 10


def check(source: MountTableSource) -> None:
    table = source.table()
    held, real = set(without_unique_ids(table)), set(read_table())
    assert held - real == real - held == set()
    assert unique_ids_are_right(table)


class Changed(Enum):
    MOUNTS = "mounts"
    FLAGS = "flags"


def change_something(chance: random.Random, places: list[str]) -> Changed:
    place, other = chance.choice(places), chance.choice(places)
    if len(read_table()) > 400:
        syscalls.umount2(place, syscalls.MNT_DETACH)
        return Changed.MOUNTS
    kind = chance.randrange(8)
    if kind in (0, 1):
        mount("t", place, "tmpfs", 0)
        for name in "xy":
            os.makedirs(f"{place}/{name}", exist_ok=True)
    elif kind == 2:
        mount(other, place, None, syscalls.MS_BIND | chance.choice([0, syscalls.MS_REC]))
    elif kind in (3, 4):
        syscalls.umount2(place, syscalls.MNT_DETACH)
    elif kind == 5:
        propagation = chance.choice([syscalls.MS_PRIVATE, syscalls.MS_SLAVE, syscalls.MS_SHARED])
        set_attributes(place, chance.choice([0, syscalls.MOUNT_ATTR_NODEV]), propagation)
        return Changed.FLAGS
    elif kind == 6:
        attach_beneath(other, place)
    else:
        mount(place, other, None, MS_MOVE)
    return Changed.MOUNTS


@needs_events
def test_flags_that_changed_along_with_a_mount_are_read_soon() -> None:
    def body(lab: str, source: MountTableSource, clock: Clock) -> list[object]:
        furnish(lab)
        source.table()
        CHANGES["remount"](lab)
        tmpfs(lab, "new")
        first = source.table()
        due = source.due_at
        assert due is not None
        clock.now = due
        second = source.table()
        assert without_unique_ids(second) == read_table()
        return [
            first.top_at(f"{lab}/new") is not None,
            due - 1000.0 <= table_reader.SETTLE_SECONDS,
            source.due_at,
            source.audit(),
        ]

    assert in_world(True, body) == [True, True, None, False]


# -------------------------------------------------------------- waking up and resting


@pytest.mark.parametrize(
    "selector", [selectors.EpollSelector, selectors.PollSelector, selectors.SelectSelector]
)
def test_every_selector_wakes_for_every_change(
    use_fanotify: bool, selector: type[selectors.BaseSelector]
) -> None:
    def body(lab: str, source: MountTableSource, clock: Clock) -> None:
        source.table()
        with contextlib.closing(selector()) as chosen:
            chosen.register(source, selectors.EVENT_READ)
            source.drain()
            for number in range(20):
                tmpfs(lab, f"n{number}")
                assert chosen.select(timeout=20), f"change {number} woke nobody"
                assert source.drain(), f"change {number} was lost"
                assert source.table().top_at(f"{lab}/n{number}")
                assert not source.drain()
                # Nothing more is announced, so the loop does not spin.
                assert not chosen.select(timeout=0) or not chosen.select(timeout=0)

    in_world(use_fanotify, body)


def test_flags_alone_wake_too(use_fanotify: bool) -> None:
    def body(lab: str, source: MountTableSource, clock: Clock) -> None:
        furnish(lab)
        source.table()
        with contextlib.closing(selectors.DefaultSelector()) as chosen:
            chosen.register(source, selectors.EVENT_READ)
            source.drain()
            CHANGES["remount"](lab)
            assert chosen.select(timeout=20)
            assert source.drain()
        top = source.table().top_at(f"{lab}/one")
        assert top is not None and top.is_read_only

    in_world(use_fanotify, body)


class SlowClock(Clock):
    """Every look at it costs ``step`` seconds, so that an update seems to take time."""

    step = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_updates_rest_in_proportion_to_their_cost(use_fanotify: bool) -> None:
    def body(world: PrivateWorld) -> Any:
        clock = SlowClock()
        updates, table = 0, None
        with contextlib.closing(MountTableSource(use_fanotify=use_fanotify, clock=clock)) as source:
            source.table()
            clock.now += 100.0
            began = clock.now
            for number in range(800):  # one change a millisecond
                tmpfs(world.lab, f"n{number % 500}")
                if number >= 400:
                    syscalls.umount2(f"{world.lab}/n{number - 400}")
                assert source.drain()
                clock.step = 0.010  # an update looks twice in between: it costs 10 ms
                new = source.table()
                clock.step = 0.0
                updates += new is not table
                table = new
                clock.now += 0.001
            spent = clock.now - began
            due = source.due_at
            assert due is not None and due > clock.now
            clock.now = due
            last = source.table()
            assert not source.drain()
            assert without_unique_ids(last) == read_table()
        unmount_all(world.lab)
        return [updates, spent]

    updates, spent = run_in_world(body)
    assert updates >= 10
    assert updates * 0.010 * (1 + table_reader.REST_FACTOR) <= spent * 1.2


def test_the_rest_is_bounded() -> None:
    def body(world: PrivateWorld) -> list[float]:
        clock = SlowClock()
        with contextlib.closing(MountTableSource(use_fanotify=False, clock=clock)) as source:
            clock.step = 5.0
            source.table()
            clock.step = 0.0
            tmpfs(world.lab, "t")
            assert source.drain()
            due = source.due_at
            assert due is not None
            before = source.table()
            unchanged = source.table() is before
            clock.now = due
            changed = source.table() is not before
        unmount_all(world.lab)
        return [due - clock.now, float(unchanged), float(changed)]

    assert run_in_world(body) == [0.0, 1.0, 1.0]


# ---------------------------------------------------------------- overflow and audit


@needs_events
def test_a_burst_is_read_at_once_instead_of_one_by_one() -> None:
    def body(lab: str, source: MountTableSource, clock: Clock) -> None:
        source.table()
        for number in range(table_reader.MAX_EVENTS + 10):
            tmpfs(lab, f"n{number}")
        assert source.drain()
        table = source.table()
        assert without_unique_ids(table) == read_table()
        assert not source.drain()

    in_world(True, body)


@needs_events
def test_lost_records_lead_to_a_full_read() -> None:
    def body(lab: str, source: MountTableSource, clock: Clock) -> None:
        source.table()
        limit = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())
        base = tmpfs(lab, "base")
        for _ in range(limit // 2 + 10):
            mount("t", base, "tmpfs", 0)
            syscalls.umount2(base, syscalls.MNT_DETACH)
        mount("t", directory(lab, "last"), "tmpfs", 0)
        table = source.table()
        assert without_unique_ids(table) == read_table()
        assert table.top_at(f"{lab}/last")

    in_world(True, body)


def test_an_audit_finds_what_the_kernel_does_not_announce(use_fanotify: bool) -> None:
    def body(lab: str, source: MountTableSource, clock: Clock) -> list[object]:
        furnish(lab)
        above = directory(lab, "above")
        tmpfs(lab, "above/below")
        source.table()
        calm = source.audit()
        os.rename(above, f"{lab}/renamed")
        announced = source.drain()
        found = source.audit()
        right = without_unique_ids(source.table()) == read_table()
        tmpfs(lab, "new")
        announced_change = source.audit()
        included = source.table().top_at(f"{lab}/new") is not None
        return [calm, announced, found, right, announced_change, included]

    assert in_world(use_fanotify, body) == [False, False, True, True, False, True]


@needs_events
def test_records_that_do_not_fit_are_not_applied() -> None:
    def body(lab: str, source: MountTableSource, clock: Clock) -> list[bool]:
        furnish(lab)
        table = source.table()
        known = {mount.unique_id: mount.mount_id for mount in table}
        top = table.top_at(f"{lab}/one")
        assert top is not None
        one = top.unique_id
        other = table.with_changes((), [replace(top, parent_id=1)])
        incomplete = table.with_changes((), [replace(top, mount_id=10**6)])
        kind = MountEventKind
        cases = [
            (table, [MountEvent(kind.ATTACHED, one)], True),  # seen already by a full read
            (table, [MountEvent(kind.DETACHED, 2**40)], True),  # came and went unseen
            (table, [MountEvent(kind.ATTACHED, 2**40)], True),
            (table, [MountEvent(kind.MOVED, one)], False),
            (table, [MountEvent(kind.OVERFLOW, 0)], False),
            (other, [MountEvent(kind.ATTACHED, one)], False),
            (incomplete, [], False),
        ]
        return [
            (table_reader.changes_of(held, events, known) is not None) is fits
            for held, events, fits in cases
        ]

    assert in_world(True, body) == [True] * 7


@needs(Feature.STATMOUNT)
def test_only_a_mount_that_was_there_all_the_time_gets_its_unique_id() -> None:
    def body(world: PrivateWorld) -> list[bool]:
        stays, goes = tmpfs(world.lab, "stays"), tmpfs(world.lab, "goes")
        ids = table_reader._UniqueIds(is_enabled=True)
        first = ids.of_all_through(ids.listed())
        before = ids.listed()
        table = read_table()
        syscalls.umount2(goes)
        tmpfs(world.lab, "goes")  # the kernel gives it the same 32-bit id again
        second = ids.of_all_through(before)
        kept, gone = table.top_at(stays), table.top_at(goes)
        assert kept is not None and gone is not None
        result = [
            kept.mount_id in first,
            gone.mount_id in first,
            second[kept.mount_id] == first[kept.mount_id],
            gone.mount_id in second,
        ]
        unmount_all(world.lab)
        return result

    assert run_in_world(body) == [True, True, True, False]


# -------------------------------------------------------------------- other namespaces


def test_a_file_of_another_namespace_or_of_nobody_gets_no_unique_ids(tmp_path: Path) -> None:
    path = tmp_path / "mountinfo"
    path.write_bytes(Path("/proc/self/mountinfo").read_bytes())
    # poll(2) of a plain file answers that it is always ready, epoll(7) refuses it.
    with pytest.raises(PermissionError):
        MountTableSource(str(path))


def test_another_namespace_is_read_without_unique_ids() -> None:
    def body(world: PrivateWorld) -> list[object]:
        ready, release = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                syscalls.unshare(syscalls.CLONE_NEWNS)
                mount("t", directory(world.lab, "theirs"), "tmpfs", 0)
                os.write(ready[1], b"x")
                os.read(release[0], 1)
            finally:
                os._exit(0)
        os.read(ready[0], 1)
        with contextlib.closing(MountTableSource(f"/proc/{pid}/mountinfo")) as source:
            table = source.table()
            result: list[object] = [
                source.uses_fanotify,
                any(mount.unique_id for mount in table),
                table.top_at(f"{world.lab}/theirs") is not None,
            ]
        os.write(release[1], b"x")
        os.waitpid(pid, 0)
        unmount_all(world.lab)
        return result

    assert run_in_world(body) == [False, False, True]


def test_a_kernel_without_statmount_is_followed_by_poll() -> None:
    """Before Linux 6.8; the calls are taken away by seccomp(2)."""

    def body(world: PrivateWorld) -> list[object]:
        refuse(statmount.SYS_STATMOUNT)
        refuse(statmount.SYS_LISTMOUNT)
        statmount.is_supported.cache_clear()
        furnish(world.lab)
        clock = Clock()
        with contextlib.closing(MountTableSource(clock=clock)) as source:
            first = source.table()
            tmpfs(world.lab, "new")
            announced = source.drain()
            table = source.table()
            uses_fanotify = source.uses_fanotify
            is_wrong = source.audit()
        result: list[object] = [
            uses_fanotify,
            announced,
            table == read_table() != first,
            any(mount.unique_id for mount in table),
            is_wrong,
        ]
        unmount_all(world.lab)
        return result

    assert run_in_world(body) == [False, True, True, False, False]


def test_no_descriptor_survives_close_or_leaks_to_programs(use_fanotify: bool) -> None:
    def body(world: PrivateWorld) -> list[object]:
        before = set(os.listdir("/proc/self/fd"))
        source = MountTableSource(use_fanotify=use_fanotify)
        opened = set(os.listdir("/proc/self/fd")) - before
        inherited = [fd for fd in opened if os.path.exists(f"/proc/self/fd/{fd}")
                     and os.get_inheritable(int(fd))]  # fmt: skip
        source.close()
        return [inherited, sorted(set(os.listdir("/proc/self/fd")) - before)]

    assert run_in_world(body) == [[], []]


# ---------------------------------------------------------------------------- records


RECORD = (
    (40).to_bytes(4, "little") + b"\x03\x00\x18\x00" + (0x01000000).to_bytes(8, "little")
    + b"\xff\xff\xff\xff\x00\x00\x00\x00" + b"\x07\x00\x10\x00\x00\x00\x00\x00"
    + (2147610192).to_bytes(8, "little")
)  # fmt: skip


def with_mask(mask: int) -> bytes:
    return RECORD[:8] + mask.to_bytes(8, "little") + RECORD[16:]


@pytest.mark.parametrize(
    ("data", "kinds"),
    [
        (b"", []),
        (RECORD, [MountEventKind.ATTACHED]),
        (with_mask(0x02000000), [MountEventKind.DETACHED]),
        (with_mask(0x03000000), [MountEventKind.MOVED]),
        (with_mask(0x4000), [MountEventKind.OVERFLOW]),
        (with_mask(0x100), [MountEventKind.OVERFLOW]),
        (RECORD + with_mask(0x02000000), [MountEventKind.ATTACHED, MountEventKind.DETACHED]),
        (b"\x18" + with_mask(0x4000)[1:24], [MountEventKind.OVERFLOW]),
        (RECORD[:24] + b"\x01" + RECORD[25:], [MountEventKind.OVERFLOW]),
        (b"\x00" * 40, [MountEventKind.OVERFLOW]),
    ],
)
def test_records(data: bytes, kinds: list[MountEventKind]) -> None:
    assert [event.kind for event in parse_events(data)] == kinds


def test_a_record_carries_the_unique_id() -> None:
    assert parse_events(RECORD) == [MountEvent(MountEventKind.ATTACHED, 2147610192)]
