"""Channels: whole messages whatever the cuts, and nobody who waits for ever."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.workers.channel import MAX_BYTES, Channel

# Paths of the kernel: any bytes, as surrogateescape has them.
PATHS = st.binary(max_size=50).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
MESSAGES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | PATHS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PATHS, inner, max_size=3),
    max_leaves=10,
)


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    """A daemon's end, and the bare socket of its worker."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield Channel(ours), theirs


def framed(message: Any) -> bytes:
    data = json.dumps(message).encode()
    return struct.pack("!I", len(data)) + data


@given(st.lists(MESSAGES, max_size=5), st.lists(st.integers(1, 40), min_size=1))
def test_messages_survive_any_cut(messages: list[Any], cuts: list[int]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = Channel(ours)
        stream = b"".join(map(framed, messages))
        got: list[Any] = []
        at = turn = 0
        while at < len(stream):
            end = at + cuts[turn % len(cuts)]
            theirs.sendall(stream[at:end])
            got += channel.receive()
            at, turn = end, turn + 1
        assert got == messages


@given(st.lists(MESSAGES, max_size=5))
def test_what_is_sent_is_received(messages: list[Any]) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        daemon, worker = Channel(ours), Channel(theirs)
        for message in messages:
            daemon.send(message)
        assert worker.receive() == messages
        for message in messages:
            worker.send(message)
        assert daemon.receive() == messages


def test_nothing_arrived_is_no_message(pair: tuple[Channel, socket.socket]) -> None:
    assert pair[0].receive() == []


def test_last_messages_come_before_the_end(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    peer.sendall(framed("last") + framed("cut")[:-1])
    peer.close()
    assert channel.receive() == ["last"]
    with pytest.raises(EOFError):
        channel.receive()
    with pytest.raises(EOFError):
        channel.receive()


def test_peer_that_ends_with_unread_data_is_an_end(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    channel.send("never read")  # closing now makes a reset of it, unix(7)
    peer.close()
    with pytest.raises(EOFError):
        channel.receive()


def test_sending_to_a_peer_that_is_gone_is_found_when_receiving(
    pair: tuple[Channel, socket.socket],
) -> None:
    channel, peer = pair
    peer.close()
    channel.send("nobody hears this")
    assert not channel.wants_write
    with pytest.raises(EOFError):
        channel.receive()


@pytest.mark.parametrize(
    "garbage",
    [
        struct.pack("!I", MAX_BYTES + 1),
        struct.pack("!I", 4) + b"nope",
        struct.pack("!I", 1) + b"\xff",
        struct.pack("!I", 100_000) + b"[" * 100_000,
    ],
    ids=["too long", "no JSON", "no text", "too deep"],
)
def test_peer_that_talks_nonsense_is_as_good_as_gone(
    pair: tuple[Channel, socket.socket], garbage: bytes
) -> None:
    channel, peer = pair
    peer.sendall(garbage)
    with pytest.raises(EOFError):
        channel.receive()


def test_peer_that_reads_nothing_does_not_hold_up_the_sender(
    pair: tuple[Channel, socket.socket],
) -> None:
    channel, peer = pair
    message = "x" * (4 << 20)  # beyond any default socket buffer
    channel.send(message)
    assert channel.wants_write
    received = bytearray()
    peer.settimeout(10)
    while len(received) < len(framed(message)):
        received += peer.recv(1 << 20)
        channel.flush()
    assert received == framed(message)
    assert not channel.wants_write


def test_receiving_sends_what_was_kept(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    channel.send("x" * (4 << 20))
    for _ in range(1000):
        if not channel.wants_write:
            break
        peer.recv(1 << 20)
        channel.receive()
    assert not channel.wants_write


def test_two_that_only_send_do_not_wait_for_each_other(
    pair: tuple[Channel, socket.socket],
) -> None:
    channel, peer = pair
    big = "x" * (4 << 20)
    # A worker that answers at length before it looks at the next request.
    worker = threading.Thread(target=lambda: Channel(peer).send(big))
    worker.start()
    channel.send(big)
    got: list[Any] = []
    end = time.monotonic() + 30
    while not got and time.monotonic() < end:
        got = channel.receive()
    worker.join()
    assert got == [big]


def test_message_that_no_peer_would_take_is_refused(pair: tuple[Channel, socket.socket]) -> None:
    with pytest.raises(ValueError, match="bytes"):
        pair[0].send("x" * MAX_BYTES)
    assert not pair[0].wants_write


def test_worker_serves_until_the_daemon_closes() -> None:
    ours, theirs = socket.socketpair()
    daemon, worker = Channel(ours), Channel(theirs)
    for number in range(3):
        daemon.send(number)
    ours.shutdown(socket.SHUT_WR)
    served: list[Any] = []
    worker.serve(served.append)
    assert served == [0, 1, 2]
    daemon.close()
    worker.close()


def test_worker_whose_daemon_is_gone_fails_to_answer() -> None:
    ours, theirs = socket.socketpair()
    worker = Channel(theirs)
    ours.close()
    with pytest.raises(BrokenPipeError):
        worker.send("answer")
    worker.close()


def test_only_ascii_is_on_the_wire(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    channel.send("/mnt/\udcff é")
    raw = peer.recv(1000)
    assert raw[4:].isascii()
    assert json.loads(raw[4:]) == "/mnt/\udcff é"
