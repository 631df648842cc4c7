"""Which dead mounts are looked for, and when, until the last process has let go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount, MountNamespace, NamespaceKind
from fusewatchd.model.outages import Incident
from fusewatchd.model.servers import Answer, Connection, DeadMount, Holder
from fusewatchd.observe.holders.targets import (
    FIRST_LOOK_SECONDS,
    FIRST_REST_SECONDS,
    LAST_REST_SECONDS,
    MAX_WATCHED,
    REST_FACTOR,
    HolderJob,
    HolderLook,
    Holdings,
)
from tests.unit.cycles import NEW, OLD, SOURCE, closed, cycle, incident, mount

INSIDE = 4026532001


def seen(
    at: float,
    mounts: Sequence[Mount] = (),
    inside: Sequence[Mount] = (),
    *,
    alive: Sequence[Device] = (NEW,),
    dead: Sequence[Device] = (OLD,),
    over: Sequence[Incident] = (),
) -> CycleReport:
    """A cycle that saw these mounts, and dead and living connections."""
    answers = dict.fromkeys(alive, Answer.ANSWERED) | dict.fromkeys(dead, Answer.DISCONNECTED)
    namespace = MountNamespace(
        INSIDE, 40, 1, NamespaceKind.CONTAINER, "uid-a", "c" * 64, tuple(inside)
    )
    made = cycle(at=at, closed=over, looked_at=at)
    snapshot = replace(
        made.snapshot,
        table=MountTable.of(list(mounts)),
        connections={d: Connection(d, answer) for d, answer in answers.items()},
        namespaces=(namespace,) if inside else (),
    )
    return replace(made, snapshot=snapshot, started_at=at, finished_at=at)


def recovered(device: Device = OLD, at: float = 20.0) -> Incident:
    return replace(closed(incident(), at), device=device)


def after_a_recovery() -> Holdings:
    """Two mounts on the host and one in a container were seen dead, then all was well."""
    book = Holdings()
    host = [mount("/a", OLD, 11), mount("/b", OLD, 12), mount(SOURCE, NEW, 13)]
    book.take_cycle(seen(19.0, host, [mount("/data", OLD, 21)]), [OLD])
    book.take_cycle(seen(20.0, dead=(), over=[recovered()]), [])
    return book


def holder(pid: int = 7, device: Device = OLD) -> Holder:
    return Holder(device, pid, 1, "app", 1)


def look(
    book: Holdings, now: float, *holders: Holder, count: int | None = None, unseen: int = 0
) -> HolderJob:
    wanted = book.wanted(now)
    assert wanted is not None
    counts = [sum(h.device == m.device for h in holders) for m in wanted.dead]
    if count is not None:
        counts = [count]
    book.take_look(wanted, HolderLook(tuple(holders), tuple(counts), unseen, 0.0), now, now)
    return wanted


def test_all_mounts_ever_seen_are_looked_for_a_moment_after_the_recovery() -> None:
    book = after_a_recovery()
    assert book.next_due() == 20.0 + FIRST_LOOK_SECONDS
    assert book.wanted(20.5) is None
    assert book.wanted(21.0) == HolderJob((DeadMount(OLD, (11, 12, 21)),), (INSIDE,))


def test_nobody_holds_anything_and_it_is_over() -> None:
    book = after_a_recovery()
    look(book, 21.0)
    assert book.view() == ()
    assert book.next_due() is None


def test_holders_are_looked_for_ever_more_seldom_until_they_are_gone() -> None:
    book, now, rests = after_a_recovery(), 21.0, []
    for _ in range(12):
        look(book, now, holder())
        (holding,) = book.view()
        assert (holding.count, holding.holders, holding.source_path) == (1, (holder(),), SOURCE)
        due_at = book.next_due()
        assert due_at is not None
        rests.append(due_at - now)
        now = due_at
    assert rests[:3] == [FIRST_REST_SECONDS, 2 * FIRST_REST_SECONDS, 4 * FIRST_REST_SECONDS]
    assert rests[-1] == LAST_REST_SECONDS
    look(book, now)
    assert book.view() == ()
    assert book.next_due() is None


def test_one_who_may_not_have_been_seen_is_looked_for_again() -> None:
    book = after_a_recovery()
    look(book, 21.0, unseen=3)
    assert book.view() == ()
    assert book.next_due() == 21.0 + FIRST_REST_SECONDS
    now = 21.0
    for _ in range(20):
        due_at = book.next_due()
        if due_at is None:
            break
        now = due_at
        look(book, now, unseen=3)
    assert book.next_due() is None  # but not for ever


def test_a_long_look_is_followed_by_a_long_rest() -> None:
    book = after_a_recovery()
    wanted = book.wanted(21.0)
    assert wanted is not None
    book.take_look(wanted, HolderLook((holder(),), (1,), 0, 0.0), 21.0, 23.0)
    assert book.next_due() == 23.0 + 2.0 * REST_FACTOR
    book.take_failure(70.0, 75.0)
    assert book.next_due() == 75.0 + 5.0 * REST_FACTOR
    assert book.view()  # what is known stays


def test_an_outage_without_a_recovery_is_not_looked_for() -> None:
    book = Holdings()
    book.take_cycle(seen(19.0, [mount("/a", OLD, 11)]), [OLD])
    gone = replace(recovered(), recovered_at=None)
    book.take_cycle(seen(20.0, dead=(), over=[gone]), [])
    assert book.next_due() is None


def test_a_number_that_is_used_again_ends_the_search() -> None:
    for used in (
        seen(22.0, alive=(OLD,), dead=()),
        seen(22.0, [mount("/else", OLD, 99)], dead=()),
    ):
        book = after_a_recovery()
        look(book, 21.0, holder())
        book.take_cycle(used, [])
        assert book.view() == ()
        assert book.next_due() is None


def test_a_dead_layer_that_is_left_below_does_not_end_it() -> None:
    book = after_a_recovery()
    look(book, 21.0, holder())
    book.take_cycle(seen(22.0, [mount("/a", OLD, 11)]), [])
    assert len(book.view()) == 1


def test_a_look_from_before_the_second_outage_says_nothing_of_it() -> None:
    book = after_a_recovery()
    first = book.wanted(21.0)
    assert first is not None
    book.take_cycle(seen(30.0, [mount("/a", OLD, 31)]), [OLD])
    book.take_cycle(seen(31.0, dead=(), over=[recovered(at=31.0)]), [])
    book.take_look(first, HolderLook((holder(),), (1,), 0, 0.0), 21.0, 32.0)
    assert book.view() == ()
    assert book.next_due() is not None


def test_it_is_bounded() -> None:
    book = Holdings()
    devices = [Device(0, n) for n in range(200, 200 + MAX_WATCHED + 10)]
    mounts = [mount(f"/{d}", d, d.minor) for d in devices]
    book.take_cycle(seen(19.0, mounts, dead=devices), devices)
    over = [recovered(device) for device in devices]
    book.take_cycle(seen(20.0, dead=(), over=over), [])
    wanted = book.wanted(21.0)
    assert wanted is not None
    assert [m.device for m in wanted.dead] == devices[10:]
