"""A front that does whatever it likes: it is replaced, it is told, and nobody waits for it."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from fusewatchd.daemon.front import process
from fusewatchd.daemon.front.parcel import Parcel
from fusewatchd.daemon.front.process import TOLD, Front, Told
from fusewatchd.demo.node.world import PrivateWorld
from fusewatchd.front.link import MAX_BYTES, Link
from fusewatchd.front.messages import (
    Answer,
    Ask,
    EventsKept,
    FromFront,
    Ping,
    PodsTold,
    Pong,
    Refresh,
    Serving,
    Stop,
    Topic,
    to_json,
)
from fusewatchd.workers.channel import Channel
from fusewatchd.workers.fork_server import ForkServer, WorkerKind
from fusewatchd.workers.privileges import PRIVILEGES, Kind
from tests.lab import run_in_world
from tests.waiting import wait_until

pytestmark = pytest.mark.kernel

DEADLINE = 20.0
HEADER = struct.Struct("!I")
UP = to_json(Serving(""))


def framed(data: bytes) -> bytes:
    return HEADER.pack(len(data)) + data


def said(value: object) -> bytes:
    return framed(json.dumps(value).encode())


def pods(document: str) -> bytes:
    return said(to_json(PodsTold(1, 1.0, "2xx", "", (), document)))


def kept(document: str) -> bytes:
    return said(to_json(EventsKept(0, document)))


ILL = {
    "no length": (b"\xff\xff\xff\xff", "a message of 4294967295 bytes"),
    "too long": (HEADER.pack(MAX_BYTES + 1), f"a message of {MAX_BYTES + 1} bytes"),
    "no JSON": (framed(b"\x80abc"), "not a message"),
    "too deep": (framed(b"[" * 100_000), "not a message"),
    "too many values": (framed(b"[" + b"0," * 2_000_000 + b"0]"), "more than"),
    "nobody's": (said(["Mount", {}]), "a message that nobody knows"),
    "the daemon's own": (said(to_json(Stop(1.0))), "a message that nobody knows"),
    "another type": (said(["Serving", {"problem": 1}]), "not a Serving"),
    "no pods": (pods("{}"), "not a PodList"),
    "pods that are no JSON": (pods("{"), "not a message"),
    "pods too deep": (pods("[" * 100_000), "not a message"),
    "too many pods": (pods("[" + "0," * 2_000_000 + "0]"), "more than"),
    "what is kept is no JSON": (kept("x"), "not a message"),
}


def first_good(then: Callable[[socket.socket], None], marker: int) -> Callable[[Channel], None]:
    """Return what the first front does; those after it are good."""

    def main(channel: Channel) -> None:
        sock = socket.socket(fileno=os.dup(channel.fileno()))
        link = Link(sock)
        link.send(UP)
        if os.eventfd_read(marker) == 1:
            os.eventfd_write(marker, 2)
            then(sock)
            return
        os.eventfd_write(marker, 2)
        while True:
            link.receive()

    return main


def respond(ask: Ask) -> Parcel:
    return Parcel(Answer(ask.number, True, "x" * 100_000))


@contextmanager
def fronts(then: Callable[[socket.socket], None]) -> Iterator[Front]:
    marker = os.eventfd(1)
    # Descriptors of a fork server are closed: the marker is its standard input.
    os.dup2(marker, 0)
    kind = WorkerKind(first_good(then, 0), PRIVILEGES[Kind.FRONT])
    server = ForkServer.start({"front": kind})
    front = Front(lambda: server.spawn("front"), respond)
    front.start(list, time.monotonic())
    try:
        yield front
    finally:
        front.stop(Stop(0.1), 1.0)
        server.close()


def turn(front: Front, told: list[Told]) -> None:
    """Do what the loop of the daemon does, which must never wait."""
    due = front.due_at()
    wait = 0.05 if due is None else max(0.0, min(0.05, due - time.monotonic()))
    select.select([front.fileno()], [], [], wait)
    told += front.collect(time.monotonic())


def require_replaced(front: Front, problem: str) -> None:
    told: list[Told] = []
    gaps: set[str] = set()

    def is_over() -> bool:
        turn(front, told)
        gap = front.gap()
        if gap is not None:
            gaps.add(gap.reason)
        return front.ends == 1 and gap is None

    wait_until(is_over, lambda: f"{front.ends} {gaps}", DEADLINE)
    assert any(problem in reason for reason in gaps), gaps
    assert all(isinstance(each.message, Serving) for each in told)


@pytest.mark.parametrize("what", ILL)
def test_what_must_not_be_said_ends_it(what: str) -> None:
    data, problem = ILL[what]

    def say(sock: socket.socket) -> None:
        sock.sendall(data)
        time.sleep(60)

    def body(world: PrivateWorld) -> None:
        with fronts(say) as front:
            require_replaced(front, problem)

    run_in_world(body)


def test_descriptors_that_it_sends_are_never_taken() -> None:
    def send(sock: socket.socket) -> None:
        null = os.open("/dev/null", os.O_RDONLY)
        for _ in range(200):
            socket.send_fds(sock, [said(UP)], [null] * 50)
        sock.sendall(framed(b"x"))
        time.sleep(60)

    def body(world: PrivateWorld) -> None:
        with fronts(send) as front:
            before = len(os.listdir("/proc/self/fd"))
            require_replaced(front, "not a message")
            assert len(os.listdir("/proc/self/fd")) <= before + 2

    run_in_world(body)


def test_one_that_takes_nothing_is_replaced_and_nobody_waits_for_it() -> None:
    def body(world: PrivateWorld) -> None:
        with fronts(lambda sock: time.sleep(60)) as front:
            told: list[Told] = []
            wait_until(lambda: turn(front, told) or bool(told), lambda: "not up", DEADLINE)
            began = time.thread_time()
            for _ in range(200_000):
                front.send(Refresh())
            assert time.thread_time() - began < DEADLINE
            require_replaced(front, "it takes no messages")

    run_in_world(body)


def test_one_that_hangs_is_replaced_and_one_that_is_only_quiet_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("QUIET_SECONDS", "SILENT_SECONDS", "SECOND_SECONDS"):
        monkeypatch.setattr(process, name, 0.5)

    def quiet(sock: socket.socket) -> None:
        link = Link(sock)
        while True:
            assert link.receive() == to_json(Ping())
            sock.sendall(said(to_json(Pong())))

    def body(world: PrivateWorld) -> None:
        for then, ends in ((quiet, 0), (lambda sock: time.sleep(60), 1)):
            with fronts(then) as front:
                gaps = set()
                began = time.monotonic()
                while time.monotonic() < began + 4.0 and not front.ends:
                    turn(front, [])
                    front.look(time.monotonic())
                    gap = front.gap()
                    gaps.add(gap.reason if gap is not None else "")
                assert front.ends == ends
                assert any("it does not answer" in gap for gap in gaps) == bool(ends)

    run_in_world(body)


@pytest.mark.parametrize("message", [Ask(1, Topic.METRICS), Serving("")], ids=["asks", "tells"])
def test_one_that_never_stops_gets_a_part_of_a_processor(message: FromFront) -> None:
    def talk(sock: socket.socket) -> None:
        ours = said(to_json(message))
        sock.setblocking(False)
        while True:
            ready = select.select([sock], [sock], [])
            if ready[0]:
                sock.recv(1 << 20)
            if ready[1]:
                sock.send(ours)

    def body(world: PrivateWorld) -> None:
        with fronts(talk) as front:
            began, used = time.monotonic(), time.process_time()
            told: list[Told] = []
            while time.monotonic() < began + 2.0:
                turn(front, told)
            seconds = time.monotonic() - began
            assert time.process_time() - used < 0.5 * seconds
            assert front.ends == 0
            assert len(told) <= 1 + TOLD.burst + TOLD.per_second * seconds

    run_in_world(body)


def test_one_that_ends_at_once_is_started_ever_more_rarely() -> None:
    def body(world: PrivateWorld) -> None:
        kind = WorkerKind(lambda channel: None, PRIVILEGES[Kind.FRONT])
        server = ForkServer.start({"front": kind})
        front = Front(lambda: server.spawn("front"), respond)
        front.start(list, time.monotonic())
        began = time.monotonic()
        while time.monotonic() < began + 3.0:
            turn(front, [])
        assert 2 <= front.ends <= 6
        assert front.gap() is not None
        server.close()

    run_in_world(body)
