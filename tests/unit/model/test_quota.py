"""Owners, their limits, and how long one is said to be over them."""

from __future__ import annotations

from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.model.mounts import MountNamespace, NamespaceKind
from fusewatchd.model.quota import (
    AGENT,
    FOREIGN,
    LEAST_BINDS,
    MAX_REFUSED,
    OF_AGENT,
    OF_FOREIGN,
    OF_POD,
    QUIET_SECONDS,
    Collected,
    Owner,
    OwnerKind,
    RefusedOwner,
    Resource,
    binds_of_container,
    binds_of_pod,
    follow,
    limits_of,
    owner_of,
    pod,
)


def namespace(kind: NamespaceKind, pod_uid: str = "", container: str = "") -> MountNamespace:
    return MountNamespace(5, 1, 1, kind, pod_uid, container, ())


def refused(uid: str, resource: Resource = Resource.BINDS, wanted: float = 0) -> RefusedOwner:
    return RefusedOwner(pod(uid), resource, 64, wanted)


@pytest.mark.parametrize(
    ("of", "owner"),
    [
        (None, AGENT),
        (namespace(NamespaceKind.CONTAINER, "uid-a", "c1"), pod("uid-a")),
        (namespace(NamespaceKind.FOREIGN, "uid-a", "c1"), pod("uid-a")),
        (namespace(NamespaceKind.FOREIGN, "", "c1"), pod("c1")),
        (namespace(NamespaceKind.FOREIGN), FOREIGN),
    ],
)
def test_whose_a_namespace_is(of: MountNamespace | None, owner: Owner) -> None:
    assert owner_of(of) == owner


@pytest.mark.parametrize("kind", OwnerKind)
def test_every_kind_of_owner_has_limits(kind: OwnerKind) -> None:
    assert all(limit > 0 for limit in astuple(limits_of(Owner(kind))))


def test_node_agents_may_take_at_least_what_others_may() -> None:
    for other in (OF_POD, OF_FOREIGN):
        assert all(a >= b for a, b in zip(astuple(OF_AGENT), astuple(other), strict=True))


@given(mounts=st.integers(0, 10_000))
def test_no_limit_of_binds_is_below_what_a_spec_can_need(mounts: int) -> None:
    assert LEAST_BINDS <= binds_of_container(mounts) >= 2 * mounts
    assert binds_of_container(mounts) <= binds_of_pod(mounts)


def test_of_two_words_on_one_owner_the_larger_counts() -> None:
    found = Collected()
    found.add(refused("a", wanted=70))
    found.add(refused("a", wanted=900))
    found.add(refused("a", wanted=80))
    found.add(refused("a", Resource.TABLE))
    assert [(one.resource, one.wanted) for one in found.all()] == [
        (Resource.BINDS, 900),
        (Resource.TABLE, 0),
    ]


Looks = st.lists(st.tuples(st.floats(0.0, 20.0), st.booleans()), max_size=20)


@given(looks=Looks)
def test_one_that_is_refused_now_and_again_is_refused_without_a_break(
    looks: list[tuple[float, bool]],
) -> None:
    now, last, began = 0.0, float("-inf"), 0.0
    known = follow({}, (), now)
    for wait, is_refused in looks:
        now += wait
        was_over = now - last >= QUIET_SECONDS
        known = follow(known, [refused("a")] if is_refused else [], now)
        if is_refused:
            began, last = (now if was_over else began), now
        assert bool(known) is (now - last < QUIET_SECONDS)
        assert all((one.since, one.last_at) == (began, last) for one in known.values())


def test_there_is_a_bound_on_how_many_are_remembered_and_the_first_ones_stay() -> None:
    first = [refused(str(number)) for number in range(MAX_REFUSED)]
    more = [refused(f"late-{number}") for number in range(10)]
    known = follow(follow({}, first, 1.0), [*more, *first], 2.0)
    assert {owner.uid for owner, _ in known} == {str(number) for number in range(MAX_REFUSED)}
    assert all(one.since == 1.0 for one in known.values())
