"""What is known of the pods of the node."""

from __future__ import annotations

from fusewatchd.observe.kubelet.pod_cache import Pods
from tests.unit.scenes import UID, pod

# ------------------------------------------------------------------------------- pods


def test_a_list_is_current_until_a_bind_comes_or_goes() -> None:
    pods = Pods()
    assert (pods.known, pods.are_current, pods.gap(0.0)) == (None, False, None)
    pods.take_binds({"/x"}, 10.0)
    assert pods.take_wish()
    assert not pods.take_wish()
    pods.take_list([pod()], asked_at=9.0, is_whole=True)
    assert not pods.are_current
    pods.take_list([pod()], asked_at=11.0, is_whole=True)
    assert pods.are_current
    pods.take_binds({"/x"}, 12.0)
    assert not pods.take_wish()
    assert pods.are_current
    pods.take_binds(set(), 13.0)
    assert pods.take_wish()
    assert not pods.are_current


def test_a_kubelet_that_fails_keeps_names_and_proves_nothing() -> None:
    pods = Pods()
    pods.take_list([pod()], asked_at=1.0, is_whole=True)
    pods.take_problem("connection refused")
    assert pods.known is not None
    assert not pods.are_current
    gap = pods.gap(0.0)
    assert gap is not None
    assert gap.reason == "connection refused"
    pods.take_list([pod()], asked_at=2.0, is_whole=True)
    assert pods.gap(0.0) is None


def test_a_list_that_may_lack_pods_names_those_it_has_and_proves_nothing() -> None:
    pods = Pods()
    pods.take_list([pod()], asked_at=1.0, is_whole=False)
    assert (list(pods.known or ()), pods.are_current) == ([UID], False)


def test_another_kubelet_has_to_answer_before_anything_is_proven() -> None:
    pods = Pods()
    pods.take_list([pod()], asked_at=1.0, is_whole=True)
    pods.take_problem("connection refused")
    pods.change_kubelet()
    assert (list(pods.known or ()), pods.are_current, pods.gap(0.0)) == ([UID], False, None)
    pods.take_list([], asked_at=2.0, is_whole=True)
    assert pods.are_current


def test_a_list_that_does_not_come_is_a_gap_that_says_since_when() -> None:
    pods = Pods()
    assert not pods.is_overdue(1e9), "nobody is asked"
    pods.expect_lists(15.0, now=100.0, wall=1_000_000_000.0)
    assert pods.gap(145.0) is None
    gap = pods.gap(146.0)
    assert gap is not None
    assert gap.reason == "no list of pods came since 2001-09-09T01:46:40Z"
    assert pods.gap(200.0) == gap, "the same words as long as it lasts"
    pods.take_list([pod()], asked_at=200.0, is_whole=True)
    assert pods.gap(245.0) is None
    assert pods.is_overdue(246.0)
    pods.expect_lists(0.0, now=300.0, wall=1_000_000_200.0)
    assert pods.gap(1e9) is None
