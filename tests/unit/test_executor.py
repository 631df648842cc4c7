"""The executor over workers that do what a test tells them."""

from __future__ import annotations

from collections.abc import Iterable

from fusewatchd.actions import (
    Action,
    Expect,
    NamespaceRef,
    Outcome,
    OutcomeStatus,
    Propagation,
    ReplaceMount,
)
from fusewatchd.errors import WorkerShortageError
from fusewatchd.executor import (
    DEADLINE_SECONDS,
    MAX_WORKERS,
    SHARD_ACTIONS,
    SHORTAGE_SECONDS,
    STALL_SECONDS,
    Executor,
)
from fusewatchd.model import Device, TargetKey
from fusewatchd.verdicts import Reason


class Worker:
    """Keeps what it is given; ``done`` says how many actions it reports at the next call."""

    def __init__(self) -> None:
        self.actions: list[Action] = []
        self.given: list[Action] = []
        self.done = 0
        self.is_dead = False
        self.was_killed = False

    def fileno(self) -> int:
        return -1

    def send(self, actions: Iterable[Action]) -> None:
        new = list(actions)
        self.actions += new
        self.given += new

    def receive(self) -> list[Outcome]:
        count, self.done = self.done, 0
        finished, self.actions = self.actions[:count], self.actions[count:]
        return [Outcome(action, OutcomeStatus.RECOVERED) for action in finished]

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
    crew.collect(STALL_SECONDS)
    assert [w.given[0].key.mount_point for w in workers] == ["/target/1/1", "/target/2/1"]


def test_no_more_workers_than_the_limit() -> None:
    crew, workers = executor()
    for source in range(MAX_WORKERS + 3):
        crew.submit([action(1, source)], 0.0)
    for step in range(1, 20):
        crew.collect(STALL_SECONDS * step)
    assert len(workers) == MAX_WORKERS


def test_nothing_is_due_while_every_worker_that_there_may_be_hangs() -> None:
    """Or the loop would run cycle after cycle until one of them is given up."""
    crew, workers = executor()
    for source in range(MAX_WORKERS + 1):
        crew.submit([action(1, source)], 0.0)
    now = 0.0
    while len(workers) < MAX_WORKERS:
        due = crew.next_deadline()
        assert due is not None
        assert due > now
        now = due
        crew.collect(now)
    assert crew.next_deadline() == DEADLINE_SECONDS


def test_a_worker_that_could_not_be_started_is_tried_after_a_pause() -> None:
    crew = Crew()
    executor = Executor(crew, 1)  # type: ignore[arg-type]
    executor.submit([action(1, 1)], 0.0)
    executor.submit([action(1, 2)], 0.0)
    crew.is_short = True
    executor.collect(STALL_SECONDS)
    assert executor.next_deadline() == STALL_SECONDS + SHORTAGE_SECONDS
    executor.collect(STALL_SECONDS + 0.01)
    crew.is_short = False
    executor.collect(STALL_SECONDS + 0.02)
    assert len(crew.workers) == 1
    executor.collect(STALL_SECONDS + SHORTAGE_SECONDS)
    assert len(crew.workers) == 2


def test_one_more_that_was_needed_once_works_only_while_the_others_stall() -> None:
    """More of them than processors would only take those from each other."""
    crew, workers = executor()
    crew.submit([action(1, 1)], 0.0)
    crew.submit([action(1, 2)], 0.0)
    crew.collect(STALL_SECONDS)
    assert [len(worker.given) for worker in workers] == [1, 1]
    for worker in workers:
        worker.done = 1
    assert len(crew.collect(0.1)) == 2
    crew.submit([action(2, 1)], 0.2)
    crew.submit([action(2, 2)], 0.2)
    assert sorted(len(worker.given) for worker in workers) == [1, 2]
    assert crew.next_deadline() == 0.2 + STALL_SECONDS
    crew.collect(0.2 + STALL_SECONDS)
    assert [len(worker.given) for worker in workers] == [2, 2]


def test_what_was_taken_in_is_told_once_and_known_to_be_there() -> None:
    crew, workers = executor()
    crew.submit([action(1, 1), action(1, 2)], 0.0)
    workers[0].done = 1
    assert not crew.has_outcomes
    crew.take_in(0.01)
    assert crew.has_outcomes
    assert crew.in_flight() == {action(1, 1).key, action(1, 2).key}
    # It has its next work already.
    assert [a.key for a in workers[0].given] == [action(1, 1).key, action(1, 2).key]
    assert len(crew.collect(0.02)) == 1
    assert not crew.has_outcomes
    assert crew.in_flight() == {action(1, 2).key}


def test_a_worker_that_hangs_is_given_up_and_the_rest_goes_on() -> None:
    crew, workers = executor()
    actions = [action(n) for n in range(3)]
    crew.submit(actions, 0.0)
    (outcome,) = crew.collect(DEADLINE_SECONDS)
    assert (outcome.action, outcome.status, outcome.reason) == (
        actions[0], OutcomeStatus.FAILED, Reason.TIMED_OUT,
    )  # fmt: skip
    assert workers[0].was_killed
    assert workers[1].given == actions[1:]


def test_progress_puts_the_deadline_off() -> None:
    crew, workers = executor()
    crew.submit([action(n) for n in range(3)], 0.0)
    workers[0].done = 1
    crew.collect(DEADLINE_SECONDS - 0.1)
    assert crew.collect(DEADLINE_SECONDS + 1.0) == []
    assert len(crew.collect(2 * DEADLINE_SECONDS)) == 1


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
    crew.take_in(0.01)
    assert workers[0].given == [first, second]
    workers[0].done = 1
    assert [o.action for o in crew.collect(0.02)] == [first, second]
    assert crew.collect(0.03) == []
