"""What is believed of the other namespaces while mounts in them are replaced."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusewatchd.model.actions import (
    Expect,
    NamespaceRef,
    Outcome,
    OutcomeStatus,
    Propagation,
    ReplaceMount,
)
from fusewatchd.model.mounts import Mount, MountNamespace, NamespaceKind, TargetKey
from fusewatchd.observe.namespaces.view import NamespaceView
from tests.unit.cycles import NAMESPACE, NEW, OLD, SOURCE, mount

DEAD = replace(mount("/data", OLD, 100), unique_id=5_100)
FRESH = replace(mount("/data", NEW, 200), unique_id=5_200)
OTHER = mount("/other", OLD, 101)
LAYER = replace(mount("/data", OLD, 99), unique_id=5_099)
"""What is below, and to be seen while the one on top is taken away."""


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


def view(*known: MountNamespace) -> NamespaceView:
    made = NamespaceView()
    assert not made.take_look(known, 1.0, ())
    return made


def test_what_was_replaced_is_known_without_a_look() -> None:
    known = view(container(DEAD, OTHER))
    known.take_outcomes([outcome()])
    assert known.namespaces == (container(FRESH, OTHER),)


@pytest.mark.parametrize(("began_at", "is_believed"), [(9.9, False), (10.0, False), (10.1, True)])
@pytest.mark.parametrize("seen", [DEAD, LAYER], ids=["as before", "a layer below"])
def test_a_look_is_believed_if_it_began_after_the_last_replacement(
    began_at: float, is_believed: bool, seen: Mount
) -> None:
    known = view(container(DEAD))
    known.take_outcomes([outcome(at=10.0)])
    assert known.take_look([container(seen)], began_at, ()) is not is_believed
    assert known.namespaces == (container(seen if is_believed else FRESH),)


def test_a_look_is_not_believed_where_work_goes_on() -> None:
    known = view(container(DEAD))
    assert known.take_look([container(LAYER)], 5.0, {NAMESPACE})
    assert known.namespaces == (container(DEAD),)
    known.take_outcomes([outcome(at=6.0)])
    assert known.namespaces == (container(FRESH),)
    assert not known.take_look([container(DEAD)], 7.0, ())


def test_an_attempt_that_failed_may_have_been_looked_at_as_well() -> None:
    known = view(container(DEAD))
    known.take_outcomes([outcome(OutcomeStatus.FAILED, at=10.0)])
    assert known.take_look([container(LAYER)], 9.0, ())
    assert not known.take_look([container(LAYER)], 11.0, ())
    assert known.namespaces == (container(LAYER),)


def test_other_namespaces_are_believed_and_what_ended_is_gone() -> None:
    first, second, third = (container(DEAD, inode=NAMESPACE + n) for n in range(3))
    known = view(first, second)
    known.take_outcomes([outcome(at=10.0, inode=first.inode)])
    assert not known.take_look([second, third], 9.0, {first.inode, third.inode})
    assert known.namespaces == (second, third)


@pytest.mark.parametrize(
    "there",
    [replace(DEAD, unique_id=5_300), replace(DEAD, device=NEW)],
    ids=["another unique id", "another device"],
)
def test_an_id_that_was_given_again_is_another_mount(there: Mount) -> None:
    known = view(container(there))
    known.take_outcomes([outcome()])
    assert known.namespaces == (container(there),)


@pytest.mark.parametrize(
    "ended",
    [outcome(OutcomeStatus.SKIPPED), outcome(OutcomeStatus.FAILED), outcome(inode=0)],
    ids=["skipped", "failed", "on the host"],
)
def test_what_replaced_nothing_in_a_namespace_changes_nothing_here(ended: Outcome) -> None:
    known = view(container(DEAD))
    known.take_outcomes([ended])
    assert known.namespaces == (container(DEAD),)


def test_layers_that_were_dropped_are_believed_in_no_more() -> None:
    """A number that one of them had may be that of a new mount: nothing is inside that one."""
    layers = [
        replace(mount("/data", OLD, n), parent_id=n - 1, unique_id=5_000 + n)
        for n in (*range(61, 99), 99, 100)
    ]
    reused = replace(FRESH, mount_id=80)
    known = view(container(*layers, OTHER))
    known.take_outcomes([replace(outcome(), mount=reused, depth=1)])
    assert known.namespaces == (container(reused, OTHER),)
    known = view(container(*layers, OTHER))
    known.take_outcomes([replace(outcome(), mount=replace(FRESH, mount_id=98), depth=3)])
    left = [layer.mount_id for layer in known.namespaces[0].mounts]
    assert left == [61, 62, 98, OTHER.mount_id]


def test_what_was_found_instead_is_known_without_a_look() -> None:
    """The layers above it went with the bind on the host that they came from."""
    between = replace(mount("/data", OLD, 98), unique_id=5_098, parent_id=LAYER.mount_id)
    top = replace(DEAD, parent_id=between.mount_id)
    ended = replace(outcome(OutcomeStatus.SKIPPED), found=LAYER)
    ended = replace(ended, action=replace(ended.action, expect=Expect.of(top)))
    inside = replace(mount("/data/inside", NEW, 300), parent_id=LAYER.mount_id)
    known = view(container(LAYER, inside, between, top, OTHER))
    known.take_outcomes([ended])
    assert known.namespaces == (container(LAYER, inside, OTHER),)


def test_what_was_found_may_be_new() -> None:
    known = view(container(DEAD, OTHER))
    known.take_outcomes([replace(outcome(OutcomeStatus.SKIPPED), found=FRESH)])
    assert known.namespaces == (container(FRESH, OTHER),)


def test_what_there_was_no_time_for_stays_as_it_is_believed_to_be() -> None:
    """The walk tells it as it was before; what was replaced in it since is known better."""
    known = view(container(DEAD, OTHER))
    known.take_outcomes([outcome(at=1.5)])
    late = container(DEAD, OTHER)
    assert not known.take_look([late], 10.0, (), 10.0, kept={late.inode})
    assert known.namespaces == (container(FRESH, OTHER),)
    assert not known.take_look([late], 20.0, (), 20.0)
    assert known.namespaces == (late,)
