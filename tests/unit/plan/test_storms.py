"""What holds a storm back, as pure values: budget, sources that come and go, the table's size."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusewatchd.model.actions import Expect, Outcome, OutcomeStatus, Propagation, ReplaceMount
from fusewatchd.model.findings import Finding, SourceAnswer, SourcePath
from fusewatchd.model.ledger import Ledger, TargetState
from fusewatchd.model.mounts import Device, Mount, TargetKey
from fusewatchd.model.outages import Phase
from fusewatchd.model.plan import Plan
from fusewatchd.model.pods import BindKind, BindPath
from fusewatchd.model.quota import RefusedOwner, Resource, pod
from fusewatchd.model.servers import Answer
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.plan.back_off import BackOff
from fusewatchd.plan.budget import (
    DEFAULT,
    LEAST_BURST_OF_POD,
    over_their_share,
    ration,
    share_of_pod,
)
from fusewatchd.plan.flapping import FlapRule, follow_sources, hold_back, pauses
from fusewatchd.plan.planner import plan
from fusewatchd.rate_limit import Bucket, Rate
from fusewatchd.reconcile.ledger_update import next_retry, take_outcomes, take_plan
from tests.unit.cycles import bind, finding, replace_action
from tests.unit.scenes import NEW, OLD, SOURCE, Scene, publish_path, reasons, usual

RATES = st.builds(Rate, st.floats(0.1, 50.0), st.integers(1, 40).map(float))

# ----------------------------------------------------------------------------- budget


@given(RATES, st.lists(st.tuples(st.floats(0.0, 30.0), st.floats(0.0, 20.0)), max_size=30))
def test_a_bucket_gives_no_more_than_its_rate_in_any_window(
    rate: Rate, steps: list[tuple[float, float]]
) -> None:
    bucket, now = Bucket(), 1000.0
    taken: list[tuple[float, float]] = []
    for rest, wanted in steps:
        now += rest
        amount = min(wanted, max(0.0, bucket.left(rate, now)))
        bucket = bucket.take(amount, rate, now)
        taken.append((now, amount))
    for first, (began, _) in enumerate(taken):
        for last in range(first, len(taken)):
            total = sum(amount for _, amount in taken[first : last + 1])
            assert total <= rate.burst + rate.per_second * (taken[last][0] - began) + 1e-6


def stale(source: str, number: int, *, in_container: bool = False) -> Finding:
    """A stale bind whose source is back; the container of a pod hangs on its host bind."""
    host = bind(f"{source}-{number}", device=OLD)
    answer = SourceAnswer("lineage", "", (SourcePath(f"/src/{source}"),))
    host = replace(host, source=answer)
    if not in_container:
        return finding(host, Verdict.STALE, source=NEW)
    path = BindPath(BindKind.CONTAINER, host.path.pod_uid, "pv-1", container="app")
    key = TargetKey(4_000_000 + number, f"/{source}")
    return finding(replace(host, key=key, path=path, origin=host.key), Verdict.STALE, source=NEW)


def wanted(findings: list[Finding]) -> Plan:
    return Plan(tuple(replace_action(one.bind) for one in findings))


def tried(ledger: Ledger, done: Plan, now: float) -> Ledger:
    outcomes = [
        Outcome(action, OutcomeStatus.RECOVERED, started_at=now, finished_at=now)
        for action in done.actions
    ]
    states = {o.action.key: TargetState(last_outcome=o) for o in outcomes}
    return replace(ledger, states={**ledger.states, **states})


@given(
    RATES,
    st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(0, 60)), min_size=1, max_size=15),
)
def test_no_window_sees_more_replacements_than_the_budget(
    rate: Rate, steps: list[tuple[float, int]]
) -> None:
    ledger, now = Ledger(), 50.0
    done: list[tuple[float, int]] = []
    for rest, count in steps:
        now += rest
        findings = [stale("a", number) for number in range(count)]
        todo, ledger = ration(wanted(findings), findings, ledger, rate, now)
        assert len(todo.actions) + len(todo.refused) == count
        assert all(r.retry_at is not None and r.retry_at > now for r in todo.refused)
        done.append((now, len(todo.actions)))
    for first, (began, _) in enumerate(done):
        for last in range(first, len(done)):
            total = sum(amount for _, amount in done[first : last + 1])
            assert total <= rate.burst + rate.per_second * (done[last][0] - began) + 1e-6


@given(RATES, st.integers(1, 120))
def test_all_that_was_refused_has_its_turn_when_it_is_due(rate: Rate, count: int) -> None:
    ledger, now, left = Ledger(), 50.0, [stale("a", number) for number in range(count)]
    rounds = 0
    while left:
        todo, ledger = ration(wanted(left), left, ledger, rate, now)
        done = {action.key for action in todo.actions}
        left = [one for one in left if one.bind.key not in done]
        assert {r.reason for r in todo.refused} <= {Reason.BUDGET}
        due = next_retry(ledger, todo)
        # The daemon would sleep for ever with something left to do.
        assert (due is not None) == bool(left)
        # Every time it wakes there is something to do.
        assert done or rounds == 0
        now = due or now
        rounds += 1
        assert rounds <= count + 1


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, 40), st.integers(1, 30))
def test_sources_that_flap_do_not_hold_up_one_that_crashed_once(
    flapping: int, hit: int, batch: int
) -> None:
    rate = Rate(per_second=batch / 0.5, burst=float(batch))
    ledger, now = Ledger(), 50.0
    noise = [stale(f"s{number}", n) for number in range(flapping) for n in range(4)]
    for _ in range(20):
        todo, ledger = ration(wanted(noise), noise, ledger, rate, now)
        ledger = tried(ledger, todo, now)
        now += 0.6
    for _ in range(8 * flapping):
        # Each of them was tried at least once by now, however few go at a time.
        todo, ledger = ration(wanted(noise), noise, ledger, rate, now)
        ledger, now = tried(ledger, todo, now), now + 0.6
    left = [stale("quiet", number) for number in range(hit)]
    rounds = 0
    while left:
        now += 0.6
        findings = [*noise, *left]
        todo, ledger = ration(wanted(findings), findings, ledger, rate, now)
        ledger = tried(ledger, todo, now)
        done = {action.key for action in todo.actions}
        left = [one for one in left if one.bind.key not in done]
        rounds += 1
        assert rounds <= -(-hit // batch) + 1


def test_all_that_flap_have_their_turn_one_after_the_other() -> None:
    rate = Rate(per_second=10.0, burst=5.0)
    ledger, now = Ledger(), 50.0
    noise = [stale(f"s{number}", n) for number in range(4) for n in range(5)]
    counts: Counter[TargetKey] = Counter()
    for _ in range(20):
        todo, ledger = ration(wanted(noise), noise, ledger, rate, now)
        ledger = tried(ledger, todo, now)
        counts.update(action.key for action in todo.actions)
        now += 0.5
    assert len(counts) == len(noise)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_once_spent_there_is_a_rest_for_the_loop_too() -> None:
    """Every cycle takes what has come in since, and its outcomes cause the next one."""
    rate = Rate(per_second=200.0, burst=10.0)
    findings = [stale("a", number) for number in range(50)]
    todo, ledger = ration(wanted(findings), findings, Ledger(), rate, 50.0)
    due = next_retry(ledger, todo)
    assert due is not None
    assert due == pytest.approx(50.05)
    for now in (50.01, 50.03, 50.049):
        todo, ledger = ration(wanted(findings), findings, ledger, rate, now)
        assert (todo.actions, next_retry(ledger, todo)) == ((), due)
    todo, _ = ration(wanted(findings), findings, ledger, rate, due)
    assert len(todo.actions) == 10


def test_a_small_source_does_not_wait_for_all_of_a_big_one() -> None:
    findings = [stale("big", number) for number in range(100)]
    findings += [stale("small", number) for number in range(2)]
    todo, _ = ration(wanted(findings), findings, Ledger(), Rate(1.0, 10.0), 50.0)
    names = Counter(action.key.mount_point.split("/")[5].split("-")[0] for action in todo.actions)
    assert names == {"big": 8, "small": 2}


def test_a_container_is_not_served_before_its_bind_on_the_host() -> None:
    hosts = [stale("a", number) for number in range(4)]
    inside = [stale("a", number, in_container=True) for number in range(4)]
    findings = [*hosts, *inside]
    todo, _ = ration(wanted(findings), findings, Ledger(), Rate(1.0, 5.0), 50.0)
    keys = [action.key for action in todo.actions]
    assert len(keys) == 5
    assert [one for one in inside if one.bind.key in keys and one.bind.origin not in keys] == []
    assert [key for key in keys if key.is_host] == keys[:4]


def crowd(uid: str, count: int) -> list[Finding]:
    """So many containers' mounts of one bind of one pod."""
    host = stale("a", 0)
    path = replace(host.bind.path, pod_uid=uid)
    host = replace(host, bind=replace(host.bind, key=TargetKey(0, f"/pods/{uid}"), path=path))
    inside = replace(path, kind=BindKind.CONTAINER, container="app")
    return [
        replace(
            host,
            bind=replace(
                host.bind,
                key=TargetKey(4_000_000 + n, f"/{uid}"),
                path=inside,
                origin=host.bind.key,
            ),
        )
        for n in range(count)
    ]


def pods_of(todo: Plan) -> Counter[str]:
    return Counter(action.pod_uid for action in todo.actions if isinstance(action, ReplaceMount))


def test_pods_have_one_replacement_each_in_turn() -> None:
    findings = [*crowd("big", 12_000), *crowd("a", 20), *crowd("b", 3)]
    todo, _ = ration(wanted(findings), findings, Ledger(), Rate(1.0, 40.0), 50.0)
    assert pods_of(todo) == {"big": 18, "a": 19, "b": 3} or pods_of(todo) == {
        "big": 19, "a": 18, "b": 3,
    }  # fmt: skip


@given(
    RATES.filter(lambda rate: rate.burst >= 2),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 60), min_size=2),
)
def test_no_pod_has_much_more_than_another_that_wants_as_much(
    rate: Rate, counts: dict[str, int]
) -> None:
    findings = [one for uid, count in counts.items() for one in crowd(uid, count)]
    todo, _ = ration(wanted(findings), findings, Ledger(), rate, 50.0)
    had = pods_of(todo)
    assert had.total() == min(int(rate.burst), len(findings))
    for uid, count in counts.items():
        assert had[uid] == count or had[uid] >= max(had.values()) - 1


def test_one_pod_never_spends_what_the_others_need() -> None:
    ledger, now = Ledger(), 50.0
    greedy = crowd("greedy", 2_000)
    spent = 0
    for _ in range(20):
        todo, ledger = ration(wanted(greedy), greedy, ledger, DEFAULT, now)
        ledger, spent = tried(ledger, todo, now), spent + len(todo.actions)
        assert {r.reason for r in todo.refused} == {Reason.QUOTA}
        assert over_their_share(ledger.budget, DEFAULT, now) == (
            RefusedOwner(pod("greedy"), Resource.BUDGET, share_of_pod(DEFAULT).burst),
        )
        now += 3.0
    share = share_of_pod(DEFAULT)
    assert spent <= share.burst + share.per_second * 60 + 1
    others = [one for number in range(1000) for one in crowd(f"pod{number}", 3)]
    findings = [*greedy, *others]
    todo, ledger = ration(wanted(findings), findings, ledger, DEFAULT, now)
    had = pods_of(todo)
    assert sum(count for uid, count in had.items() if uid != "greedy") == len(others)
    # Once it has been quiet for long enough there is no trace of it.
    _, ledger = ration(wanted(others), others, ledger, DEFAULT, now + 1000.0)
    assert "greedy" not in ledger.budget.pods
    assert over_their_share(ledger.budget, DEFAULT, now + 1000.0) == ()


@settings(max_examples=10, deadline=None)
@given(RATES, st.integers(1, 60))
def test_a_pod_that_has_spent_its_share_has_its_turn_when_it_is_due(rate: Rate, count: int) -> None:
    rate = Rate(rate.per_second, rate.burst + LEAST_BURST_OF_POD)
    ledger, now, left = Ledger(), 50.0, crowd("a", int(share_of_pod(rate).burst) + count)
    rounds = 0
    while left:
        todo, ledger = ration(wanted(left), left, ledger, rate, now)
        done = {action.key for action in todo.actions}
        left = [one for one in left if one.bind.key not in done]
        assert all(r.retry_at is not None and r.retry_at > now for r in todo.refused)
        assert done
        now = next_retry(ledger, todo) or now
        rounds += 1
    assert rounds <= count + 1


def test_the_default_lets_the_worst_crash_through_at_once_and_again() -> None:
    findings = [stale("a", number) for number in range(1000)]
    findings += [stale("a", number, in_container=True) for number in range(1000)]
    ledger = Ledger()
    for now in (50.0, 51.0):
        todo, ledger = ration(wanted(findings), findings, ledger, DEFAULT, now)
        assert len(todo.actions) == 2000
        assert todo.refused == ()


# ------------------------------------------------------------ sources that come and go


@dataclass
class World:
    """A node where every replacement that is planned succeeds at once."""

    rule: FlapRule = field(default_factory=FlapRule)
    binds: int = 2
    replaced: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    due: float | None = None

    def __post_init__(self) -> None:
        self.scene = Scene()
        self.source = self.scene.mount(SOURCE)
        self.numbers = 100
        for number in range(self.binds):
            self.scene.mount(publish_path(f"{number:08}-0000-4000-8000-000000000000"))
        self.turn(0.0)

    def turn(self, rest: float) -> Plan:
        scene = self.scene
        scene.now += rest
        now, outcomes = scene.now, self.outcomes
        scene.ledger = take_outcomes(scene.ledger, outcomes, BackOff())
        findings = scene.look().findings
        scene.now = now
        snapshot = scene.snapshot()
        lives = follow_sources(scene.ledger.sources, findings, outcomes, snapshot, self.rule, now)
        scene.ledger = replace(scene.ledger, sources=lives)
        todo = plan(findings, snapshot, scene.ledger, scene.policy, now)
        todo = hold_back(todo, findings, lives, self.rule, now)
        scene.ledger, _ = take_plan(scene.ledger, findings, todo, outcomes, now)
        self.outcomes = [self._done(action, now) for action in todo.actions]  # type: ignore[arg-type]
        self.replaced += len(self.outcomes)
        self.due = next_retry(scene.ledger, todo)
        if self.outcomes:
            self.turn(0.0)
        return todo

    def _done(self, action: ReplaceMount, now: float) -> Outcome:
        (old,) = [m for m in self.scene.mounts if m.mount_id == action.expect.mount_id]
        self.scene.unmount(old)
        new = self.scene.mount(old.mount_point, action.origin.device)
        return Outcome(action, OutcomeStatus.RECOVERED, mount=new, started_at=now, finished_at=now)

    def die(self, rest: float) -> None:
        self.scene.answers[self.source.device] = Answer.DISCONNECTED
        self.turn(rest)

    def rise(self, rest: float) -> None:
        self.numbers += 1
        self.source = self.scene.crash_and_restart(self.source, new=Device(0, self.numbers))
        self.turn(rest)

    def flap(self, life: float, down: float) -> None:
        self.die(life)
        self.rise(down)

    @property
    def is_paused(self) -> bool:
        return bool(pauses(self.scene.ledger.sources, self.rule))

    @property
    def is_healthy(self) -> bool:
        shown = {m.device for m in self.scene.mounts}
        return shown == {self.source.device}


@settings(max_examples=10, deadline=None)
@given(st.floats(0.1001, 3.0), st.floats(0.0, 3.0))
def test_a_source_may_crash_as_often_as_it_likes_if_it_serves_in_between(
    life: float, down: float
) -> None:
    world = World()
    for _ in range(60):
        world.flap(life, down)
        assert world.is_healthy
    assert not world.is_paused
    assert world.replaced == 60 * world.binds


@settings(max_examples=25, deadline=None)
@given(st.floats(0.0, 0.099), st.floats(0.0, 2.0), st.integers(6, 60))
def test_mounts_that_serve_nobody_are_left_alone_soon(life: float, down: float, count: int) -> None:
    world = World()
    # The first one was there from the start, and served.
    world.flap(10.0, 0.0)
    for _ in range(count):
        world.flap(life, down)
    assert world.is_paused
    assert world.replaced == world.binds * (world.rule.limit + 1)
    assert not world.is_healthy


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 4.0), st.floats(0.0, 4.0)), max_size=40),
    st.integers(1, 8),
    st.floats(0.05, 20.0),
)
def test_whatever_happened_a_source_that_stays_is_believed_soon(
    flaps: list[tuple[float, float]], limit: int, pause_max: float
) -> None:
    world = World(FlapRule(limit=limit, life=1.0, pause_max=pause_max))
    for life, down in flaps:
        world.flap(life, down)
    start = world.scene.now
    while not world.is_healthy:
        # Only when the daemon would wake by itself.
        assert world.due is not None and world.due > world.scene.now
        world.turn(world.due - world.scene.now)
        assert world.scene.now - start <= 1.2 * pause_max + 1e-6
    world.turn(world.rule.window + 1)
    assert not world.is_paused
    assert world.scene.ledger.sources[SOURCE].unused_mounts == ()


def test_the_pause_grows_has_an_end_and_is_not_the_same_for_all() -> None:
    world, seen = World(), []
    world.flap(10.0, 0.0)
    for _ in range(20):
        world.flap(0.01, 0.2)
        seen += [pause.stable_seconds for pause in pauses(world.scene.ledger.sources, world.rule)]
    assert seen[:4] == sorted(seen[:4])
    assert 0.2 <= seen[0] <= 0.3
    assert max(seen) <= 1.2 * world.rule.pause_max
    assert len(world.scene.ledger.sources[SOURCE].unused_mounts) <= world.rule.limit + 8
    life = world.scene.ledger.sources[SOURCE]
    assert len({world.rule.stable_seconds(f"/src/{n}", life) for n in range(20)}) > 10


def test_a_refusal_says_why_and_until_when() -> None:
    world = World()
    world.flap(10.0, 0.0)
    for _ in range(7):
        world.flap(0.0, 0.1)
    todo = world.turn(0.0)
    assert reasons(todo) == {Reason.SOURCE_FLAPPING}
    assert {r.retry_at for r in todo.refused} == {world.due}


def test_a_source_that_nobody_uses_any_more_is_forgotten() -> None:
    world = World()
    world.flap(0.0, 0.0)
    assert SOURCE in world.scene.ledger.sources
    world.scene.mounts[:] = [m for m in world.scene.mounts if m.mount_point == SOURCE]
    world.turn(1.0)
    assert world.scene.ledger.sources == {}


# -------------------------------------------------------- recovered again and again


def recovered_onto(device: Device, key: TargetKey, at: float) -> Outcome:
    mount = Mount(7, 1, device, "/", key.mount_point, "rw", 0, 0, "fuse", "s", "rw", 7)
    origin = Expect("/src/a", device)
    action = ReplaceMount(key, Expect(key.mount_point, OLD), origin, Propagation.PRIVATE)
    return Outcome(action, OutcomeStatus.RECOVERED, mount=mount, started_at=at, finished_at=at)


def after(*devices: Device, step: float = 1.0) -> TargetState:
    key = TargetKey(0, "/target")
    ledger = Ledger(states={key: TargetState(Phase.RECOVERING, is_in_flight=True)})
    for number, device in enumerate(devices):
        ledger = take_outcomes(ledger, [recovered_onto(device, key, step * number)], BackOff())
        state = replace(ledger.state(key), phase=Phase.RECOVERING, is_in_flight=True)
        ledger = replace(ledger, states={key: state})
    return ledger.state(key)


def test_a_second_crash_and_a_third_wait_for_nothing() -> None:
    state = after(NEW, Device(0, 70), NEW, Device(0, 70))
    assert (state.undone, state.retry_at) == (0, 0.0)


def test_a_recovery_that_somebody_undoes_is_slowed_more_each_time() -> None:
    waits = [after(*[NEW] * count).retry_at - (count - 1) for count in range(2, 8)]
    assert waits == sorted(waits)
    assert 0.2 <= waits[0] <= 0.3
    assert waits[-1] > 5
    assert after(NEW, NEW, NEW, Device(0, 70)).retry_at == 0.0
    assert after(NEW, NEW, step=500.0).retry_at == 0.0


def test_what_was_undone_is_refused_until_its_time_has_come() -> None:
    scene, source, bind = usual()
    scene.namespaces.clear()
    scene.crash_and_restart(source)
    key = TargetKey(0, bind.mount_point)
    state = TargetState(Phase.HEALTHY, retry_at=scene.now + 2, undone=1)
    scene.ledger = replace(scene.ledger, states={key: state})
    assert reasons(scene.plan()[1]) == {Reason.BACK_OFF}
    scene.now += 5
    assert reasons(scene.plan()[1]) == set()


# --------------------------------------------------------------------- the mount table


@pytest.mark.parametrize(
    ("mount_max", "is_full"), [(None, False), (3, True), (4, False), (100_000, False)]
)
def test_the_kernels_own_limit_is_kept_away_from(mount_max: int | None, is_full: bool) -> None:
    """Two mounts; nine tenths of 3 are 2, of 4 are 3."""
    scene, source, _ = usual()
    scene.namespaces.clear()
    scene.crash_and_restart(source)
    findings = scene.look().findings
    snapshot = replace(scene.snapshot(), mount_max=mount_max)
    assert len(snapshot.table) == 2
    todo = plan(findings, snapshot, scene.ledger, scene.policy, scene.now)
    assert (reasons(todo) == {Reason.TABLE_FULL}) == is_full
    assert len(todo.actions) == (0 if is_full else 1)
