"""The fork server: who its workers are, what they hold, and that they never outlive anyone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from fusewatchd.demo.node.world import PrivateWorld
from fusewatchd.errors import WorkerError
from fusewatchd.model.capabilities import Capability
from fusewatchd.workers.channel import Channel
from fusewatchd.workers.fork_server import Credentials, ForkServer, Worker, WorkerKind
from fusewatchd.workers.privileges import Privileges
from tests.lab import run_in_world

pytestmark = pytest.mark.kernel

SECONDS = 20.0


def echo(channel: Channel) -> None:
    channel.serve(channel.send)


def describe(channel: Channel) -> None:
    """Answer any message with what this process is."""

    def answer(path: Any) -> None:
        with open("/proc/self/status", encoding="utf-8") as file:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in file)
        try:
            reads = sorted(os.listdir(path)) if path else []
        except OSError as exc:
            reads = [str(exc)]
        channel.send(
            {
                "pid": os.getpid(),
                "parent": os.getppid(),
                "session": os.getsid(0),
                "cwd": os.getcwd(),
                "status": status,
                "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
                "reads": reads,
            }
        )

    channel.serve(answer)


def crash(channel: Channel) -> None:
    channel.serve(lambda message: os._exit(3))


def raise_an_error(channel: Channel) -> None:
    raise RuntimeError("a fault in a worker")


def stop(channel: Channel) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


MAINS = {
    "echo": echo,
    "describe": describe,
    "crash": crash,
    "raise": raise_an_error,
    "stop": stop,
}
KEPT = frozenset({Capability.DAC_READ_SEARCH, Capability.SYS_PTRACE})
KINDS = {name: WorkerKind(main, Privileges(KEPT, frozenset())) for name, main in MAINS.items()}


def in_world(body: Callable[[ForkServer], Any]) -> None:
    """Run ``body`` with a fork server, in a world where no process may be left."""

    def with_server(world: PrivateWorld) -> None:
        server = ForkServer.start(KINDS)
        try:
            body(server)
        finally:
            server.close()

    run_in_world(with_server)


def ask(worker: Worker, message: Any) -> Any:
    worker.channel.send(message)
    return next_message(worker)


def next_message(worker: Worker) -> Any:
    poll = select.poll()
    poll.register(worker.channel, select.POLLIN)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        poll.poll(SECONDS * 1000)
        messages = worker.channel.receive()
        if messages:
            return messages[0]
    raise AssertionError("no answer")


def process_state(pid: int) -> str:
    """Return the state's letter, nothing for no process at all: not even a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.001)


def wait_until_gone(*pids: int) -> None:
    def are_gone() -> bool:
        return not any(map(process_state, pids))

    wait_for(are_gone, f"still there: {pids}")


def test_a_worker_works() -> None:
    def body(server: ForkServer) -> None:
        worker = server.spawn("echo")
        assert ask(worker, ["/mnt/\udcff", 1]) == ["/mnt/\udcff", 1]
        assert ask(worker, "x" * (1 << 20)) == "x" * (1 << 20)

    in_world(body)


def test_what_a_worker_is() -> None:
    def body(server: ForkServer) -> None:
        worker = server.spawn("describe")
        told = ask(worker, "")
        assert told["pid"] == worker.pid
        assert told["parent"] == server.pid
        assert told["session"] == server.pid != os.getsid(0)
        assert told["cwd"] == "/"
        assert told["status"]["Name"] == "fusewatchd-desc"
        assert told["status"]["Threads"] == "1"
        with open(f"/proc/{server.pid}/comm", encoding="utf-8") as file:
            assert file.read() == "fusewatchd-fork\n"

    in_world(body)


def test_a_worker_holds_its_channel_and_nothing_else() -> None:
    def body(world: PrivateWorld) -> None:
        with open(f"{world.lab}/lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            server = ForkServer.start(KINDS)
        workers = [server.spawn("describe") for _ in range(3)]
        for worker in workers:
            fds = ask(worker, "")["fds"]
            # Standard streams, the channel, and the listing itself.
            assert len(fds) == 5
            assert fds[:3] == [0, 1, 2]
        with open(f"{world.lab}/lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Were another's descriptor open in a younger worker this one would not notice.
        workers[0].channel.close()
        wait_until_gone(workers[0].pid)
        assert ask(workers[1], "")["pid"] == workers[1].pid
        server.close()

    run_in_world(body)


def test_a_worker_as_another_user_has_his_ids_only_and_still_finds_its_way() -> None:
    def body(world: PrivateWorld) -> None:
        os.makedirs(f"{world.lab}/private/inside")
        os.chmod(f"{world.lab}/private", 0o700)
        os.setgroups([4, 5])
        server = ForkServer.start(KINDS)
        told = ask(server.spawn("describe", Credentials(1000, 1001)), f"{world.lab}/private")
        status = told["status"]
        # Real, effective, saved and file system id: fs/fuse/dir.c, fuse_permissible_uidgid.
        assert status["Uid"].split() == ["1000"] * 4
        assert status["Gid"].split() == ["1001"] * 4
        assert status["Groups"].split() == []
        kept = sum(1 << bit for bit in KEPT)
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == kept
        assert int(status["CapInh"], 16) == 0
        assert told["reads"] == ["inside"]
        server.close()

    run_in_world(body)


def test_ends_of_workers_are_seen_and_reaped() -> None:
    def body(server: ForkServer) -> None:
        for kind in ("crash", "raise", "no such kind"):
            worker = server.spawn(kind)
            worker.channel.send("now")
            with pytest.raises(EOFError):
                next_message(worker)
            wait_until_gone(worker.pid)
        assert ask(server.spawn("echo"), 1) == 1

    in_world(body)


def test_killing_a_worker_that_does_nothing_any_more() -> None:
    def body(server: ForkServer) -> None:
        worker = server.spawn("stop")
        wait_for(lambda: process_state(worker.pid) == "T", "not stopped")
        worker.kill()
        worker.kill()
        wait_until_gone(worker.pid)

    in_world(body)


def test_killing_hits_nobody_who_has_the_pid_by_now() -> None:
    def body(server: ForkServer) -> None:
        first = server.spawn("crash")
        first.channel.send("now")
        wait_until_gone(first.pid)
        second = None
        for _ in range(100):
            with open("/proc/sys/kernel/ns_last_pid", "w", encoding="utf-8") as file:
                file.write(str(first.pid - 1))
            second = server.spawn("echo")
            if second.pid == first.pid:
                break
            second.kill()
        assert second is not None
        assert second.pid == first.pid
        first.kill()
        assert ask(second, "alive") == "alive"
        # A later request is behind the kill: by its answer the kill has been dealt with.
        server.spawn("echo").kill()
        assert ask(second, "alive") == "alive"

    in_world(body)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_ends_the_daemon_ends_nobody_else(number: signal.Signals) -> None:
    def body(server: ForkServer) -> None:
        worker = server.spawn("echo")
        assert ask(worker, 1) == 1
        os.kill(server.pid, number)
        os.kill(worker.pid, number)
        assert ask(worker, 2) == 2
        assert ask(server.spawn("echo"), 3) == 3

    in_world(body)


def start_daemon(end: socket.socket) -> int:
    """Fork a daemon that starts workers, tells their pids and then waits for its end."""
    pid = os.fork()
    if pid:
        return pid
    try:
        server = ForkServer.start(KINDS)
        workers = [server.spawn(kind) for kind in ("echo", "stop", "echo")]
        workers.append(server.spawn("stop", Credentials(1000, 1000)))
        ask(workers[0], "ready")
        Channel(end).send([server.pid, *(worker.pid for worker in workers)])
        signal.pause()
    finally:
        os._exit(1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nobody_outlives_the_daemon(number: signal.Signals) -> None:
    def body(world: PrivateWorld) -> None:
        ours, theirs = socket.socketpair()
        daemon = start_daemon(theirs)
        told: list[Any] = []
        channel = Channel(ours)

        def has_told() -> bool:
            told.extend(channel.receive())
            return bool(told)

        wait_for(has_told, "the daemon says nothing")
        pids = told[0]
        assert all(map(process_state, pids))
        os.kill(daemon, number)
        os.waitpid(daemon, 0)

        def are_gone() -> bool:
            # What the daemon leaves is ours to reap in this world.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            return not any(map(process_state, pids))

        wait_for(are_gone, f"they outlive the daemon: {pids}")

    run_in_world(body)


def test_without_its_server_no_worker_lives_or_starts() -> None:
    def body(server: ForkServer) -> None:
        worker = server.spawn("stop")
        wait_for(lambda: process_state(worker.pid) == "T", "not stopped")
        os.kill(server.pid, signal.SIGKILL)
        os.waitpid(server.pid, 0)

        def is_gone() -> bool:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            return not process_state(worker.pid)

        wait_for(is_gone, "the worker outlives its server")
        with pytest.raises(WorkerError):
            server.spawn("echo")
        worker.kill()

    in_world(body)


def test_closing_ends_everything_and_reaps_the_server() -> None:
    def body(world: PrivateWorld) -> None:
        server = ForkServer.start(KINDS)
        worker = server.spawn("stop")
        server.close()
        assert not process_state(server.pid)
        wait_for(lambda: process_state(worker.pid) in ("", "Z"), "the worker lives on")

    run_in_world(body)
