from __future__ import annotations

import os
import select
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from fusewatchd.statussocket import MAX_CLIENTS, NAME, StatusSocket, ask


def asked(server: StatusSocket, directory: Path) -> Any:
    answers: list[Any] = []
    client = threading.Thread(target=lambda: answers.append(ask(str(directory))))
    client.start()
    select.select([server], [], [], 10)
    server.answer()
    client.join(10)
    return answers[0]


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_the_whole_document_arrives(tmp_path: Path, size: int) -> None:
    server = StatusSocket(str(tmp_path), lambda: {"text": "x" * size})
    assert asked(server, tmp_path) == {"text": "x" * size}
    server.close()


def test_only_its_owner_may_ask(tmp_path: Path) -> None:
    server = StatusSocket(str(tmp_path), dict)
    assert stat.S_IMODE(os.stat(tmp_path / NAME).st_mode) == 0o600
    server.close()
    assert not os.path.exists(tmp_path / NAME)


def test_a_socket_that_a_killed_daemon_left_is_taken_over(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / NAME))
    left.close()
    server = StatusSocket(str(tmp_path), lambda: {"is": "new"})
    assert asked(server, tmp_path) == {"is": "new"}
    server.close()


def test_clients_that_do_not_read_hold_nobody_up(tmp_path: Path) -> None:
    server = StatusSocket(str(tmp_path), lambda: {"text": "x" * 5_000_000})
    idle = []
    for _ in range(MAX_CLIENTS):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(tmp_path / NAME))
        server.answer()
        idle.append(client)
    one_more = socket.socket(socket.AF_UNIX)
    one_more.connect(str(tmp_path / NAME))
    server.answer()
    assert one_more.recv(1) == b""
    for client in (*idle, one_more):
        client.close()
    server.close()
