"""Who waits for a new mount, and who gets which error at once."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.keeper import sorting
from fusewatchd.keeper.access import Access, Group
from fusewatchd.keeper.blocked import Looked, Watch
from fusewatchd.keeper.fuse_requests import RESENT, FuseRequest, Kind
from fusewatchd.keeper.protocol import State
from fusewatchd.keeper.signals import Signal, pending
from fusewatchd.keeper.sorting import MAX_LOOKS_OF_POD, MAX_WAITING_OF_POD, Sorter

WEB, JOB, SERVER = "/kubepods/podweb", "/kubepods/podjob", "/kubepods/poddriver"
ACCESS = Access(
    pids_are_hosts=True, pods=Group([WEB, JOB]), deleting=Group([]), servers=Group([SERVER])
)


@dataclass
class World:
    """Callers by pid."""

    cgroup: dict[int, str] = field(default_factory=dict)
    signals: dict[int, Signal] = field(default_factory=dict)
    looks: list[int] = field(default_factory=list)

    def cgroups(self, pid: int) -> list[str]:
        return [self.cgroup[pid]] if pid in self.cgroup else []

    def signal(self, pid: int) -> Signal:
        self.looks.append(pid)
        return self.signals.get(pid, Signal.NONE)


WORLD = {10: f"{WEB}/c1", 11: f"{JOB}/c1", 12: SERVER, 13: "/system.slice/kubelet.service", 14: "/"}


def sorter(access: Access = ACCESS, **signals: Signal) -> tuple[Sorter, World]:
    world = World(dict(WORLD))
    return Sorter(access, world), world


def path(unique: int = 2, pid: int = 10, *, changes: bool = False) -> FuseRequest:
    return FuseRequest(unique, pid, Kind.PATH, changes=changes)


def interrupt(unique: int, pid: int = 10) -> FuseRequest:
    return FuseRequest(unique | 1, pid, Kind.INTERRUPT, unique)


@pytest.mark.parametrize(
    ("kind", "replies"),
    [
        (Kind.NOTHING, []),
        (Kind.DONE, [(2, 0)]),
        (Kind.DESCRIPTOR, [(2, errno.ENOTCONN)]),
        (Kind.PATH, []),
        (Kind.INTERRUPT, []),
    ],
)
@pytest.mark.parametrize("state", list(State))
def test_only_requests_by_path_wait(
    kind: Kind, replies: list[tuple[int, int]], state: State
) -> None:
    one = Sorter(ACCESS, World(dict(WORLD)), state)
    found = one.take(FuseRequest(2, 10, kind), 1.0)
    if kind is Kind.PATH and state is not State.HOLDING:
        error = errno.ESTALE if state is State.ANSWERING else errno.ENOTCONN
        assert found == [(2, error)]
    else:
        assert found == replies
    assert one.waiting == (kind is Kind.PATH and state is State.HOLDING)


@pytest.mark.parametrize(
    ("pid", "pids_are_hosts", "waits"),
    [
        (10, True, True),
        (11, True, True),
        (12, True, False),
        (13, True, False),
        (14, True, False),
        (99, True, False),
        (0, True, True),
        (0, False, True),
        (10, False, False),
    ],
)
def test_callers_outside_the_pods_do_not_wait(pid: int, pids_are_hosts: bool, waits: bool) -> None:
    one, _ = sorter(replace(ACCESS, pids_are_hosts=pids_are_hosts))
    assert one.take(path(pid=pid), 1.0) == ([] if waits else [(2, errno.ENOTCONN)])
    assert one.counts.waited == waits
    assert one.counts.host == (not waits)


def test_a_server_in_a_pod_that_uses_the_volume_does_not_wait_for_itself() -> None:
    one, _ = sorter(replace(ACCESS, servers=Group([f"{WEB}/c1"])))
    assert one.take(path(), 1.0) == [(2, errno.ENOTCONN)]


def test_all_who_wait_are_sent_to_the_new_mount_and_so_are_later_ones() -> None:
    one, _ = sorter()
    for unique in (2, 4, 6):
        one.take(path(unique), float(unique))
    assert one.oldest_seconds(7.0) == 5.0
    assert one.replaced(7.0) == [(2, errno.ESTALE), (4, errno.ESTALE), (6, errno.ESTALE)]
    assert one.take(path(8), 7.5) == [(8, errno.ESTALE)]
    assert one.take(path(10, pid=13), 7.5) == [(10, errno.ENOTCONN)]
    assert (one.counts.waited, one.counts.stale, one.counts.host) == (3, 4, 1)
    assert (one.counts.longest_seconds, one.waiting, one.oldest_seconds(9.0)) == (5.0, 0, 0.0)


def test_in_the_end_nobody_waits() -> None:
    one, _ = sorter()
    one.take(path(), 1.0)
    assert one.end(3.0) == [(2, errno.ENOTCONN)]
    assert one.take(path(4), 3.0) == [(4, errno.ENOTCONN)]
    assert one.end(3.0) == []
    assert one.counts.given_up == 2


@pytest.mark.parametrize(
    ("signal", "replies"),
    [
        (Signal.NONE, []),
        (Signal.KILL, [(2, errno.EINTR)]),
        (Signal.END, [(2, errno.ENOTCONN)]),
    ],
)
def test_a_signal_that_ends_the_caller_ends_its_wait(
    signal: Signal, replies: list[tuple[int, int]]
) -> None:
    one, world = sorter()
    one.take(path(), 1.0)
    world.signals[10] = signal
    assert one.take(interrupt(2), 1.1) == replies
    assert one.looks_again == (not replies)
    world.signals[10] = Signal.KILL
    assert one.look_again(1.2) == ([] if replies else [(2, errno.EINTR)])
    assert (one.waiting, one.looks_again, one.counts.signalled) == (0, False, 1)


def test_a_caller_that_cannot_be_looked_at_is_let_go_by_any_signal() -> None:
    one, world = sorter()
    one.take(path(pid=0), 1.0)
    assert one.take(interrupt(2, pid=0), 1.1) == [(2, errno.EINTR)]
    assert world.looks == []


def test_an_interrupt_of_what_is_answered_already_says_nothing() -> None:
    one, _ = sorter()
    assert one.take(interrupt(2), 1.0) == []


def test_a_pod_that_is_deleted_ends_its_own_callers_only() -> None:
    one, _ = sorter()
    one.take(path(2, pid=10), 1.0)
    one.take(path(4, pid=11), 1.0)
    one.take(path(6, pid=0), 1.0)
    assert one.allow(replace(ACCESS, deleting=Group([WEB])), 2.0) == [(2, errno.ENOTCONN)]
    assert one.take(path(8, pid=10), 2.0) == [(8, errno.ENOTCONN)]
    assert one.allow(replace(ACCESS, pods=Group([WEB])), 3.0) == [(4, errno.ENOTCONN)]
    assert (one.waiting, one.counts.deleted) == (1, 3)


def test_a_pod_that_fills_its_place_costs_itself_only() -> None:
    one, _ = sorter()
    for number in range(MAX_WAITING_OF_POD):
        assert one.take(path(2 * number, pid=10), 1.0) == []
    assert one.take(path(1 << 20, pid=10), 1.0) == [(1 << 20, errno.ENOTCONN)]
    assert one.take(path(1 << 21, pid=11), 1.0) == []
    assert one.counts.too_many == 1


def test_there_is_a_limit_for_all_pods_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "MAX_WAITING", 2)
    one, _ = sorter()
    assert [one.take(path(unique, pid), 1.0) for unique, pid in ((2, 10), (4, 11), (6, 0))] == [
        [],
        [],
        [(6, errno.ENOTCONN)],
    ]


def test_looks_at_callers_are_bounded_and_in_turn() -> None:
    one, world = sorter()
    count = MAX_LOOKS_OF_POD + 50
    for unique in range(2, 2 * count + 2, 2):
        world.cgroup[1000 + unique] = WEB
        one.take(path(unique, pid=1000 + unique), 1.0)
        one.take(interrupt(unique), 1.0)
    one.take(path(1 << 20, pid=11), 1.0)
    one.take(interrupt(1 << 20), 1.0)
    world.looks.clear()
    one.look_again(2.0)
    assert len(world.looks) == MAX_LOOKS_OF_POD + 1
    assert 11 in world.looks
    one.look_again(2.1)
    assert len(set(world.looks)) == count + 1


def test_who_may_hold_a_lock_that_others_wait_for_is_let_go() -> None:
    one, _ = sorter()
    one.take(path(2), 1.0)
    one.take(replace(path(4), may_lock=True), 1.0)
    assert one.free_locks(1.5) == [(4, errno.ENOTCONN)]
    assert one.take(replace(path(6), may_lock=True), 2.0) == [(6, errno.ENOTCONN)]
    # That did not help.
    assert one.free_locks(2.1) == [(2, errno.ENOTCONN)]
    assert one.take(path(8), 2.2) == []
    assert (one.counts.locked, one.counts.waited) == (3, 3)


@pytest.mark.parametrize(
    ("looks", "found"),
    [
        ([{}, {}], False),
        ([{5: (b"1",)}], False),
        ([{5: (b"1",)}, {5: (b"1",)}], True),
        ([{5: (b"1",)}, {5: (b"2",)}], False),
        ([{5: (b"1",)}, {6: (b"1",)}], False),
        ([{5: (b"1",)}, {}, {5: (b"1",)}], False),
        ([None], True),
    ],
)
def test_a_thread_that_stands_still_is_found(looks: list[Looked | None], found: bool) -> None:
    watch = Watch()
    assert [watch.finds(looked, set) for looked in looks][-1] is found


def test_a_caller_that_waits_itself_may_be_in_d() -> None:
    one, _ = sorter()
    one.take(path(pid=10), 1.0)
    watch = Watch()
    looked = {10: (b"1",)}
    assert [watch.finds(looked, one.callers) for _ in range(2)] == [False, False]
    assert watch.finds({**looked, 11: (b"1",)}, one.callers) is False
    assert watch.finds({**looked, 11: (b"1",)}, one.callers) is True


def test_what_was_in_flight_waits_only_where_doing_it_twice_changes_nothing() -> None:
    one, _ = sorter()
    assert one.take(path(RESENT | 2), 1.0) == []
    assert one.take(path(RESENT | 4, changes=True), 1.0) == [(RESENT | 4, errno.ECONNABORTED)]
    descriptor = FuseRequest(RESENT | 6, 10, Kind.DESCRIPTOR)
    assert one.take(descriptor, 1.0) == [(RESENT | 6, errno.ECONNABORTED)]
    assert one.take(path(8, changes=True), 1.0) == []
    assert (one.counts.in_flight, one.counts.waited) == (1, 2)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["path", "descriptor", "interrupt", "replaced", "look", "allow", "end"]
            ),
            st.integers(1, 6).map(lambda n: 2 * n),
            st.sampled_from([0, *WORLD]),
            st.sampled_from(list(Signal)),
        ),
        max_size=40,
    )
)
def test_every_request_is_answered_once_at_the_latest_in_the_end(
    steps: list[tuple[str, int, int, Signal]],
) -> None:
    one, world = sorter()
    asked: list[int] = []
    answered: list[int] = []
    for number, (step, other, pid, signal) in enumerate(steps):
        now, unique = float(number), 1000 + 2 * number
        world.signals[pid] = signal
        match step:
            case "path" | "descriptor":
                kind = Kind.PATH if step == "path" else Kind.DESCRIPTOR
                replies = one.take(FuseRequest(unique, pid, kind), now)
                asked.append(unique)
            case "interrupt":
                replies = one.take(interrupt(1000 + other), now)
            case "replaced":
                replies = one.replaced(now)
            case "look":
                replies = one.look_again(now)
            case "allow":
                replies = one.allow(replace(ACCESS, deleting=Group([WEB])), now)
            case _:
                replies = one.end(now)
        answered += [unique for unique, _ in replies]
    answered += [unique for unique, _ in one.end(99.0)]
    assert sorted(answered) == asked
    assert (one.waiting, one.looks_again) == (0, False)


@pytest.mark.parametrize(
    ("cgroups", "found"),
    [
        (["/a/b"], "/a/b"),
        (["/a/b/c/d"], "/a/b"),
        (["/a/bc"], None),
        (["/a"], None),
        (["/"], None),
        ([""], None),
        (["/x", "/a/b/c"], "/a/b"),
        (["/a/b/../../x"], "/a/b"),
        ([], None),
    ],
)
def test_a_cgroup_stands_for_all_below_it(cgroups: list[str], found: str | None) -> None:
    assert Group(["/a/b", "/", ""]).above(cgroups) == found


STATUS = b"Name:\tSigPnd: 100\nSigPnd:\t%016x\nShdPnd:\t%016x\nSigBlk:\t%016x\nSigIgn:\t0\n"
KILL, TERM, CHLD = 1 << 8, 1 << 14, 1 << 16


@pytest.mark.parametrize(
    ("own", "shared", "blocked", "signal"),
    [
        (0, 0, 0, Signal.NONE),
        (CHLD, CHLD, 0, Signal.NONE),
        (KILL, 0, 0, Signal.KILL),
        (0, KILL, KILL, Signal.KILL),
        (TERM | KILL, 0, 0, Signal.KILL),
        (TERM, 0, 0, Signal.END),
        (0, TERM, 0, Signal.END),
        (0, TERM, TERM, Signal.NONE),
        (1, 2, 0, Signal.END),
    ],
)
def test_pending_signals(own: int, shared: int, blocked: int, signal: Signal) -> None:
    assert pending(STATUS % (own, shared, blocked)) is signal
