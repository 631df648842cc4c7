"""When the account of all mounts is made, and what of it is news."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusewatchd.model.accounts import MountClass
from fusewatchd.model.cycle import CycleReport, Trigger
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Mount
from fusewatchd.model.outages import Incident
from fusewatchd.model.plan import Plan
from fusewatchd.reconcile import account_book
from fusewatchd.reconcile.account_book import REST_SECONDS, SETTLED_SECONDS, AccountBook
from tests.unit.scenes import OLD, ROOT, SOURCE, THIRD, UID, usual


class Node:
    """A scene, cycle by cycle, with a snapshot that changes only when the scene does."""

    def __init__(self) -> None:
        self.scene, self.source, self.bind = usual()
        self.book = AccountBook(frozenset())
        self.look()

    def look(self) -> None:
        diagnosis = self.scene.look()
        self.seen = self.scene.snapshot()
        self.findings = diagnosis.findings
        self.foreign_stale = diagnosis.foreign_stale

    def cycle(
        self, at: float, closed: tuple[Incident, ...] = (), *, is_idle: bool = True
    ) -> CycleReport:
        ledger = self.scene.ledger
        return self.book.note(
            CycleReport(
                1, (Trigger.TIMER,), at, at, self.seen, self.findings, Plan((), ()), (), (),
                ledger, incidents_closed=closed, foreign_stale=self.foreign_stale,
            ),
            is_idle=is_idle,
        )  # fmt: skip

    def odd(self) -> Mount:
        return self.scene.mount(f"{ROOT}/pods/{UID}/volumes/kubernetes.io~old/v", THIRD)


def test_it_is_made_after_a_change_and_not_again() -> None:
    node = Node()
    node.cycle(10.0)
    assert node.book.due_at == 10.0 + REST_SECONDS
    assert node.book.turn(10.3, is_idle=True)
    assert node.cycle(10.4).accounts.mounts == 3
    assert node.book.due_at is None, "nothing has changed since"
    node.scene.mount("/copy")
    node.look()
    node.cycle(11.0)
    assert node.book.due_at == 11.0 + REST_SECONDS
    assert node.book.turn(11.3, is_idle=True)
    assert node.book.accounts.of(MountClass.COPY).mounts == 1


def test_recoveries_go_first() -> None:
    node = Node()
    node.cycle(10.0)
    assert not node.book.turn(10.3, is_idle=False)
    assert node.book.due_at == 10.3 + REST_SECONDS
    assert node.book.accounts.mounts == 0


def test_the_end_of_an_outage_has_an_account_of_its_own() -> None:
    node = Node()
    closed = (Incident(OLD, "demofs", SOURCE, 9.0),)
    assert node.cycle(10.0, closed, is_idle=False).accounts.mounts == 0
    assert node.book.due_at == 10.0 + REST_SECONDS, "after the recovery of another one"
    assert node.cycle(10.1, closed).accounts.mounts == 3


def test_what_is_unexplained_for_a_moment_is_no_news() -> None:
    node = Node()
    odd = node.odd()
    node.look()
    node.cycle(10.0)
    node.book.turn(10.2, is_idle=True)
    assert node.book.accounts.of(MountClass.NOT_UNDERSTOOD).mounts == 1
    assert not node.book.accounts.unexplained
    assert node.book.due_at == 10.2 + SETTLED_SECONDS
    assert node.book.turn(10.2 + SETTLED_SECONDS, is_idle=True)
    (one,) = node.book.accounts.unexplained
    assert one.mount.mount_id == odd.mount_id
    assert node.book.due_at is None
    assert node.book.at_once(node.cycle(20.0)).accounts.unexplained, "there is no second look"


def test_only_what_changed_is_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two containers one gets another mount."""
    node = Node()
    node.scene.container(node.scene.inside("/more"))
    node.look()
    node.cycle(10.0)
    node.book.turn(10.2, is_idle=True)
    counted: list[int] = []

    class Counting(account_book.Accountant):
        def of_namespace(self, namespace):  # type: ignore[no-untyped-def]
            counted.append(namespace.inode)
            return super().of_namespace(namespace)

    monkeypatch.setattr(account_book, "Accountant", Counting)
    first, second = node.seen.namespaces
    more = replace(second.mounts[0], mount_id=999, unique_id=999, mount_point="/again")
    second = replace(second, mounts=(*second.mounts, more))
    node.seen = replace(node.seen, namespaces=(first, second))
    node.cycle(11.0)
    node.book.turn(11.2, is_idle=True)
    assert counted == [second.inode]
    node.seen = replace(node.seen, table=MountTable.of([*node.scene.mounts]))
    node.cycle(12.0)
    node.book.turn(12.2, is_idle=True)
    assert counted == [second.inode], "another table of the host with the same in it"
