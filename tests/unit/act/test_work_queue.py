"""The order in which actions are handed out, as properties; and what that costs."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.act.work_queue import SHARE, WorkQueue, place_of
from fusewatchd.model.actions import (
    Action,
    Expect,
    NamespaceRef,
    Propagation,
    ReplaceMount,
)
from fusewatchd.model.mounts import Device, TargetKey
from tests.unit.calls import calls_of

NOBODY: frozenset[str] = frozenset()


def on_host(pod: str, number: int, source: int = 1) -> ReplaceMount:
    point = f"/pods/{pod}/{number}"
    return ReplaceMount(
        TargetKey(0, point), Expect(point, Device(0, 5)), Expect("/s", Device(1, source)),
        Propagation.OWN_GROUP, pod_uid=pod,
    )  # fmt: skip


def inside(host: ReplaceMount, number: int = 0, *, asks: bool = False) -> ReplaceMount:
    namespace = abs(hash((host.pod_uid, number))) + 1
    return ReplaceMount(
        TargetKey(namespace, f"/data/{number}"), Expect("/data", Device(0, 5)),
        Expect(host.key.mount_point, host.origin.device), Propagation.PRIVATE,
        namespace=NamespaceRef(namespace, 1, 1), pod_uid=host.pod_uid, asks=asks,
    )  # fmt: skip


def taken(queue: WorkQueue, parallel: int = 1) -> list[Action]:
    """Take everything, and have each part end before the next one is taken."""
    order: list[Action] = []
    while queue:
        batch = queue.take([], parallel, NOBODY) or queue.take_last([], NOBODY)
        assert batch
        order += batch
        for action in batch:
            queue.ended(action)
    return order


ACTIONS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 2), st.booleans()), max_size=60
)


def actions_of(drawn: list[tuple[int, int, int, bool]]) -> list[Action]:
    """Each is a bind on the host, or a container's mount of it."""
    actions: list[Action] = []
    for number, (pod, bind, kind, asks) in enumerate(drawn):
        host = on_host(f"pod{pod}", bind, source=bind)
        actions.append(host if kind == 0 else inside(host, number, asks=asks))
    return actions


@given(ACTIONS, st.integers(1, 3))
def test_everything_is_handed_out_once_and_one_bind_stays_in_order(
    drawn: list[tuple[int, int, int, bool]], parallel: int
) -> None:
    queue, actions = WorkQueue(), actions_of(drawn)
    queue.add(actions)
    order = taken(queue, parallel)
    assert Counter(map(id, order)) == Counter(map(id, actions))
    assert not list(queue.open)
    places = {id(action): number for number, action in enumerate(order)}
    for first, host in enumerate(actions):
        assert isinstance(host, ReplaceMount)
        if host.namespace is not None:
            continue
        for action in actions[first + 1 :]:
            assert isinstance(action, ReplaceMount)
            is_from_it = action.origin.mount_point == host.key.mount_point
            if is_from_it or action.key == host.key:
                assert places[id(host)] < places[id(action)]


@given(ACTIONS)
def test_what_asks_comes_after_all_that_does_not_wait_for_it(
    drawn: list[tuple[int, int, int, bool]],
) -> None:
    queue, actions = WorkQueue(), actions_of(drawn)
    queue.add(actions)
    asks = [isinstance(action, ReplaceMount) and action.asks for action in taken(queue)]
    assert asks == sorted(asks)


@given(ACTIONS)
def test_a_container_never_overtakes_its_bind_that_is_under_way(
    drawn: list[tuple[int, int, int, bool]],
) -> None:
    queue, actions = WorkQueue(), actions_of(drawn)
    queue.add(actions)
    under_way: list[list[Action]] = []
    while batch := queue.take([], 3, NOBODY):
        under_way.append(batch)
    for batch in under_way:
        binds = {a.key.mount_point for a in batch if a.key.is_host}
        elsewhere = {
            a.key.mount_point for b in under_way if b is not batch for a in b if a.key.is_host
        }
        for action in batch:
            assert isinstance(action, ReplaceMount)
            is_first = action.origin.mount_point not in binds
            assert not (is_first and action.origin.mount_point in elsewhere)
    for action in (a for batch in under_way for a in batch):
        queue.ended(action)
    taken(queue)
    assert not queue


@given(st.dictionaries(st.integers(0, 9), st.integers(1, 3 * SHARE), min_size=2, max_size=6))
def test_between_two_turns_of_a_pod_each_other_has_at_most_one(counts: dict[int, int]) -> None:
    queue = WorkQueue()
    for pod, count in counts.items():
        queue.add(on_host(f"pod{pod}", number) for number in range(count))
    order = [action.pod_uid for action in taken(queue) if isinstance(action, ReplaceMount)]
    for pod in {f"pod{number}" for number in counts}:
        last = max(place for place, uid in enumerate(order) if uid == pod)
        waited: Counter[str] = Counter()
        for uid in order[:last]:
            waited[uid] += 1
            if uid == pod:
                waited.clear()
            assert waited[uid] <= SHARE


def test_a_pod_with_very_much_to_do_holds_up_another_one_for_one_turn() -> None:
    queue = WorkQueue()
    queue.add(on_host("greedy", number) for number in range(12_000))
    queue.add([on_host("modest", 0)])
    order = [action.pod_uid for action in taken(queue) if isinstance(action, ReplaceMount)]
    assert order.index("modest") <= SHARE


def test_one_that_comes_late_has_its_turn_before_the_next_one_of_the_others() -> None:
    queue = WorkQueue()
    queue.add(on_host("greedy", number) for number in range(12_000))
    for action in queue.take([], 1, NOBODY):
        queue.ended(action)
    queue.add([on_host("late", 0)])
    batch = queue.take([], 1, NOBODY)
    assert "late" in {a.pod_uid for a in batch if isinstance(a, ReplaceMount)}
    assert len(batch) <= SHARE + 1


def test_what_was_not_begun_comes_before_the_rest_of_its_pod() -> None:
    queue, actions = WorkQueue(), [on_host("a", number) for number in range(3 * SHARE)]
    queue.add(actions)
    batch = queue.take([], 1, NOBODY)
    queue.ended(batch[0])
    queue.put_back(batch[1:])
    assert taken(queue) == actions[1:]


def test_where_something_is_under_way_nobody_else_goes() -> None:
    queue, host = WorkQueue(), on_host("a", 0)
    one, two = inside(host, 1, asks=True), inside(host, 1, asks=True)
    other = inside(host, 2, asks=True)
    assert place_of(one) == place_of(two) != place_of(other)
    queue.add([one])
    assert queue.take_last([], NOBODY) == [one]
    queue.add([two, other])
    assert queue.take_last([one], NOBODY) == [other]
    assert queue.take_last([one, other], NOBODY) == []
    assert not queue.may_take_last([one, other], NOBODY)
    queue.ended(one)
    assert queue.take_last([other], NOBODY) == [two]


def test_pods_that_hold_as_many_workers_as_they_may_have_no_turn() -> None:
    queue = WorkQueue()
    full, other = on_host("full", 0), on_host("other", 0)
    queue.add([full, other])
    assert queue.take([], 1, {"full"}) == [other]
    assert queue.take([], 1, {"full"}) == []
    assert not queue.may_take_last([], {"full"})
    assert queue.drop_last(lambda action: action is full) == [full]
    queue.ended(full)
    assert not queue


def cost_of(waiting: int, *, asks: bool) -> int:
    """Count the calls of one submit and one take beside so much that waits."""
    queue = WorkQueue()
    queue.add(
        inside(on_host(f"pod{number // 100}", number), number, asks=asks)
        for number in range(waiting)
    )
    late = inside(on_host("late", 0), asks=asks)

    def turn() -> None:
        queue.add([late])
        assert queue.may_take_last([], NOBODY) is asks
        if asks:
            assert queue.take_last([], NOBODY)
        else:
            assert len(queue.take([], waiting, NOBODY)) < 2 * SHARE

    return calls_of(turn)


def test_a_turn_costs_what_it_hands_out_however_much_waits() -> None:
    for asks in (False, True):
        few, many = cost_of(2_000, asks=asks), cost_of(20_000, asks=asks)
        assert many <= 1.5 * few + 50, (few, many)
