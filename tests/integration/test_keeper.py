"""What callers see when a server dies whose connection is held: real mounts, real servers."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.sources import ServerOptions, Source
from fusewatchd.demo.timeouts import patient
from fusewatchd.keeper.client import Client
from fusewatchd.keeper.process import stop
from fusewatchd.keeper.protocol import (
    Answered,
    Connections,
    Done,
    End,
    Hold,
    List,
    Refusal,
    Refused,
    Release,
    Replaced,
    State,
    Update,
    Watch,
    answer_of,
    socket_path,
)
from fusewatchd.linux import syscalls
from fusewatchd.linux.fuse_device import connection_of
from tests.backends import backends
from tests.keeping import (
    FILES,
    Call,
    KeeperProcess,
    Room,
    clone_of_server,
    error_names,
    operations,
    replace_here,
)
from tests.lab import in_lab
from tests.programs import PROGRAMS
from tests.waiting import wait_until

pytestmark = pytest.mark.kernel
SLOW = pytest.mark.slow


@dataclass
class Stage:
    """A source that is bound where a pod's volume would be, and a container that sees it there."""

    node: DemoNode
    keeper: KeeperProcess
    source: Source
    target: str
    pod: str
    room: Room
    hold: int

    def start_all(self, *, writes: bool = True) -> dict[str, Call]:
        tasks = operations(self.target)
        names = [name for name in tasks if writes or name in ("stat", "read", "list", "deep")]
        return {name: self.room.call(tasks[name]) for name in names}

    def waiting(self) -> int:
        one = self.keeper.connection(self.hold)
        return one.waiting if one else -1

    def wait_until_waiting(self, count: int) -> None:
        wait_until(lambda: self.waiting() == count, lambda: str(self.keeper.listed()))

    def replace(self) -> None:
        replace_here(self.target, self.source.path)
        self.room.replace(self.target, self.source.path)

    def ask(self, request: Replaced | Release | Update) -> object:
        with self.keeper.client() as client:
            return client.ask(request)

    def wait_for_end(self, *how: End) -> None:
        wait_until(lambda: self.keeper.ended(self.hold), lambda: str(self.keeper.listed()))
        ended = self.keeper.ended(self.hold)
        assert ended is not None
        assert ended.how in how


@contextmanager
def stage(
    node: DemoNode,
    *,
    grace: float = 30.0,
    propagation: int = syscalls.MS_PRIVATE,
    command: Sequence[str] = (),
    backing: str = "",
    part: str = "",
    options: ServerOptions | None = None,
) -> Iterator[Stage]:
    source = node.add_source("one", files=FILES, command=command, backing=backing, options=options)
    target = os.path.join(node.lab, "volume")
    os.mkdir(target)
    syscalls.mount(os.path.join(source.path, part), target, None, syscalls.MS_BIND)
    pod = f"/{node.world.cgroup}/kubepods/besteffort/podweb"
    with KeeperProcess(node.lab) as keeper:
        room = Room(f"{pod}/c1", propagation)
        # The one that serves, where its parent is in another pid namespace.
        pid = source.server.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        is_hidden = command[:1] == ("unshare",)
        hold = keeper.hold(
            int(children[0]) if is_hidden else pid,
            source.path,
            [pod],
            grace=grace,
            pids_are_hosts=not is_hidden,
        )
        try:
            yield Stage(node, keeper, source, target, pod, room, hold)
        finally:
            room.close()
            syscalls.umount2(target, syscalls.MNT_DETACH)


def restart(s: Stage) -> None:
    """Do what a driver and the daemon do: a new mount, and that in every place."""
    syscalls.umount2(s.source.path, syscalls.MNT_DETACH)
    s.source.start()
    s.replace()


def come_out(s: Stage, calls: dict[str, Call]) -> None:
    """Send everybody to the new mount; nobody sees an error."""
    restart(s)
    answer = s.ask(Replaced(s.hold))
    assert isinstance(answer, Answered)
    assert answer.callers == len(calls)
    outcomes = {name: call.outcome() for name, call in calls.items()}
    assert error_names(outcomes) == {}
    assert outcomes["read"].value == "one"
    if "create" in calls:
        size = s.room.call(lambda: os.stat(f"{s.target}/created").st_size).outcome()
        assert size.value == 1


@pytest.mark.parametrize("propagation", [syscalls.MS_PRIVATE, syscalls.MS_SLAVE])
@in_lab(timeout=90)
def test_callers_wait_and_come_out_in_the_new_mount(node: DemoNode, propagation: int) -> None:
    with stage(node, propagation=propagation) as s:
        s.source.kill()
        calls = s.start_all()
        s.wait_until_waiting(len(calls))
        assert {call.state() for call in calls.values()} == {"S"}
        come_out(s, calls)
        s.wait_for_end(End.GONE, End.REPLACED)
        assert s.keeper.listed().connections == ()
        # What is stored is let go, and nobody is watched any more.
        s.keeper.wait_for("removed")
        s.keeper.wait_for("watched", 2)
        assert s.keeper.lines("removed") == [f"removed hold-{s.hold} 2"]
        assert s.keeper.lines("watched") == ["watched 1000000", "watched 0"]


@in_lab(timeout=90)
def test_nobody_waits_for_the_lock_of_a_directory(node: DemoNode) -> None:
    with stage(node) as s:
        warm = s.room.call(lambda: [os.stat(s.target).st_size, os.stat(f"{s.target}/sub").st_size])
        assert warm.outcome().errno == 0
        s.source.kill()
        calls = s.start_all()
        s.wait_until_waiting(len(calls))
        assert {call.state() for call in calls.values()} == {"S"}
        # The last one first, as behind a lock it would be.
        for call in reversed(calls.values()):
            assert call.kill() < patient(0.5)
        s.wait_until_waiting(0)


@in_lab(timeout=90)
def test_who_stands_behind_a_lock_is_freed(node: DemoNode) -> None:
    """A part of a volume has no gate: its root's attributes are known to the kernel."""
    with stage(node, part="sub", options=ServerOptions(attr_timeout=600.0)) as s:
        warm = s.room.call(lambda: os.stat(f"{s.target}/hello").st_size)
        assert warm.outcome().errno == 0
        s.source.kill()
        patient_one = s.room.call(lambda: os.statvfs(s.target).f_bsize)
        s.wait_until_waiting(1)
        calls = [s.room.call(partial(os.mkdir, f"{s.target}/{number}")) for number in range(4)]
        assert [call.outcome().errno for call in calls] == [errno.ENOTCONN] * 4
        one = s.keeper.connection(s.hold)
        assert one is not None
        assert one.counts.locked >= 1
        # What holds no lock waits on.
        assert s.waiting() == 1
        assert patient_one.kill() < patient(0.5)


@in_lab(timeout=90)
def test_callers_whose_pid_is_hidden_wait_and_can_be_killed(node: DemoNode) -> None:
    """As those of a server that mounted from its own container."""
    hidden = ("unshare", "--pid", "--fork", "--kill-child", "bindfs", "-f", "{backing}", "{mount}")
    with stage(node, command=hidden) as s:
        s.source.kill()
        calls = s.start_all()
        s.wait_until_waiting(len(calls))
        victim = s.room.call(lambda: os.stat(f"{s.target}/hello").st_size)
        s.wait_until_waiting(len(calls) + 1)
        assert victim.kill() < patient(0.5)
        come_out(s, calls)


@in_lab(timeout=90)
def test_a_signal_ends_the_wait(node: DemoNode) -> None:
    def handled() -> object:
        seen: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
        try:
            os.stat(f"{s.target}/hello")
        except OSError as exc:
            return [seen, exc.errno]
        return None

    def ticking() -> object:
        ticks: list[int] = []
        signal.signal(signal.SIGALRM, lambda number, _: ticks.append(number))
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        return os.stat(f"{s.target}/hello").st_size

    with stage(node) as s:
        s.source.kill()
        with_handler, with_timer = s.room.call(handled), s.room.call(ticking)
        s.wait_until_waiting(2)
        time.sleep(0.3)  # the timer has fired: only the first signal is told of
        assert s.waiting() == 2
        os.kill(with_handler.pid, signal.SIGTERM)
        assert with_handler.outcome().value == [[signal.SIGTERM], errno.ENOTCONN]
        assert with_timer.kill() < patient(0.5)
        s.wait_until_waiting(0)


@in_lab(timeout=90)
def test_open_files_and_the_host_are_as_without_a_keeper(node: DemoNode) -> None:
    def with_open_file() -> object:
        with open(f"{s.target}/hello", "rb", 0) as file:
            os.write(ours, b".")
            while os.path.exists(marker):
                time.sleep(0.005)
            try:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                return [file.read(), 0]
            except OSError as exc:
                return [None, exc.errno]

    with stage(node) as s:
        marker = os.path.join(node.lab, "marker")
        open(marker, "wb").close()
        theirs, ours = os.pipe()
        reader, sleeper = s.room.call(with_open_file), s.room.call(with_open_file)
        os.read(theirs, 1)
        os.read(theirs, 1)
        s.source.kill()
        # Exit closes the file: that asks the server.
        assert sleeper.kill() < patient(0.5)
        os.unlink(marker)
        assert reader.outcome().errno in (0, errno.ENOTCONN)
        host = Call(lambda: os.stat(f"{s.target}/hello").st_size).outcome()
        assert host.errno == errno.ENOTCONN
        other = Room(f"/{node.world.cgroup}/kubepods/besteffort/podother/c1")
        stranger = other.call(lambda: os.listdir(s.target)).outcome()
        other.close()
        assert stranger.errno == errno.ENOTCONN
        assert s.waiting() == 0
        one = s.keeper.connection(s.hold)
        assert one is not None
        assert one.counts.host >= 2


@in_lab(timeout=90)
def test_a_keeper_that_is_killed_goes_on(node: DemoNode) -> None:
    with stage(node) as s:
        s.source.kill()
        first = s.room.call(lambda: os.stat(f"{s.target}/hello").st_size)
        s.wait_until_waiting(1)
        s.keeper.kill()
        assert first.outcome().errno == errno.ECONNABORTED
        s.keeper.wait_for("ready", 2)
        calls = s.start_all()
        s.wait_until_waiting(len(calls))
        come_out(s, calls)
        s.wait_for_end(End.GONE, End.REPLACED)


@in_lab(timeout=90)
def test_a_server_that_dies_while_the_keeper_is_away_is_held(node: DemoNode) -> None:
    with stage(node) as s:
        s.keeper.kill(signal.SIGSTOP)
        s.source.kill()
        s.keeper.kill()
        s.keeper.wait_for("ready", 2)
        calls = s.start_all()
        s.wait_until_waiting(len(calls))
        come_out(s, calls)


@in_lab(timeout=90)
def test_a_keeper_that_stands_still_lets_go(node: DemoNode) -> None:
    with stage(node) as s:
        s.source.kill()
        calls = s.start_all()
        s.wait_until_waiting(len(calls))
        s.keeper.kill(signal.SIGSTOP)
        errors = {name: call.outcome().errno for name, call in calls.items()}
        assert set(errors.values()) == {errno.ECONNABORTED}
        assert len(s.keeper.lines("killed")) == 1
        s.keeper.wait_for("ready", 2)


@in_lab(timeout=90)
def test_after_the_grace_it_is_as_without_a_keeper(node: DemoNode) -> None:
    with stage(node, grace=0.5) as s:
        s.source.kill()
        outcome = s.room.call(lambda: os.listdir(s.target)).outcome()
        assert outcome.errno == errno.ENOTCONN
        s.wait_for_end(End.GRACE)
        ended = s.keeper.ended(s.hold)
        assert ended is not None
        assert (ended.counts.waited, ended.counts.given_up) == (1, 1)
        assert ended.counts.longest_seconds > 0.1
        later = s.room.call(lambda: os.listdir(s.target)).outcome()
        assert later.errno == errno.ENOTCONN


@in_lab(timeout=90)
def test_what_is_released_ends_and_so_does_everything_at_a_stop(node: DemoNode) -> None:
    with stage(node) as s:
        s.source.kill()
        first = s.room.call(lambda: os.listdir(s.target))
        s.wait_until_waiting(1)
        assert s.ask(Release(s.hold)) == Done()
        assert first.outcome().errno == errno.ENOTCONN
        s.wait_for_end(End.RELEASED)
        restart(s)
        s.hold = s.keeper.hold(s.source.server.pid, s.source.path, [s.pod])
        s.source.kill()
        second = s.room.call(lambda: os.listdir(s.target))
        s.wait_until_waiting(1)
        assert stop(s.keeper.path)
        assert second.outcome().errno == errno.ENOTCONN
        s.keeper.wait_for("ended")
        assert s.keeper.lines("ended") == ["ended 0"]
        assert not stop(s.keeper.path)


@in_lab(timeout=90)
def test_a_pod_that_is_deleted_does_not_wait(node: DemoNode) -> None:
    with stage(node) as s:
        pods = (s.pod, f"{s.pod}2")
        other = Room(f"{s.pod}2/c1")
        s.ask(Update(s.hold, pods))
        s.source.kill()
        mine = s.room.call(lambda: os.listdir(s.target))
        neighbour = other.call(lambda: os.listdir(s.target))
        s.wait_until_waiting(2)
        s.ask(Update(s.hold, pods, deleting=(s.pod,)))
        assert mine.outcome().errno == errno.ENOTCONN
        assert s.waiting() == 1
        restart(s)
        other.replace(s.target, s.source.path)
        s.ask(Replaced(s.hold))
        assert neighbour.outcome().errno == 0
        other.close()


@in_lab(timeout=90)
def test_a_server_that_is_well_is_left_alone(node: DemoNode) -> None:
    def switches() -> int:
        text = Path(f"/proc/{pid}/status").read_text()
        return int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])

    def work() -> int:
        for number in range(200):
            with open(f"{s.target}/{number}", "w", encoding="ascii") as file:
                file.write("x")
        return len(os.listdir(s.target))

    with stage(node) as s:
        pid = s.keeper.listed().pid
        time.sleep(0.2)
        before = switches()
        assert s.room.call(work).outcome().value == 200 + 4
        assert switches() == before
        one = s.keeper.connection(s.hold)
        assert one is not None
        assert (one.state, one.since_seconds, one.waiting) == (State.HEALTHY, 0.0, 0)
        # Unmounted everywhere and ended, it is no longer held.
        s.room.close()
        syscalls.umount2(s.target)
        syscalls.umount2(s.source.path)
        s.wait_for_end(End.GONE, End.REPLACED)
        syscalls.mount("x", s.target, "tmpfs", 0)


@in_lab(timeout=90)
def test_what_cannot_be_held_is_refused(node: DemoNode) -> None:
    with stage(node) as s, s.keeper.client() as client, ExitStack() as stack:

        def own(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        server = own(os.pidfd_open(s.source.server.pid))
        copy = own(clone_of_server(s.source.server.pid))
        null = own(os.open("/dev/null", os.O_RDONLY))
        bare = own(os.open("/dev/fuse", os.O_RDWR))
        number = connection_of(copy) or 0
        ended = own(pidfd_of_what_has_ended())
        hold = Hold(number, "test", 5.0, pids_are_hosts=True, pods=(s.pod,))
        tried: list[tuple[Hold, list[int], Refusal]] = [
            (hold, [], Refusal.NOT_FUSE),
            (hold, [null, server], Refusal.NOT_FUSE),
            (replace(hold, connection=number + 1), [copy, server], Refusal.OTHER_CONNECTION),
            (hold, [copy, server], Refusal.HELD_ALREADY),
            (hold, [copy] * 18, Refusal.NOT_UNDERSTOOD),
        ]
        for request, descriptors, why in tried:
            answer = client.ask(request, descriptors)
            assert isinstance(answer, Refused)
            assert answer.why is why, request
        client.ask(Release(s.hold))
        s.wait_for_end(End.RELEASED)
        for descriptors, why in (
            ([copy], Refusal.NO_SERVER),
            ([copy, null], Refusal.NO_SERVER),
            ([copy, ended], Refusal.NO_SERVER),
            ([bare, server], Refusal.CANNOT_CLONE),
        ):
            answer = client.ask(hold, descriptors)
            assert isinstance(answer, Refused)
            assert answer.why is why
        for gone in (Release(s.hold), Replaced(s.hold), Update(s.hold, ()), Watch(s.hold)):
            answer = client.ask(gone)
            assert answer == Refused(Refusal.NOT_HELD)
        assert os.stat(f"{s.target}/hello").st_size == 3


@in_lab(timeout=90)
def test_nonsense_on_the_socket_costs_nobody_anything(node: DemoNode) -> None:
    with stage(node) as s:
        pid = s.keeper.listed().pid
        before = len(os.listdir(f"/proc/{pid}/fd"))
        for packet in (b"x", b"[]", b'[9,"Stop",{}]', b'[1,"Hold",{}]', b"[" * 150_000):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as raw:
                raw.connect(s.keeper.path)
                socket.send_fds(raw, [packet], [0, 1, 2])
                answer = answer_of(raw.recv(1 << 17))
                assert isinstance(answer, Refused)
        silent = []
        for _ in range(40):
            raw = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            silent.append(raw)
            raw.setblocking(False)
            with suppress(OSError):
                raw.connect(s.keeper.path)
        for raw in silent:
            raw.close()
        wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= before)
        assert s.keeper.connection(s.hold) is not None


@pytest.mark.parametrize("name", ["bindfs", "pyfuse3", pytest.param("mergerfs", marks=SLOW)])
@in_lab(timeout=120)
def test_servers_that_others_wrote(node: DemoNode, name: str) -> None:
    program = PROGRAMS[name]
    if why_not := program.why_not():
        pytest.skip(why_not)
    with backends(node.lab, FILES) as behind:
        command = program.command(behind)
        with stage(node, command=command, backing=behind.directory) as s:
            for _ in range(2):
                s.source.kill()
                calls = s.start_all(writes=name != "pyfuse3")
                s.wait_until_waiting(len(calls))
                come_out(s, calls)
                s.wait_for_end(End.GONE, End.REPLACED)
                shutil.rmtree(s.source.backing, ignore_errors=True)
                for file, content in FILES.items():
                    s.source.put(file, content)
                s.hold = s.keeper.hold(s.source.server.pid, s.source.path, [s.pod], grace=30.0)


@in_lab(timeout=60)
def test_without_systemd_it_listens_itself(node: DemoNode) -> None:
    path = socket_path(os.path.join(node.lab, "run"))
    command = [sys.executable, "-m", "fusewatchd", "keeper"]
    command += ["--set", f"runtime_dir={node.lab}/run"]

    def started() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, env=python_environment(), cwd="/")
        wait_until(lambda: answers(path))
        return process

    first = started()
    assert os.stat(path).st_mode & 0o777 == 0o600
    second = subprocess.run(
        command, env=python_environment(), cwd="/", check=False, capture_output=True, text=True
    )
    assert second.returncode == 2
    assert second.stderr == f"fusewatchd: Address already in use: {path}\n"
    first.kill()
    first.wait()
    third = started()
    with Client(path) as client:
        answer = client.ask(List())
    assert answer == Connections((), (), third.pid, survives=False)
    subprocess.run([*command, "--stop"], env=python_environment(), cwd="/", check=True)
    assert third.wait(patient(10.0)) == 0
    assert not os.path.exists(path)


def answers(path: str) -> bool:
    with suppress(OSError), Client(path) as client:
        return isinstance(client.ask(List()), Connections)
    return False


def pidfd_of_what_has_ended() -> int:
    pid = os.fork()
    if not pid:
        os._exit(0)
    fd = os.pidfd_open(pid)
    os.waitpid(pid, 0)
    return fd
