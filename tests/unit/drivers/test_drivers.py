"""Where the sources of known drivers are, told from mount tables alone."""

from __future__ import annotations

import pytest

from tests.drivercases import RECOVERS, Case, binds_of, case_names

CASES = [
    pytest.param(case, point, id=f"{name}-{point.partition('/volume')[2]}-{point[21:25]}")
    for name in case_names()
    for case in (Case.load(name),)
    for point in case.document["binds"]
]
EACH_BIND = pytest.mark.parametrize(("case", "point"), CASES)
EACH_BIND_WHOSE_DEATH_IS_CAPTURED = pytest.mark.parametrize(
    ("case", "point"), [found for found in CASES if found.values[0].killed is not None]
)


@pytest.mark.parametrize("name", case_names())
def test_a_case_says_what_happens_to_every_bind(name: str) -> None:
    case = Case.load(name)
    for table in (case.healthy, case.broken, case.restarted):
        assert {mount.mount_point for _, mount in binds_of(table)} == case.document["binds"].keys()


@EACH_BIND
def test_a_healthy_bind_is_named_with_its_source(case: Case, point: str) -> None:
    expected = case.document["binds"][point]
    answer = case.answer(point, case.snapshot(case.healthy), case.facts())
    source = answer.candidates[0].mount_point if answer.candidates else ""
    assert (answer.rule, source) == (expected["rule"], expected["source"])
    assert len(answer.candidates) <= 1
    found = case.answer(point, case.snapshot(case.healthy))
    assert expected.get("why", "") in found.why


@EACH_BIND_WHOSE_DEATH_IS_CAPTURED
def test_death_changes_no_mount_and_nothing_is_bound_from_the_dead(case: Case, point: str) -> None:
    assert case.killed is not None
    assert case.killed == case.healthy
    for facts in ({}, case.facts()):
        assert not case.outcome(point, case.snapshot(case.killed), facts).startswith("/")


@EACH_BIND
def test_a_broken_bind_is_refused_with_its_reason(case: Case, point: str) -> None:
    expected = case.document["binds"][point]
    broken = case.snapshot(case.broken)
    assert case.outcome(point, broken) == expected["broken"]
    assert case.answer(point, broken).rule == expected.get("broken_rule", expected["rule"])


@EACH_BIND
def test_a_restarted_source_is_found_without_having_seen_it_before(case: Case, point: str) -> None:
    expected = case.document["binds"][point]
    check(case, point, expected["restarted"], case.outcome(point, case.snapshot(case.restarted)))


@EACH_BIND
def test_lineage_finds_it_or_objects(case: Case, point: str) -> None:
    expected = case.document["binds"][point]
    found = case.outcome(point, case.snapshot(case.restarted), case.facts())
    check(case, point, expected.get("remembered", expected["restarted"]), found)


@EACH_BIND
def test_without_the_kubelet_nothing_else_is_found(case: Case, point: str) -> None:
    expected = case.document["binds"][point]
    found = case.outcome(point, case.snapshot(case.restarted, knows_pods=False))
    check(case, point, expected.get("without_namespaces", expected["restarted"]), found)


def check(case: Case, point: str, expected: str, found: str) -> None:
    """``found`` is a reason, or a path: the one whose file system was at the bind's source."""
    if expected != RECOVERS:
        assert found == expected
        return
    was = case.document["binds"][point]["source"]
    moved = {mount.mount_point for mount in case.restarted.fuse_mounts()} - {
        mount.mount_point for mount in case.healthy.fuse_mounts()
    }
    assert found == was or found in moved
