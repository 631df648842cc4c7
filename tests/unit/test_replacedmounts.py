"""What a look tells of mounts that were replaced while it looked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusewatchd.actions import (
    Expect,
    NamespaceRef,
    Outcome,
    OutcomeStatus,
    Propagation,
    ReplaceMount,
)
from fusewatchd.model import Mount, MountNamespace, NamespaceKind, TargetKey
from fusewatchd.replacedmounts import ReplacedMounts
from tests.unit.cycles import NAMESPACE, NEW, OLD, SOURCE, mount

DEAD = replace(mount("/data", OLD, 100), unique_id=5_100)
FRESH = replace(mount("/data", NEW, 200), unique_id=5_200)
OTHER = mount("/other", OLD, 101)


def container(*mounts: Mount, inode: int = NAMESPACE) -> MountNamespace:
    return MountNamespace(inode, 7, 1, NamespaceKind.CONTAINER, "uid-a", "c", mounts)


def outcome(
    status: OutcomeStatus = OutcomeStatus.RECOVERED, *, at: float = 10.0, inode: int = NAMESPACE
) -> Outcome:
    where = NamespaceRef(inode, 7, 1) if inode else None
    key = TargetKey(inode, "/data")
    origin = Expect(SOURCE, NEW)
    action = ReplaceMount(key, Expect.of(DEAD), origin, Propagation.PRIVATE, namespace=where)
    is_done = status is OutcomeStatus.RECOVERED
    return Outcome(action, status, mount=FRESH if is_done else None, finished_at=at)


def known(*outcomes: Outcome) -> ReplacedMounts:
    replaced = ReplacedMounts()
    replaced.note(outcomes)
    return replaced


def test_a_look_that_began_before_a_replacement_ended_is_corrected() -> None:
    replaced = known(outcome(at=10.0))
    replaced.forget_before(9.9)
    assert replaced.applied_to([container(DEAD, OTHER)]) == (container(FRESH, OTHER),)


def test_a_look_that_began_after_it_is_believed() -> None:
    replaced = known(outcome(at=10.0))
    replaced.forget_before(10.1)
    assert replaced.applied_to([container(DEAD)]) == (container(DEAD),)


def test_one_look_makes_forgotten_what_it_saw_and_nothing_else() -> None:
    second = replace(OTHER, mount_id=201)
    action = replace(outcome().action, expect=Expect.of(OTHER))
    replaced = known(outcome(at=10.0), replace(outcome(at=12.0), action=action, mount=second))
    replaced.forget_before(11.0)
    assert replaced.applied_to([container(DEAD, OTHER)]) == (container(DEAD, second),)


def test_the_same_id_in_another_namespace_is_another_mount() -> None:
    elsewhere = container(DEAD, inode=NAMESPACE + 1)
    assert known(outcome()).applied_to([elsewhere]) == (elsewhere,)


@pytest.mark.parametrize(
    "there",
    [replace(DEAD, unique_id=5_300), replace(DEAD, device=NEW)],
    ids=["another unique id", "another device"],
)
def test_an_id_that_was_given_again_is_another_mount(there: Mount) -> None:
    assert known(outcome()).applied_to([container(there)]) == (container(there),)


def test_a_mount_that_was_seen_already_is_not_told_of_twice() -> None:
    assert known(outcome()).applied_to([container(FRESH, DEAD)]) == (container(FRESH),)


@pytest.mark.parametrize(
    "ended",
    [outcome(OutcomeStatus.SKIPPED), outcome(OutcomeStatus.FAILED), outcome(inode=0)],
    ids=["skipped", "failed", "on the host"],
)
def test_what_changed_nothing_in_a_namespace_changes_nothing_here(ended: Outcome) -> None:
    assert known(ended).applied_to([container(DEAD)]) == (container(DEAD),)
