"""Probes: true answers from real mounts, and a pool that no mount can bring to a halt."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fusewatchd.demo.node.node import DemoNode, ForeignKind
from fusewatchd.demo.node.pods import PodMount, PodVolume
from fusewatchd.demo.node.sources import ServerOptions, Source
from fusewatchd.errors import WorkerError
from fusewatchd.linux import fusectl, statfs, syscalls
from fusewatchd.linux.procfs import process_start_time
from fusewatchd.linux.statfs import Refuser, Statfs
from fusewatchd.model.mount_table import parse_mount_table
from fusewatchd.model.mounts import Device
from fusewatchd.model.quota import AGENT, FOREIGN, OF_FOREIGN, Owner
from fusewatchd.model.quota import pod as pod_owner
from fusewatchd.model.servers import Answer
from fusewatchd.observe.connections import probe_pool
from fusewatchd.observe.connections.probe import ProbeAnswer, serve_probes
from fusewatchd.observe.connections.probe_pool import ProbePool
from fusewatchd.observe.connections.questions import Question
from fusewatchd.workers.channel import Channel
from fusewatchd.workers.fork_server import Credentials, ForkServer, Worker, WorkerKind
from fusewatchd.workers.privileges import PRIVILEGES, Kind
from tests.lab import in_lab
from tests.unit.calls import calls_of

SECONDS = 20.0
LIMIT = 3

# ------------------------------------------------------------------------- real mounts


class Probes:
    """A fork server and a pool over it, for the length of a ``with`` block."""

    def __init__(self, max_children: int = 4) -> None:
        self.server = ForkServer.start(
            {
                kind.value: WorkerKind(serve_probes, PRIVILEGES[kind])
                for kind in (Kind.PROBE, Kind.USER_PROBE)
            }
        )
        self.spawned: list[Worker] = []
        self.pool = ProbePool(self._spawn, max_children)

    def _spawn(self, credentials: Credentials | None) -> Worker:
        kind = Kind.PROBE if credentials is None else Kind.USER_PROBE
        self.spawned.append(self.server.spawn(kind.value, credentials))
        return self.spawned[-1]

    def __enter__(self) -> Probes:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()
        self.server.close()

    def ask(self, *questions: Question) -> None:
        for question in questions:
            self.pool.submit(question, time.monotonic())

    def wait(self, count: int) -> list[ProbeAnswer]:
        """Do as the daemon does until this many answers are there."""
        answers: list[ProbeAnswer] = []
        poll = select.poll()
        fd = self.pool.fileno()
        poll.register(fd, select.POLLIN)
        end = time.monotonic() + SECONDS
        while len(answers) < count:
            now = time.monotonic()
            assert now < end, f"only {answers}"
            due = self.pool.next_deadline()
            until = end if due is None else min(due, end)
            poll.poll(max(0.0, until - now) * 1000 + 1)
            answers += self.pool.collect(time.monotonic())
        return answers

    def one(self, question: Question) -> ProbeAnswer:
        self.ask(question)
        (answer,) = self.wait(1)
        return answer


def device_at(path: str) -> Device:
    with_fd = os.open(path, os.O_PATH)
    try:
        return Device(*syscalls.device_of(with_fd))
    finally:
        os.close(with_fd)


def inside(device: Device, path: str, pid: int, *, is_covered: bool = False) -> Question:
    start_time = (process_start_time(pid) or 0) if pid else 0
    return Question(device, path, pid, is_covered=is_covered, start_time=start_time)


def covered(device: Device, path: str, pid: int) -> Question:
    return inside(device, path, pid, is_covered=True)


def question_of(source: Source) -> Question:
    return Question(device_at(source.path), source.path)


@pytest.mark.kernel
@in_lab()
def test_healthy_and_dead(node: DemoNode) -> None:
    one, two = node.add_source("one"), node.add_source("two")
    healthy, dead = question_of(one), question_of(two)
    two.kill()
    with Probes() as probes:
        answer = probes.one(healthy)
        assert (answer.device, answer.answer, answer.errno) == (healthy.device, Answer.ANSWERED, 0)
        answer = probes.one(dead)
        assert answer.answer is Answer.DISCONNECTED
        assert answer.errno == errno.ENOTCONN


REFUSALS = pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ECONNABORTED])


@pytest.mark.kernel
@REFUSALS
@in_lab()
def test_whose_word_a_refusal_is(node: DemoNode, number: int) -> None:
    """A server's, however often it is asked; and the kernel's at once when that server ends."""
    faults = os.path.join(node.lab, "faults")
    server = (sys.executable, "-m", "fusewatchd.demo.fuse.server", "--faults", faults)
    where = ("--mount", "{mount}", "--backing", "{backing}")
    source = node.add_source("one", command=(*server, *where))
    fd = os.open(source.path, os.O_PATH)
    with syscalls.closing_fd(fd):
        assert statfs.ask(fd) == Statfs()
        with open(faults, "w") as file:
            file.write(f"STATFS {number}")
        told = {statfs.ask(fd) for _ in range(50)}
        assert told == {Statfs(number, refuser=Refuser.SERVER)}
        source.kill()
        told = {statfs.ask(fd) for _ in range(1000)}
        assert told == {Statfs(errno.ENOTCONN, refuser=Refuser.KERNEL)}


@pytest.mark.kernel
@in_lab()
def test_the_kernels_word_on_a_connection_that_was_cut(node: DemoNode) -> None:
    """Its server lives, and has the descriptor; a copy of it in another process does not help."""
    source = node.add_source("one")
    fd = os.open(source.path, os.O_PATH)
    with syscalls.closing_fd(fd):
        device = Device(*syscalls.device_of(fd))
        source.pause()
        with syscalls.closing_fd(fusectl.open_abort(device)) as abort:
            os.write(abort, b"1")
        assert {statfs.ask(fd).refuser for _ in range(100)} == {Refuser.KERNEL}
        assert source.server.is_running


@pytest.mark.kernel
@pytest.mark.parametrize("is_inside", [False, True], ids=["host", "container"])
@in_lab()
def test_what_others_cover_is_asked_in_a_copy(node: DemoNode, is_inside: bool) -> None:
    """And nobody else sees anything of it."""
    dead, living, top = (node.add_source(name) for name in ("dead", "living", "top"))
    devices = [device_at(source.path) for source in (dead, living, top)]
    pod = node.add_pod("app", [PodVolume("v", dead)], [PodMount("v", "/data")])
    place = pod.volume_path("v")
    for source in (living, top):
        syscalls.mount(source.path, place, None, syscalls.MS_BIND)
    # What a container is started with is all of the stack, if it is made like that.
    agent = node.add_foreign(ForeignKind.NODE_AGENT)
    pid = agent.pid if is_inside else 0
    dead.kill()
    tables = [mounts_of(who) for who in ("self", str(agent.pid))]
    seen = parse_mount_table(tables[is_inside])
    path = next(m.mount_point for m in seen.fuse_mounts() if m.mount_point.endswith(place))
    assert [m.device for m in seen.stack_at(path)][-3:] == devices
    with Probes() as probes:
        answers = [probes.one(covered(device, path, pid)).answer for device in devices]
        assert answers == [Answer.DISCONNECTED, Answer.ANSWERED, Answer.ANSWERED]
        nobody = probes.one(covered(Device(0, 9999), path, pid))
        assert (nobody.answer, nobody.errno) == (None, errno.ENOENT)
        living.pause()
        probes.ask(covered(devices[1], path, pid))
        wait_until_asked(devices[1])
        # A copy that hangs is in nobody's way.
        assert [mounts_of(who) for who in ("self", str(agent.pid))] == tables
        for _ in devices:
            syscalls.umount2(place, 0)
        living.resume()
        (answer,) = probes.wait(1)
        assert answer.answer is Answer.ANSWERED


def mounts_of(process: str) -> bytes:
    with open(f"/proc/{process}/mountinfo", "rb") as file:
        return file.read()


def wait_until_asked(device: Device) -> None:
    end = time.monotonic() + SECONDS
    while not fusectl.waiting(device):
        assert time.monotonic() < end, "nobody asks"
        time.sleep(0.005)


@pytest.mark.kernel
@in_lab()
def test_hung_mounts_hold_up_nobody_and_their_answers_come_late(node: DemoNode) -> None:
    hung = [node.add_source(f"hung{number}") for number in range(3)]
    healthy = [question_of(node.add_source(f"healthy{number}")) for number in range(3)]
    waiting = [question_of(source) for source in hung]
    for source in hung:
        source.pause()
    with Probes(max_children=4) as probes:
        probes.ask(*waiting, *healthy)
        answers = probes.wait(3)
        assert {a.device for a in answers} == {q.device for q in healthy}
        assert {a.answer for a in answers} == {Answer.ANSWERED}
        assert probes.pool.stuck(time.monotonic() + 5, 5) == 3
        probes.ask(*waiting)  # they are asked already
        assert probes.pool.stuck(time.monotonic() + 5, 5) == 3
        assert not probes.pool.unasked
        for source in hung:
            source.resume()
        late = probes.wait(3)
        assert {a.device for a in late} == {q.device for q in waiting}
        assert {a.answer for a in late} == {Answer.ANSWERED}


@pytest.mark.kernel
@in_lab()
def test_forgetting_ends_the_child_that_asks(node: DemoNode) -> None:
    source = node.add_source("one")
    question = question_of(source)
    source.pause()
    with Probes() as probes:
        probes.ask(question)
        probes.pool.forget(question.device)
        end = time.monotonic() + SECONDS
        while probes.pool.stuck(time.monotonic() + 5, 0):
            assert time.monotonic() < end
            assert probes.pool.collect(time.monotonic()) == []
        source.resume()
        assert probes.one(question).answer is Answer.ANSWERED


@pytest.mark.kernel
@in_lab()
def test_a_mount_for_its_owner_only_is_asked_as_its_owner(node: DemoNode) -> None:
    path = f"{node.lab}/private/mount"
    os.makedirs(path)
    source = node.add_source(
        "one", path=path, options=ServerOptions(user_id=1000, allows_other=False)
    )
    os.chmod(f"{node.lab}/private", 0o700)  # as the kubelet's pods directory
    device = Device(*map(int, device_in_table(path).split(":")))
    as_root, as_owner = Question(device, path), Question(device, path, 0, 1000, 1000)
    as_other = Question(device, path, 0, 1000, 1001)
    with Probes() as probes:
        assert probes.one(as_root).answer is Answer.NOT_ALLOWED
        assert probes.one(as_other).answer is Answer.NOT_ALLOWED
        assert probes.one(as_owner).answer is Answer.ANSWERED
        source.kill()
        assert probes.one(as_root).answer is Answer.NOT_ALLOWED
        assert probes.one(as_owner).answer is Answer.DISCONNECTED


def device_in_table(path: str) -> str:
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return [line.split()[2] for line in file if line.split()[4] == path][-1]


@pytest.mark.kernel
@in_lab()
def test_another_mount_at_the_path_is_no_answer(node: DemoNode) -> None:
    source = node.add_source("one")
    question = question_of(source)
    source.restart()
    with Probes() as probes:
        other = Question(Device(question.device.major, 1 << 19), source.path)
        assert probes.one(other).answer is None
        assert probes.one(Question(other.device, f"{source.path}/nowhere")).answer is None
        assert probes.one(Question(other.device, f"{node.lab}/nowhere")).answer is None


@pytest.mark.kernel
@in_lab()
def test_a_dead_mount_on_the_way_says_nothing_of_the_one_behind_it(node: DemoNode) -> None:
    outer = node.add_source(
        "outer", files={"inner/.keep": ""}, options=ServerOptions(attr_timeout=0.0)
    )
    inner = node.add_source("inner", path=f"{outer.path}/inner")
    question = question_of(inner)
    outer.kill()
    with Probes() as probes:
        answer = probes.one(question)
        assert (answer.answer, answer.errno) in [(None, errno.ENOTCONN), (Answer.ANSWERED, 0)]
        assert probes.one(Question(device_at(outer.path), outer.path)).answer is (
            Answer.DISCONNECTED
        )
    outer.unmount()


@pytest.mark.kernel
@in_lab()
def test_a_mount_inside_a_container_is_asked_there(node: DemoNode) -> None:
    source = node.add_source("one")
    pod = node.add_pod("app", [PodVolume("v", source)], [PodMount("v", "/data")])
    container = node.start_container(pod)
    device = device_at(source.path)
    question = inside(device, "/data", container.pid)
    with Probes() as probes:
        assert probes.one(question).answer is Answer.ANSWERED
        assert probes.one(Question(device, "/data")).answer is None
        for is_covered in (False, True):
            later = replace(question, start_time=question.start_time + 1, is_covered=is_covered)
            assert probes.one(later).answer is None, "the pid is another process's by now"
        source.kill()
        assert probes.one(question).answer is Answer.DISCONNECTED
        container.stop()
        assert probes.one(replace(question, pid=question.pid or 1 << 22)).answer is None


@pytest.mark.kernel
@in_lab()
def test_a_child_that_ends_leaves_no_question_open(node: DemoNode) -> None:
    source = node.add_source("one")
    question = question_of(source)
    source.pause()
    with Probes() as probes:
        probes.ask(question)
        os.kill(probes.spawned[0].pid, signal.SIGKILL)
        (answer,) = probes.wait(1)
        assert answer.answer is None
        source.resume()
        assert probes.one(question).answer is Answer.ANSWERED


@pytest.mark.kernel
@in_lab()
def test_an_answered_probe_holds_no_reference(node: DemoNode) -> None:
    source = node.add_source("one")
    with Probes() as probes:
        assert probes.one(question_of(source)).answer is Answer.ANSWERED
        syscalls.umount2(source.path)  # EBUSY otherwise


# ----------------------------------------------------------------- the pool by itself


class NoServer(ForkServer):
    """Takes the place of the fork server for workers that are sockets only."""

    def __init__(self) -> None:
        self.children: list[FakeChild] = []

    def kill(self, number: int) -> None:
        child = self.children[number]
        child.is_killed = True
        if not child.is_held:
            child.die()


@dataclass
class FakeChild:
    number: int
    credentials: Credentials | None
    channel: Channel
    asked: list[int] = field(default_factory=list)
    """Minors of the devices it was asked about and did not answer."""
    is_held: bool = False
    """Its server has read the request: SIGKILL waits for the answer."""
    is_killed: bool = False
    is_dead: bool = False

    def die(self) -> None:
        self.is_dead = True
        self.asked.clear()
        self.channel.close()


class FakeChildren:
    """Children without processes: the test decides when they answer, or end."""

    def __init__(self) -> None:
        self.server = NoServer()
        self.all = self.server.children
        self.fails = False

    def spawn(self, credentials: Credentials | None) -> Worker:
        if self.fails:
            raise WorkerError("no more processes")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        child = FakeChild(len(self.all), credentials, Channel(theirs))
        self.all.append(child)
        return Worker(self.server, child.number, 0, Channel(ours))

    @property
    def processes(self) -> list[FakeChild]:
        """Children that exist, with what they were asked up to now."""
        processes = [child for child in self.all if not child.is_dead]
        for child in processes:
            if not child.is_killed:
                child.asked += [message["device"][1] for message in child.channel.receive()]
        return processes

    @property
    def living(self) -> list[FakeChild]:
        return [child for child in self.processes if not child.is_killed]

    def answer(self, child: FakeChild) -> None:
        """Let the file system answer, which ends a child that was killed meanwhile."""
        child.is_held = False
        child.asked.pop(0)
        if child.is_killed:
            child.die()
        else:
            child.channel.send({"errno": 0, "zeros": False})


USERS = (None, Credentials(1000, 1000), Credentials(1000, 1001))


class PoolMachine(RuleBasedStateMachine):
    """Any sequence of questions, answers, deaths and waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.children = FakeChildren()
        self.pool = ProbePool(self.children.spawn, LIMIT)
        self.now = 100.0
        self.open: dict[int, Credentials | None] = {}
        self.last_minor = 0

    def teardown(self) -> None:
        # Whatever happened: when children start and answer, every question is answered.
        self.children.fails = False
        for _ in range(20 * len(self.open) + 20):
            for child in self.children.processes:
                if child.asked:
                    self.children.answer(child)
            self.now = max(self.now, self.pool.next_deadline() or 0.0)
            self.take()
        assert not self.open
        self.pool.close()
        assert not self.children.processes

    def take(self) -> None:
        # Twice: a child that is told to end by the first call is gone in the second.
        for answer in [*self.pool.collect(self.now), *self.pool.collect(self.now)]:
            assert answer.device.minor in self.open, "answered twice or never asked"
            del self.open[answer.device.minor]

    def submit(self, minor: int, *, is_urgent: bool) -> None:
        user = self.open[minor]
        ids = (None, None) if user is None else (user.uid, user.gid)
        question = Question(Device(0, minor), "/mnt", 0, *ids, is_urgent=is_urgent)
        self.pool.submit(question, self.now)

    @rule(user=st.sampled_from(USERS), is_urgent=st.booleans())
    def ask(self, user: Credentials | None, is_urgent: bool) -> None:
        self.last_minor += 1
        self.open[self.last_minor] = user
        self.submit(self.last_minor, is_urgent=is_urgent)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), is_urgent=st.booleans())
    def ask_again(self, data: st.DataObject, is_urgent: bool) -> None:
        self.submit(data.draw(st.sampled_from(sorted(self.open))), is_urgent=is_urgent)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        minor = data.draw(st.sampled_from(sorted(self.open)))
        self.pool.forget(Device(0, minor))
        del self.open[minor]

    @precondition(lambda self: any(child.asked for child in self.children.living))
    @rule(data=st.data())
    def a_server_reads_a_request(self, data: st.DataObject) -> None:
        child = data.draw(st.sampled_from([c for c in self.children.living if c.asked]))
        child.is_held = True

    @precondition(lambda self: any(child.asked for child in self.children.processes))
    @rule(data=st.data(), dies=st.booleans())
    def end_one(self, data: st.DataObject, dies: bool) -> None:
        child = data.draw(st.sampled_from([c for c in self.children.processes if c.asked]))
        if dies:
            child.die()
        else:
            self.children.answer(child)
        self.take()

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.02, 0.5, 1.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.take()

    @rule()
    def wait_as_long_as_told(self) -> None:
        self.now = max(self.now, self.pool.next_deadline() or self.now)
        self.take()

    @rule(fails=st.booleans())
    def starting_children(self, fails: bool) -> None:
        self.children.fails = fails

    @invariant()
    def rules_hold(self) -> None:
        self.take()
        processes = self.children.processes
        assert len(processes) <= 2 * LIMIT
        assert all(len(child.asked) <= 1 for child in processes)
        asked = [minor for child in processes for minor in child.asked if minor in self.open]
        assert len(asked) == len(set(asked))
        queued = {device.minor for device in self.pool.unasked | self.pool.withdrawn}
        assert queued.isdisjoint(asked)
        assert queued | set(asked) == set(self.open)
        for child in processes:
            assert all(
                self.open.get(minor) == child.credentials
                for minor in child.asked
                if minor in self.open
            )
        idle = {child.credentials for child in self.children.living if not child.asked}
        busy = sum(child.is_killed or bool(child.asked) for child in processes)
        if busy < 2 * LIMIT - max(1, LIMIT // 2):
            assert idle.isdisjoint({self.open[minor] for minor in queued}), (
                "a question waits for no one"
            )
        due = self.pool.next_deadline()
        assert due is None or due > self.now, "the loop outside would spin"


@pytest.mark.parametrize("examples", [50, pytest.param(400, marks=pytest.mark.slow)])
def test_any_sequence_of_questions_and_answers(examples: int) -> None:
    run_state_machine_as_test(
        PoolMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def ask_many(pool: ProbePool, count: int, now: float) -> None:
    for minor in range(count):
        pool.submit(Question(Device(0, minor), "/mnt"), now)


def test_children_that_answer_at_once_stay_few() -> None:
    children = FakeChildren()
    pool = ProbePool(children.spawn, 16)
    ask_many(pool, 100, 0.0)
    for turn in range(100):
        for child in children.living:
            if child.asked:
                children.answer(child)
        pool.collect(turn * 0.0001)
    assert len(children.all) == 1
    pool.close()


def test_slow_mounts_get_more_children_step_by_step() -> None:
    children = FakeChildren()
    pool = ProbePool(children.spawn, 4)
    ask_many(pool, 50, 0.0)
    counts = []
    for turn in range(1, 8):
        now = turn * 0.02
        # Each child answers within 10 ms, so none of them counts as stalled.
        for child in children.living:
            if child.asked:
                children.answer(child)
        pool.collect(now - 0.01)
        pool.collect(now)
        counts.append(len(children.living))
    assert counts == [2, 3, 4, 4, 4, 4, 4]
    pool.close()


def test_stuck_children_make_room_once() -> None:
    children = FakeChildren()
    pool = ProbePool(children.spawn, 2)
    ask_many(pool, 10, 0.0)
    now, counts = 0.0, []
    for _ in range(20):
        due = pool.next_deadline()
        if due is None:
            break
        now = due
        pool.collect(now)
        counts.append((round(now, 2), len(children.living)))
    assert counts == [(0.02, 2), (1.0, 3)]
    assert len(pool.unasked) == 7
    assert pool.stuck(now + 10, 10) == 3
    pool.close()


def stuck_pool(children: FakeChildren, limit: int) -> ProbePool:
    """Let ordinary questions hold every child that they may."""
    pool = ProbePool(children.spawn, limit)
    ask_many(pool, 50, 0.0)
    for turn in range(200):
        pool.collect(turn * 0.02)
    return pool


def urgent(minor: int) -> Question:
    return Question(Device(0, minor), "/mnt", is_urgent=True)


def asked_of(children: FakeChildren) -> set[int]:
    return {minor for child in children.processes for minor in child.asked}


def test_however_many_hang_an_urgent_question_is_asked_at_once() -> None:
    children = FakeChildren()
    pool = stuck_pool(children, 4)
    assert len(children.processes) == 6
    pool.submit(urgent(100), 5.0)
    assert 100 in asked_of(children)
    pool.close()


def of(owner: Owner, minor: int, *, is_urgent: bool = True) -> Question:
    return Question(Device(0, minor), "/mnt", owner=owner, is_urgent=is_urgent)


def test_however_many_mounts_of_others_hang_what_the_node_needs_is_asked_at_once() -> None:
    children = FakeChildren()
    pool = ProbePool(children.spawn, 8)
    owners = [FOREIGN, *(pod_owner(f"pod{number}") for number in range(30))]
    now, hung = 0.0, set()
    for number in range(3000):
        hung.add(number)
        pool.submit(of(owners[number % len(owners)], number), now)
    for _ in range(300):
        now += 0.02
        pool.collect(now)
    for minor in range(10_000, 10_008):
        pool.submit(of(AGENT, minor, is_urgent=minor % 2 == 0), now)
        for _ in range(3):
            now += 0.02
            pool.collect(now)
        assert minor in asked_of(children)
    assert len(asked_of(children) & hung) <= 4
    assert pool.late_owners(now - 1.0)[AGENT] == 0
    assert pool.late_owners(now - 1.0).total() >= len(hung) - 4
    pool.close()


def test_one_owner_holds_few_children_and_the_next_has_its_turn() -> None:
    children = FakeChildren()
    pool = ProbePool(children.spawn, 16)
    now = 0.0
    for minor in range(100):
        pool.submit(of(FOREIGN, minor), now)
    pool.submit(of(pod_owner("a"), 1000), now)
    for _ in range(100):
        now += 0.02
        pool.collect(now)
    assert 1000 in asked_of(children)
    assert len(asked_of(children)) == 1 + OF_FOREIGN.stuck_workers
    # Once they answer, all of them are asked.
    answered = 0
    while answered < 101:
        for child in children.living:
            if child.asked:
                children.answer(child)
        now += 0.02
        answered += len(pool.collect(now))
    assert not pool.unasked
    pool.close()


def test_a_question_costs_the_same_however_many_wait() -> None:
    def cost_of(waiting: int) -> int:
        children = FakeChildren()
        pool = ProbePool(children.spawn, 4)
        for minor in range(waiting):
            pool.submit(of(FOREIGN, minor), 0.0)
        cost = calls_of(lambda: pool.submit(of(FOREIGN, waiting - 1, is_urgent=False), 0.0))
        cost += calls_of(lambda: pool.submit(of(FOREIGN, waiting + 1), 0.0))
        pool.close()
        return cost

    assert cost_of(5000) == cost_of(50)


def test_one_that_waits_becomes_urgent_where_it_stands() -> None:
    children = FakeChildren()
    pool = stuck_pool(children, 4)
    assert 49 not in asked_of(children)
    pool.submit(urgent(49), 5.0)
    assert 49 in asked_of(children)
    assert len(pool.unasked) == 43
    pool.close()


def test_urgent_ones_that_hang_give_way_to_the_next_and_are_asked_again() -> None:
    children = FakeChildren()
    pool = stuck_pool(children, 2)
    assert asked_of(children) == {0, 1, 2}
    pool.submit(urgent(100), 5.0)
    pool.submit(urgent(101), 5.1)
    assert 101 not in asked_of(children)
    now = 5.1
    while 101 not in asked_of(children):
        due = pool.next_deadline()
        assert due is not None and due < 10.0
        now = max(now, due)
        assert pool.collect(now) == []
    assert len(pool.withdrawn) == 1
    assert len(children.processes) == 4
    pool.close()


def test_children_that_nothing_can_end_are_counted() -> None:
    """Their servers have read the requests; file systems come and go meanwhile."""
    children = FakeChildren()
    pool = ProbePool(children.spawn, 2)
    now = 0.0
    for minor in range(30):
        pool.submit(urgent(minor), now)
        for child in children.processes:
            child.is_held = bool(child.asked)
        for _ in range(5):
            now = max(now + 0.5, pool.next_deadline() or 0.0)
            pool.collect(now)
        pool.forget(Device(0, minor))
    assert len(children.processes) == 4
    assert pool.stuck(now + 10, 10) == 4
    assert not pool.unasked
    for child in children.processes:
        children.answer(child)
    pool.collect(now)
    assert pool.stuck(now + 10, 10) == 0
    pool.close()


def test_idle_children_are_ended_but_two() -> None:
    children = FakeChildren()
    pool = ProbePool(children.spawn, 8)
    ask_many(pool, 5, 0.0)
    for turn in range(1, 10):
        pool.collect(turn * 0.02)
    for child in children.living:
        children.answer(child)
    assert len(pool.collect(1.0)) == 5
    pool.collect(1.0 + probe_pool.IDLE_SECONDS - 0.1)
    assert len(children.living) == 5
    pool.collect(1.0 + probe_pool.IDLE_SECONDS)
    assert len(children.living) == probe_pool.MAX_IDLE
    pool.close()


def test_idle_children_of_one_user_make_room_for_another() -> None:
    children = FakeChildren()
    pool = ProbePool(children.spawn, 1)
    ask_many(pool, 1, 0.0)
    children.answer(children.living[0])
    assert len(pool.collect(0.0)) == 1
    pool.submit(Question(Device(0, 7), "/mnt", 0, 1000, 1000), 0.0)
    assert [child.credentials for child in children.living] == [Credentials(1000, 1000)]
    pool.close()


def test_children_that_cannot_be_started_are_tried_again_later() -> None:
    children = FakeChildren()
    children.fails = True
    pool = ProbePool(children.spawn, 2)
    ask_many(pool, 1, 0.0)
    assert pool.next_deadline() == probe_pool.RETRY_SECONDS
    assert pool.unasked == {Device(0, 0)}
    children.fails = False
    pool.collect(probe_pool.RETRY_SECONDS / 2)
    assert not children.all
    pool.collect(probe_pool.RETRY_SECONDS)
    assert children.living[0].asked == [0]
    pool.close()


def test_the_descriptor_stays_when_children_come_and_go() -> None:
    children = FakeChildren()
    pool = ProbePool(children.spawn, 2)
    fd = pool.fileno()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    for turn in range(3):
        ask_many(pool, 1, float(turn))
        assert not poll.poll(0)
        children.living[0].channel.close()
        assert poll.poll(1000)
        assert [a.answer for a in pool.collect(float(turn))] == [None]
        assert pool.fileno() == fd
    pool.close()


Reply = dict[str, object]


@pytest.mark.parametrize(
    ("reply", "answer", "number"),
    [
        ({"errno": 0, "zeros": False}, Answer.ANSWERED, 0),
        ({"errno": 0, "zeros": True}, Answer.NOT_ALLOWED, 0),
        ({"errno": errno.ENOTCONN, "refuser": "kernel"}, Answer.DISCONNECTED, errno.ENOTCONN),
        ({"errno": errno.ECONNABORTED, "refuser": "kernel"}, Answer.DISCONNECTED, 103),
        ({"errno": errno.ENOTCONN, "refuser": "server"}, Answer.REFUSED, errno.ENOTCONN),
        ({"errno": errno.ENOTCONN, "refuser": "unsure"}, Answer.REFUSED, errno.ENOTCONN),
        ({"errno": errno.EACCES}, Answer.NOT_ALLOWED, errno.EACCES),
        ({"errno": errno.EIO}, Answer.ERROR, errno.EIO),
        ({"errno": errno.ENOENT}, Answer.ERROR, errno.ENOENT),
        ({"unreachable": errno.ENOTCONN}, None, errno.ENOTCONN),
        ({"unreachable": errno.EACCES}, None, errno.EACCES),
        ({"unreachable": errno.ENOENT}, None, errno.ENOENT),
        ({"unreachable": errno.ESRCH}, None, errno.ESRCH),
        ({"moved": True}, None, 0),
    ],
)
def test_what_a_reply_means(reply: Reply, answer: Answer | None, number: int) -> None:
    children = FakeChildren()
    pool = ProbePool(children.spawn, 2)
    ask_many(pool, 1, 5.0)
    children.living[0].channel.send(reply)
    assert pool.collect(6.0) == [ProbeAnswer(Device(0, 0), answer, number, 5.0)]
    pool.close()
