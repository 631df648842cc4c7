"""What the two servers have in common; what they do with unfriendly clients is in their own tests."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing

import pytest

from fusewatchd.serve.socket_server import MAX_REST_SECONDS, REST_FACTOR, Server

WORK_SECONDS = 0.02


def asked(server: Server, port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"?")
        return client.recv(16)


def serving(respond_seconds: float) -> tuple[Server, int]:
    def respond(received: bytes, sock: socket.socket) -> bytes | None:
        if not received:
            return None
        end = time.thread_time() + respond_seconds
        while time.thread_time() < end:
            pass
        return b"!"

    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    server = Server("test", [listener], respond, timeout_seconds=30.0, max_connections=4)
    server.start()
    return server, port


def test_it_rests_after_its_work() -> None:
    """Whatever it is asked for, most of a processor is left to the loop that repairs mounts."""
    server, port = serving(WORK_SECONDS)
    with closing(server):
        began = time.monotonic()
        for _ in range(6):
            assert asked(server, port) == b"!"
        took = time.monotonic() - began
    # The rest after the last one is nobody's to wait for.
    assert took >= 5 * 5 * WORK_SECONDS


def test_the_end_does_not_wait_for_a_rest() -> None:
    server, port = serving(MAX_REST_SECONDS / REST_FACTOR)
    assert asked(server, port) == b"!"
    server.close()
    assert server.connection_count == 0


def test_who_is_not_admitted_is_cut_off() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = Server(
        "test", [listener], lambda *_: b"!", timeout_seconds=30.0, max_connections=4,
        admit=lambda client: False,
    )  # fmt: skip
    server.start()
    with closing(server), socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        assert client.recv(16) == b""


def test_a_request_at_which_the_thread_fails_costs_its_own_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def respond(received: bytes, sock: socket.socket) -> bytes | None:
        if received == b"x":
            raise ValueError("nobody foresaw this")
        return b"!" if received else None

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = Server("test", [listener], respond, timeout_seconds=30.0, max_connections=4)
    server.start()
    with closing(server), socket.create_connection(("127.0.0.1", port), timeout=30) as bad:
        bad.sendall(b"x")
        assert bad.recv(16) == b""
        assert asked(server, port) == b"!"
    assert [args.exc_type for args in told] == [ValueError]
