"""Whose question is asked next, as properties; and what that costs."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.model.mounts import Device
from fusewatchd.model.quota import AGENT, FOREIGN, Owner, pod
from fusewatchd.observe.connections.question_lines import FIRST, Asking, Lane, QuestionLines
from fusewatchd.observe.connections.questions import Question
from tests.unit.calls import calls_of

OWNERS = (AGENT, FOREIGN, pod("a"), pod("b"))
DRAWN = st.lists(
    st.tuples(st.sampled_from(OWNERS), st.booleans(), st.sampled_from([None, 1000])), max_size=60
)


def asking(
    minor: int, owner: Owner = AGENT, *, is_urgent: bool = False, user: int | None = None
) -> Asking:
    question = Question(
        Device(0, minor), "/mnt", 0, user, user, owner=owner, is_urgent=is_urgent
    )  # fmt: skip
    return Asking(question, float(minor))


def filled(drawn: list[tuple[Owner, bool, int | None]]) -> tuple[QuestionLines, list[Asking]]:
    lines = QuestionLines()
    all_of_them = [
        asking(minor, owner, is_urgent=is_urgent, user=user)
        for minor, (owner, is_urgent, user) in enumerate(drawn)
    ]
    for one in all_of_them:
        lines.put(one)
    return lines, all_of_them


def drained(lines: QuestionLines) -> list[Asking]:
    order: list[Asking] = []
    while lines.lanes:
        one = lines.next(lines.lanes[0], ())
        assert one is not None
        lines.take(one)
        order.append(one)
    return order


@given(DRAWN)
def test_each_question_has_its_turn_once(drawn: list[tuple[Owner, bool, int | None]]) -> None:
    lines, put = filled(drawn)
    assert Counter(map(id, lines)) == Counter(map(id, put))
    order = drained(lines)
    assert Counter(map(id, order)) == Counter(map(id, put))
    assert not list(lines)


@given(DRAWN)
def test_what_the_node_needs_urgently_comes_first_and_nobody_else_is_in_its_lane(
    drawn: list[tuple[Owner, bool, int | None]],
) -> None:
    lines, put = filled(drawn)
    order = [Lane.of(one.question) for one in drained(lines)]
    assert [lane.rank for lane in order] == sorted(lane.rank for lane in order)
    for one in put:
        is_first = one.question.owner == AGENT and one.question.is_urgent
        assert (Lane.of(one.question).rank == FIRST) is is_first


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 40), min_size=2))
def test_owners_have_one_turn_after_the_other(counts: dict[str, int]) -> None:
    lines, minor = QuestionLines(), 0
    for uid, count in counts.items():
        for _ in range(count):
            minor += 1
            lines.put(asking(minor, pod(uid)))
    order = [one.question.owner.uid for one in drained(lines)]
    for uid in counts:
        last = max(place for place, other in enumerate(order) if other == uid)
        waited: Counter[str] = Counter()
        for other in order[:last]:
            waited[other] += 1
            if other == uid:
                waited.clear()
            assert waited[other] <= 1


@given(DRAWN, st.lists(st.integers(0, 60)))
def test_what_is_taken_out_is_gone_wherever_it_waits(
    drawn: list[tuple[Owner, bool, int | None]], gone: list[int]
) -> None:
    lines, put = filled(drawn)
    left = {one.question.device.minor: one for one in put}
    for minor in gone:
        assert lines.take_out(Device(0, minor)) is left.pop(minor, None)
    assert Counter(map(id, drained(lines))) == Counter(map(id, left.values()))


def test_an_owner_with_its_share_is_passed_over() -> None:
    lines = QuestionLines()
    for number in range(10):
        lines.put(asking(number, FOREIGN))
    lines.put(asking(10, pod("a")))
    lane = lines.lanes[0]
    one = lines.next(lane, {FOREIGN})
    assert one is not None
    assert one.question.owner == pod("a")
    assert lines.next(lane, {FOREIGN, pod("a")}) is None


def cost_of(waiting: int, owners: int) -> int:
    lines = QuestionLines()
    for number in range(waiting):
        lines.put(asking(number, pod(f"pod{number % owners}")))

    def turn() -> None:
        for minor in (3, waiting // 2, waiting - 1):
            one = lines.take_out(Device(0, minor))
            assert one is not None
            lines.put(one)
        one = lines.next(lines.lanes[0], ())
        assert one is not None
        lines.take(one)

    return calls_of(turn)


def test_a_turn_costs_the_same_however_many_wait() -> None:
    for owners in (1, 100):
        assert cost_of(10_000, owners) == cost_of(200, owners)
