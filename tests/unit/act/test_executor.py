"""The executor over workers that do what a test tells them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from fusewatchd.act.executor import (
    DEADLINE_SECONDS,
    MAX_ENDING_AT_PLACE,
    MAX_WORKERS,
    SETTLE_SECONDS,
    SHORTAGE_SECONDS,
    STALL_SECONDS,
    STRIKE_SECONDS,
    Executor,
)
from fusewatchd.act.work_queue import SHARD_ACTIONS
from fusewatchd.errors import WorkerShortageError
from fusewatchd.model.actions import (
    AbortConnection,
    Action,
    Expect,
    NamespaceRef,
    Outcome,
    OutcomeStatus,
    Propagation,
    ReplaceMount,
)
from fusewatchd.model.findings import Gap
from fusewatchd.model.mounts import Device, TargetKey
from fusewatchd.model.quota import OF_POD, STUCK_WORKERS, RefusedOwner, Resource, pod
from fusewatchd.model.verdicts import Reason


class Worker:
    """Keeps what it is given; ``done`` says how many actions it reports at the next call."""

    def __init__(self) -> None:
        self.actions: list[Action] = []
        self.given: list[Action] = []
        self.done = 0
        self.noted = 0
        """How many it has done of which it can tell nobody."""
        self.begun = 0
        self.asking = 0
        """How many it leaves at the next call: a file system would have to be asked."""
        self.may_ask = False
        self.is_running = False
        self.is_withdrawn = False
        self.is_dead = False
        self.was_told_to_end = False
        self.was_killed = False

    def fileno(self) -> int:
        return -1

    def send(self, actions: Iterable[Action], *, may_ask: bool) -> None:
        self.may_ask = may_ask
        new = list(actions)
        self.actions += new
        self.given += new

    def receive(self) -> list[Outcome]:
        count, self.done = self.done, 0
        finished, self.actions = self.actions[:count], self.actions[count:]
        return [Outcome(action, OutcomeStatus.RECOVERED) for action in finished]

    def take_asking(self) -> list[Action]:
        count, self.asking = self.asking, 0
        asking, self.actions = self.actions[:count], self.actions[count:]
        return asking

    def withdraw(self) -> None:
        self.is_withdrawn = True

    def take_back(self) -> tuple[list[Outcome], list[Action]]:
        assert self.is_withdrawn or self.is_dead
        self.done, self.noted = self.noted, 0
        outcomes = self.receive()
        back, self.actions = self.actions[1:], self.actions[:1]
        return outcomes, back

    def end(self) -> None:
        self.was_told_to_end = True

    def kill(self) -> None:
        self.was_killed = True


class Crew:
    def __init__(self) -> None:
        self.workers: list[Worker] = []
        self.is_short = False

    def __call__(self) -> Worker:
        if self.is_short:
            raise WorkerShortageError("no descriptors")
        self.workers.append(Worker())
        return self.workers[-1]


def executor(parallel: int = 1) -> tuple[Executor, list[Worker]]:
    crew = Crew()
    return Executor(crew, parallel), crew.workers  # type: ignore[arg-type]


def action(number: int, source: int = 1) -> ReplaceMount:
    point = f"/target/{source}/{number}"
    return ReplaceMount(
        TargetKey(0, point),
        Expect(point, Device(0, 5)),
        Expect("/s", Device(1, source)),
        Propagation.OWN_GROUP,
    )


def inside(host: ReplaceMount) -> ReplaceMount:
    return ReplaceMount(
        TargetKey(9, "/data" + host.key.mount_point), Expect("/data", Device(0, 5)),
        Expect(host.key.mount_point, host.origin.device), Propagation.PRIVATE, namespace=NamespaceRef(9, 1, 1),
    )  # fmt: skip


def inside_of(
    namespace: int, number: int, source: int = 1, pod: str = "", *, asks: bool = False
) -> ReplaceMount:
    point = f"/data/{number}"
    return ReplaceMount(
        TargetKey(namespace, point), Expect(point, Device(0, 5)),
        Expect(f"/host/{namespace}/{number}", Device(1, source)), Propagation.PRIVATE,
        namespace=NamespaceRef(namespace, 1, 1), pod_uid=pod, asks=asks,
    )  # fmt: skip


def run(crew: Executor, start: float, end: float) -> list[Outcome]:
    """Do what the loop does: look whenever it is due, and when nothing is, at the end."""
    outcomes, now = [], start
    while now < end:
        outcomes += crew.collect(now)
        due = crew.next_deadline()
        assert due is None or due > now, "it spins"
        now = min(end, due if due is not None else end)
    return outcomes + crew.collect(end)


AFTER_STALL = STALL_SECONDS + 2 * SETTLE_SECONDS


def test_actions_of_one_source_keep_their_order() -> None:
    crew, workers = executor()
    actions = [action(n) for n in range(5)]
    crew.submit(actions, 0.0)
    assert workers[0].given == actions
    workers[0].done = 2
    assert [o.action for o in crew.collect(0.01)] == actions[:2]
    assert crew.in_flight() == {a.key for a in actions[2:]}
    workers[0].done = 3
    assert [o.action for o in crew.collect(0.02)] == actions[2:]
    assert crew.is_idle


def test_a_source_that_stalls_does_not_hold_up_another_one() -> None:
    crew, workers = executor()
    crew.submit([action(1, 1)], 0.0)
    crew.submit([action(1, 2)], 0.0)
    assert len(workers) == 1
    run(crew, 0.0, AFTER_STALL)
    assert [w.given[0].key.mount_point for w in workers] == ["/target/1/1", "/target/2/1"]


def test_a_worker_that_waits_for_a_processor_keeps_its_work() -> None:
    crew, workers = executor()
    crew.submit([action(1, 1)], 0.0)
    crew.submit([action(1, 2)], 0.0)
    workers[0].is_running = True
    run(crew, 0.0, AFTER_STALL)
    assert len(workers) == 1
    workers[0].is_running = False
    run(crew, AFTER_STALL, 2 * AFTER_STALL)
    assert len(workers) == 2


def test_a_worker_that_runs_without_end_is_given_up() -> None:
    crew, workers = executor()
    crew.submit([action(1, 1)], 0.0)
    workers[0].is_running = True
    outcomes = run(crew, 0.0, DEADLINE_SECONDS + AFTER_STALL)
    assert [outcome.reason for outcome in outcomes] == [Reason.TIMED_OUT]


def test_a_worker_that_could_not_be_started_is_tried_after_a_pause() -> None:
    crew = Crew()
    executor = Executor(crew, 1)  # type: ignore[arg-type]
    executor.submit([action(1, 1)], 0.0)
    executor.submit([action(1, 2)], 0.0)
    crew.is_short = True
    run(executor, 0.0, AFTER_STALL)
    assert executor.next_deadline() == STALL_SECONDS + SHORTAGE_SECONDS
    executor.collect(STALL_SECONDS + 0.01)
    crew.is_short = False
    executor.collect(STALL_SECONDS + 0.02)
    assert len(crew.workers) == 1
    executor.collect(STALL_SECONDS + SHORTAGE_SECONDS)
    assert len(crew.workers) == 2


def test_what_was_taken_in_is_told_once_and_known_to_be_there() -> None:
    crew, workers = executor()
    crew.submit([action(1, 1), action(1, 2)], 0.0)
    workers[0].done = 1
    assert not crew.has_outcomes
    crew.dispatch_next(0.01)
    assert crew.has_outcomes
    assert crew.in_flight() == {action(1, 1).key, action(1, 2).key}
    # It has its next work already.
    assert [a.key for a in workers[0].given] == [action(1, 1).key, action(1, 2).key]
    assert len(crew.collect(0.02)) == 1
    assert not crew.has_outcomes
    assert crew.in_flight() == {action(1, 2).key}


def test_a_worker_that_died_is_replaced_at_once() -> None:
    crew, workers = executor()
    crew.submit([action(1), action(2)], 0.0)
    workers[0].is_dead = True
    (outcome,) = crew.collect(0.001)
    assert outcome.detail == "the mount worker ended"
    assert [a.key for a in workers[1].given] == [action(2).key]


def test_a_worker_that_died_idle_is_let_go_and_replaced_when_there_is_work() -> None:
    crew, workers = executor()
    workers[0].is_dead = True
    assert crew.collect(0.0) == []
    assert crew.workers == ()
    assert workers[0].was_killed
    assert len(workers) == 1
    crew.submit([action(1)], 0.1)
    assert workers[1].given == [action(1)]


def test_work_waits_while_there_is_nothing_to_make_a_worker_of() -> None:
    source = Crew()
    crew, workers = Executor(source, 1), source.workers  # type: ignore[arg-type]
    workers[0].is_dead = True
    crew.collect(0.0)
    source.is_short = True
    crew.submit([action(1)], 0.1)
    assert crew.collect(0.2) == []
    assert crew.in_flight() == {action(1).key}
    source.is_short = False
    crew.collect(0.1 + SHORTAGE_SECONDS)
    workers[1].done = 1
    assert [o.action for o in crew.collect(0.4)] == [action(1)]


def test_much_work_is_spread_and_pods_stay_whole() -> None:
    crew, workers = executor(parallel=2)
    hosts = [action(n) for n in range(SHARD_ACTIONS * 2)]
    crew.submit([*hosts, *map(inside, hosts)], 0.0)
    assert len(workers) == 2
    assert sum(len(w.given) for w in workers) == 4 * SHARD_ACTIONS
    for worker in workers:
        places = [a.key for a in worker.given]
        for host in hosts:
            if host.key in places:
                assert places.index(host.key) < places.index(inside(host).key)


def test_little_work_is_not_spread() -> None:
    crew, workers = executor(parallel=2)
    crew.submit([action(n) for n in range(SHARD_ACTIONS)], 0.0)
    assert sorted(len(w.given) for w in workers) == [0, SHARD_ACTIONS]


def test_close_ends_every_worker() -> None:
    crew, workers = executor(parallel=2)
    crew.submit([action(1)], 0.0)
    crew.close()
    assert all(worker.was_killed for worker in workers)


def test_what_is_taken_in_early_is_collected_once_and_makes_room_for_the_next_source() -> None:
    crew, workers = executor()
    first, second = action(1, 1), action(1, 2)
    crew.submit([first], 0.0)
    crew.submit([second], 0.0)
    workers[0].done = 1
    crew.dispatch_next(0.01)
    assert workers[0].given == [first, second]
    workers[0].done = 1
    assert [o.action for o in crew.collect(0.02)] == [first, second]
    assert crew.collect(0.03) == []


def test_no_more_workers_than_the_limit_and_nothing_is_due_while_they_hang() -> None:
    crew, workers = executor()
    crew.submit([action(1, source) for source in range(MAX_WORKERS + 3)], 0.0)
    assert run(crew, 0.0, 2.0) == []
    assert len(workers) == MAX_WORKERS


def test_one_more_that_was_needed_once_is_not_kept() -> None:
    """More of them than processors would only take those from each other."""
    crew, workers = executor()
    crew.submit([action(1, 1), action(1, 2)], 0.0)
    run(crew, 0.0, AFTER_STALL)
    assert [len(worker.given) for worker in workers] == [1, 1]
    for worker in workers:
        worker.done = 1
    assert len(crew.collect(0.1)) == 2
    assert [worker.was_killed for worker in workers] == [False, True]
    crew.submit([action(2, 1), action(2, 2)], 0.2)
    assert [len(worker.given) for worker in workers] == [2, 1]


def test_what_was_not_begun_goes_to_another_worker_long_before_the_deadline() -> None:
    crew, workers = executor()
    actions = [action(n) for n in range(6)]
    crew.submit(actions, 0.0)
    workers[0].noted = 2
    outcomes = run(crew, 0.0, AFTER_STALL)
    assert [o.action for o in outcomes] == actions[:2]
    assert {o.status for o in outcomes} == {OutcomeStatus.RECOVERED}
    assert workers[1].given == actions[3:]
    workers[1].done = 3
    assert [o.action for o in run(crew, 0.1, 1.0)] == actions[3:]
    (outcome,) = run(crew, 1.0, 2 * DEADLINE_SECONDS)
    assert (outcome.action, outcome.status, outcome.reason) == (
        actions[2], OutcomeStatus.FAILED, Reason.TIMED_OUT,
    )  # fmt: skip
    assert workers[0].was_told_to_end
    assert crew.is_idle


def test_one_that_was_only_slow_is_told_and_goes_on() -> None:
    crew, workers = executor()
    crew.submit([action(1), action(2)], 0.0)
    run(crew, 0.0, 1.5)
    workers[0].done = workers[1].done = 1
    assert [o.status for o in run(crew, 1.5, 1.6)] == [OutcomeStatus.RECOVERED] * 2
    assert crew.is_idle
    assert not workers[0].was_told_to_end


def test_that_it_moves_is_enough() -> None:
    """Where outcomes are not told for a while it is seen in the page that there are some."""
    crew, workers = executor()
    crew.submit([action(n) for n in range(200)], 0.0)
    for step in range(200):
        workers[0].begun += 1
        assert crew.collect(step * STALL_SECONDS) == []
    assert not workers[0].is_withdrawn


def test_a_node_that_stands_still_makes_nobody_hang() -> None:
    crew, workers = executor()
    crew.submit([action(1)], 0.0)
    run(crew, 0.0, 1.5)
    assert crew.collect(1000.0) == []
    workers[0].done = 1
    assert [o.status for o in crew.collect(1000.1)] == [OutcomeStatus.RECOVERED]


def test_the_rest_of_its_namespace_waits_until_it_is_over_and_comes_last() -> None:
    crew, workers = executor()
    hung, same, other = inside_of(7, 1), inside_of(7, 2), inside_of(8, 1)
    crew.submit([hung, same, other], 0.0)
    run(crew, 0.0, 1.0)
    assert workers[1].given == [other]
    workers[1].done = 1
    late = action(1)
    outcomes = run(crew, 1.0, 1.1)
    crew.submit([late], 1.1)
    assert workers[1].given == [other, late]
    workers[1].done = 1
    outcomes += run(crew, 1.1, DEADLINE_SECONDS + STRIKE_SECONDS)
    assert [o.action for o in outcomes] == [other, late, hung]
    assert [worker.actions for worker in workers[1:]] == [[], [same]]


def test_where_something_hung_the_ones_that_did_not_are_tried_first() -> None:
    crew, workers = executor()
    hung, same, good = inside_of(7, 1), inside_of(7, 2), action(1)
    crew.submit([hung], 0.0)
    (outcome,) = run(crew, 0.0, 2 * DEADLINE_SECONDS)
    assert outcome.reason is Reason.TIMED_OUT
    crew.submit([hung, same, good], 10.0)
    assert workers[1].given == [good]
    workers[1].done = 1
    run(crew, 10.0, 10.01)
    assert workers[-1].given == [same, hung]
    workers[-1].done = 2
    assert len(run(crew, 10.01, 10.02)) == 2
    # All is well again, and nothing of it is remembered.
    crew.submit([hung, same, good], 20.0)
    assert [worker.actions for worker in workers[1:] if worker.actions] == [[hung, same, good]]


def test_no_end_of_workers_where_none_can_be_ended() -> None:
    crew, workers = executor()
    hung = inside_of(7, 1)
    now = 0.0
    for count in range(1, MAX_ENDING_AT_PLACE + 1):
        crew.submit([hung], now)
        (outcome,) = run(crew, now, now + 10.0)
        assert outcome.reason is Reason.TIMED_OUT
        assert crew.stuck == count
        now += 20.0
    crew.submit([hung, inside_of(8, 1)], now)
    (outcome,) = crew.collect(now)
    assert (outcome.action, outcome.reason) == (hung, Reason.TIMED_OUT)
    ended = [worker for worker in workers if worker.was_told_to_end]
    # And one is kept ready for what is not known to hang.
    (ready,) = (worker for worker in workers if worker not in ended)
    assert (len(ended), ready.actions) == (MAX_ENDING_AT_PLACE, [inside_of(8, 1)])
    for worker in ended:
        assert worker in crew.workers
        worker.is_dead = True
    crew.collect(now)
    assert crew.stuck == 0
    assert all(worker.was_killed for worker in ended)


def test_a_container_waits_for_the_bind_on_the_host_that_it_is_cloned_from() -> None:
    crew, workers = executor()
    host, other = action(1), action(2)
    crew.submit([host, other, inside(host), inside(other)], 0.0)
    run(crew, 0.0, AFTER_STALL)
    assert workers[1].given == [other, inside(other)]
    workers[0].done = 1
    workers[1].done = 2
    assert len(crew.collect(0.1)) == 3
    assert any(worker.actions == [inside(host)] for worker in workers)


def test_one_container_that_hangs_does_not_hold_up_another_of_its_pod() -> None:
    crew, workers = executor()
    host = action(1)
    one, two = inside(host), replace(inside(host), namespace=NamespaceRef(10, 1, 1))
    crew.submit([one, two], 0.0)
    run(crew, 0.0, 1.0)
    assert workers[1].given == [two]


def test_what_hangs_at_once_in_many_places_holds_up_nothing_for_long() -> None:
    crew, workers = executor(parallel=2)
    hung = [inside_of(number, 1) for number in range(10)]
    good = [action(number) for number in range(5)]
    crew.submit([*hung[:5], *good, *hung[5:]], 0.0)
    outcomes: list[Outcome] = []
    now = 0.0
    while now < 2 * DEADLINE_SECONDS:
        for worker in workers:
            while worker.actions and worker.actions[0] in good[len(outcomes) :]:
                worker.done = 1
                outcomes += crew.collect(now)
        outcomes += crew.collect(now)
        now = crew.next_deadline() or 2 * DEADLINE_SECONDS
    assert [o.action for o in outcomes[:5]] == good
    assert {o.action.key for o in outcomes[5:]} == {a.key for a in hung}
    assert {o.reason for o in outcomes[5:]} == {Reason.TIMED_OUT}


def test_aborting_waits_for_nobody_who_hangs() -> None:
    """It is what may end the hanging."""
    crew, workers = executor()
    hung = inside_of(7, 1)
    abort = AbortConnection(
        TargetKey(7, "/out"), Expect("/out", Device(0, 6)), 3, NamespaceRef(7, 1, 1)
    )
    crew.submit([hung], 0.0)
    run(crew, 0.0, 1.0)
    crew.submit([abort], 1.0)
    assert workers[1].given == [abort]


# ------------------------------------------------------------------------- owners, last lane


def test_what_may_hang_comes_after_all_others() -> None:
    crew, workers = executor()
    asking, good = inside_of(7, 1, asks=True), [action(n, n) for n in range(1, 4)]
    crew.submit([asking, *good], 0.0)
    for now in (0.001, 0.002, 0.003):
        (busy,) = (worker for worker in workers if worker.actions)
        assert not busy.may_ask
        busy.done = 1
        crew.collect(now)
    (busy,) = (worker for worker in workers if worker.actions)
    assert (busy.actions, busy.may_ask) == ([asking], True)


def test_what_turns_out_to_ask_comes_last_and_may_ask_then() -> None:
    crew, workers = executor()
    asking, good = inside_of(7, 1), action(1, 2)
    crew.submit([asking, good], 0.0)
    workers[0].asking = 1
    assert crew.collect(0.001) == []
    assert crew.in_flight() == {asking.key, good.key}
    (busy,) = (worker for worker in workers if worker.actions)
    assert (busy.actions, busy.may_ask) == ([good], False)
    busy.done = 1
    assert [o.action for o in crew.collect(0.002)] == [good]
    (busy,) = (worker for worker in workers if worker.actions)
    assert (busy.actions, busy.may_ask) == ([asking], True)


def test_one_worker_at_a_time_goes_where_it_may_hang_and_holds_up_nobody() -> None:
    crew, workers = executor()
    asking = [inside_of(number, 1, pod=f"pod{number}", asks=True) for number in range(5)]
    crew.submit(asking, 0.0)
    assert [worker.actions for worker in workers if worker.actions] == [asking[:1]]
    good = action(1)
    crew.submit([good], 0.001)
    (busy,) = (worker for worker in workers if worker.actions == [good])
    busy.done = 1
    assert [o.action for o in crew.collect(0.002)] == [good]


def hang_for_good(crew: Executor, workers: list[Worker], hung: Iterable[Action]) -> None:
    """Have workers hang at these; all else that is begun ends at once, before the deadline."""
    keys = {action.key for action in hung}
    now = 0.0
    while now < 10 * DEADLINE_SECONDS:
        for worker in workers:
            while worker.actions and worker.actions[0].key not in keys:
                worker.done = 1
                crew.dispatch_next(now)
        crew.dispatch_next(now)
        due = crew.next_deadline()
        now = due if due is not None else 10 * DEADLINE_SECONDS


def test_a_pod_holds_no_more_workers_than_it_may() -> None:
    crew, workers = executor()
    hung = [inside_of(number, 1, pod="bad", asks=True) for number in range(40)]
    other = inside_of(100, 1, pod="other", asks=True)
    crew.submit([*hung, other], 0.0)
    hang_for_good(crew, workers, hung)
    most = OF_POD.stuck_workers
    assert crew.stuck == most
    outcomes = crew.collect(1000.0)
    assert Counter((o.status, o.reason) for o in outcomes) == {
        (OutcomeStatus.FAILED, Reason.TIMED_OUT): most,
        (OutcomeStatus.REFUSED, Reason.QUOTA): len(hung) - most,
        (OutcomeStatus.RECOVERED, Reason.NONE): 1,
    }
    assert crew.refused_owners == (RefusedOwner(pod("bad"), Resource.WORKERS, most, most),)
    # As long as they are held nothing of it is begun where it may hang.
    count = len(workers)
    crew.submit(hung, 1000.0)
    assert {o.reason for o in crew.collect(1000.0)} == {Reason.QUOTA}
    assert len(workers) == count
    for worker in workers:
        worker.is_dead = worker.was_told_to_end
    crew.collect(1001.0)
    assert crew.refused_owners == ()
    crew.submit(hung[:1], 1001.0)
    assert any(worker.actions == hung[:1] for worker in workers if not worker.is_dead)


def test_all_pods_together_hold_no_more_than_the_node_can_spare() -> None:
    crew, workers = executor()
    hung = [inside_of(100 * p + n, 1, pod=f"pod{p}", asks=True) for p in range(30) for n in (1, 2)]
    crew.submit(hung, 0.0)
    hang_for_good(crew, workers, hung)
    assert crew.stuck == STUCK_WORKERS
    outcomes = crew.collect(1000.0)
    assert len(outcomes) == len(hung)
    good = action(1)
    crew.submit([good], 1000.0)
    (busy,) = (worker for worker in workers if worker.actions == [good])
    assert not busy.was_told_to_end


def test_nobody_is_sent_where_it_may_hang_if_no_other_worker_can_be_had() -> None:
    source = Crew()
    crew, workers = Executor(source, 2), source.workers  # type: ignore[arg-type]
    source.is_short = True
    hung = [inside_of(number, 1, pod=f"pod{number}", asks=True) for number in range(3)]
    crew.submit(hung, 0.0)
    run(crew, 0.0, 10 * DEADLINE_SECONDS)
    assert crew.stuck == 1
    assert crew.gaps == (Gap("workers", "no descriptors"),)
    good = action(1)
    crew.submit([good], 100.0)
    (busy,) = (worker for worker in workers if worker.actions == [good])
    busy.done = 1
    assert [o.action for o in crew.collect(100.1)] == [good]
    source.is_short = False
    run(crew, 100.1, 101.0)
    assert crew.gaps == ()


def test_a_shortage_is_told_once_and_so_is_its_end() -> None:
    source = Crew()
    crew, workers = Executor(source, 1), source.workers  # type: ignore[arg-type]
    workers[0].is_dead = True
    crew.collect(0.0)
    source.is_short = True
    crew.submit([action(1)], 0.1)
    assert crew.has_outcomes
    assert crew.collect(0.1) == []
    assert not crew.has_outcomes
    assert crew.gaps == (Gap("workers", "no descriptors"),)
    run(crew, 0.1, 5.0)
    assert not crew.has_outcomes
    source.is_short = False
    crew.dispatch_next(6.0)
    assert crew.has_outcomes
    assert crew.gaps == ()
