"""What the daemon and the keeper may say to each other, and what neither believes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, get_args

import pytest

from fusewatchd.errors import ParseError
from fusewatchd.keeper.protocol import (
    MAX_ENDED,
    MAX_NUMBER,
    MAX_PACKET,
    MAX_PODS,
    MAX_TEXT,
    PAGE,
    VERSION,
    Answer,
    Answered,
    Connection,
    Connections,
    Counts,
    Done,
    End,
    Ended,
    Held,
    Hold,
    List,
    OtherVersionError,
    Refusal,
    Refused,
    Release,
    Replaced,
    Request,
    State,
    Stop,
    Update,
    Watch,
    answer_of,
    packet_of,
    request_of,
    socket_path,
)

HOLD = Hold(
    connection=61,
    driver="s3.csi.example.com",
    grace_seconds=10.0,
    pids_are_hosts=True,
    pods=("/kubepods.slice/kubepods-pod1.slice",),
    deleting=("/kubepods.slice/kubepods-pod1.slice",),
    servers=("/system.slice/s3.service",),
)
COUNTS = Counts(waited=3, stale=2, longest_seconds=1.5)
CONNECTION = Connection(7, 61, "s3", (100, 101), State.HOLDING, 1.5, 2, 1.25, COUNTS)
ENDED = Ended(1, 6, 60, "s3", End.GRACE, COUNTS)
REQUESTS: tuple[Request, ...] = (
    HOLD,
    Update(7, ("/a",), ("/a",), ("/b",)),
    Watch(7),
    List(7, 1),
    Replaced(7),
    Release(7),
    Stop(),
)
ANSWERS: tuple[Answer, ...] = (
    Held(7),
    Refused(Refusal.CANNOT_CLONE, "no such device"),
    Done(),
    Answered(2, 1.25),
    Connections((CONNECTION,), (ENDED,), 4321, survives=True),
)


def test_every_message_is_tried() -> None:
    assert {type(request) for request in REQUESTS} == set(get_args(Request))
    assert {type(answer) for answer in ANSWERS} == set(get_args(Answer))


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_a_request_arrives_as_it_was_sent(request_: Request) -> None:
    assert request_of(packet_of(request_)) == request_


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: type(answer).__name__)
def test_an_answer_arrives_as_it_was_sent(answer: Answer) -> None:
    assert answer_of(packet_of(answer)) == answer


def test_a_peer_that_is_newer_may_say_more() -> None:
    version, name, content = json.loads(packet_of(HOLD))
    told = json.dumps([version, name, {**content, "mood": "fine"}]).encode()
    assert request_of(told) == HOLD


def test_another_version_is_told_from_nonsense() -> None:
    with pytest.raises(OtherVersionError, match=f"version {VERSION + 1}"):
        request_of(json.dumps([VERSION + 1, ["of", "any"], "shape"]).encode())


def _hold(**changes: Any) -> bytes:
    version, name, content = json.loads(packet_of(HOLD))
    return json.dumps([version, name, {**content, **changes}]).encode()


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b"{}",
        b"[]",
        b"[true]",
        b'["1", "Stop", {}]',
        b'[1, "Stop"]',
        b'[1, ["Stop"], {}]',
        b'[1, "Nothing", {}]',
        b'[1, "Held", {"hold": 1}]',
        b'[1, "Release", {}]',
        b'[1, "Release", {"hold": "1"}]',
        b'[1, "Release", {"hold": true}]',
        b'[1, "Release", {"hold": 1e300}]',
        b'[1, "Stop", {}]' + b" " * MAX_PACKET,
        _hold(connection=-1),
        _hold(connection=MAX_NUMBER + 1),
        _hold(grace_seconds=-0.1),
        _hold(grace_seconds=float("nan")),
        _hold(grace_seconds=float("inf")),
        _hold(driver="x" * (MAX_TEXT + 1)),
        _hold(pods="/a"),
        _hold(pods=[1]),
        _hold(pods=["/a"] * (MAX_PODS + 1)),
        _hold(pods=["/" * (MAX_TEXT + 1)]),
        _hold(pids_are_hosts=1),
    ],
)
def test_what_is_no_request(packet: bytes) -> None:
    with pytest.raises(ParseError):
        request_of(packet)


def test_a_packet_is_never_longer_than_the_other_side_reads() -> None:
    pods = tuple(f"/{number:0200}" for number in range(MAX_PODS))
    with pytest.raises(ValueError, match="bytes"):
        packet_of(replace(HOLD, pods=pods))


def test_the_longest_answer_fits() -> None:
    largest = Counts(*[MAX_NUMBER] * 10, longest_seconds=123456.789)
    name = "d" * 128
    one = Connection(
        MAX_NUMBER, MAX_NUMBER, name, (2**22,) * 4, State.ANSWERING, 1e6, MAX_NUMBER, 1e6, largest
    )
    ended = Ended(MAX_NUMBER, MAX_NUMBER, MAX_NUMBER, name, End.REPLACED, largest)
    packet_of(Connections((one,) * PAGE, (ended,) * MAX_ENDED, 2**22, survives=True))


def test_the_socket_does_not_go_with_the_directory_of_the_daemon() -> None:
    assert socket_path("/run/fusewatchd") == "/run/fusewatchd-keeper.sock"
    assert socket_path("/tmp/run/") == "/tmp/run-keeper.sock"
