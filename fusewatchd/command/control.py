"""``recover``, ``pause`` and ``resume``: orders to the running daemon, from root alone."""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from collections import Counter
from typing import Any

from fusewatchd.daemon.control import MAX_BYTES, NAME
from fusewatchd.errors import FusewatchError, ParseError
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.serve.status_socket import ask
from fusewatchd.state.pause import MAX_SECONDS
from fusewatchd.status.orders import Order, Tried
from fusewatchd.status.reasons import REASONS
from fusewatchd.status.values import Document
from fusewatchd.text import counted

ANSWER_SECONDS = 15.0
"""For a daemon that is in the middle of much work."""
OUTCOME_SECONDS = 10.0
"""For what was begun."""
_LOOK_SECONDS = 0.05
_WORKS = (Verdict.HEALTHY.value, Verdict.SLOW.value)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(?:\d+[smhd])+")


def seconds_of(text: str) -> float:
    """Return a duration such as ``90s``, ``10m``, ``1h30m`` or ``2d`` in seconds.

    Raises:
        ValueError: it is none, or not one for a pause.
    """
    if not _DURATION.fullmatch(text):
        raise ValueError("expected a duration such as 10m, 1h30m or 2d")
    seconds = sum(int(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+)([smhd])", text))
    if not 0 < seconds <= MAX_SECONDS:
        raise ValueError("expected a duration of at most 7d")
    return float(seconds)


def send(runtime_dir: str, order: Order, **values: object) -> Document:
    """Give an order and return the answer.

    Raises:
        OSError: the daemon cannot be reached.
        FusewatchError: no daemon is running, the caller is not root, or the daemon refuses the
            order; the text says which.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        wait = struct.pack("@ll", int(ANSWER_SECONDS), 0)  # struct timeval
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
        _connect(client, runtime_dir)
        client.settimeout(ANSWER_SECONDS)
        client.send(json.dumps({"order": order.value, **values}).encode("ascii"))
        data = client.recv(MAX_BYTES)
    try:
        answer: Document = json.loads(data)
    except ValueError as exc:
        raise ParseError("the daemon gave no answer: it refused this client, or ended") from exc
    if not answer.get("ok"):
        raise FusewatchError(str(answer.get("text")))
    return answer


def _connect(client: socket.socket, runtime_dir: str) -> None:
    try:
        client.connect(f"{runtime_dir}/{NAME}")
    except (FileNotFoundError, ConnectionRefusedError) as exc:
        text = f"no fusewatchd is running ({runtime_dir}): systemctl start fusewatchd"
        raise FusewatchError(text) from exc
    except PermissionError as exc:
        raise FusewatchError("only root may give orders: run it as root") from exc


def recover(runtime_dir: str, target: str) -> tuple[str, int]:
    """Have the daemon try now; return what to print and the exit status.

    0: all of it works.  1: something was refused or failed.

    Raises:
        OSError, FusewatchError: as ``send``.
    """
    answer = send(runtime_dir, Order.RECOVER, target=target)
    binds: list[Document] = answer.get("binds", [])
    begun = {_place(bind) for bind in binds if bind["tried"] == Tried.BEGUN.value}
    states = _outcomes(runtime_dir, begun)
    lines = []
    unfinished = [place for place in begun if states.get(place) != ""]
    if begun:
        lines.append(f"tried now: {len(begun) - len(unfinished)} of {len(begun)} recovered")
    for place in unfinished:
        lines.append(f"  not recovered: {place[1]}: {states.get(place) or 'it is gone'}")
    fine = sum(bind["tried"] == Tried.NOT_NEEDED.value for bind in binds)
    if fine:
        lines.append(f"{counted(fine, 'mount')} already healthy")
    refused = Counter(b["reason"] for b in binds if b["tried"] == Tried.REFUSED.value)
    for reason, count in refused.items():
        advice = REASONS[Reason(reason)]
        lines += [f"refused for {counted(count, 'mount')}: {reason}", f"  {advice.meaning}"]
        lines.append(f"  Do: {advice.todo}")
    if answer.get("count", 0) > len(binds):
        lines.append(f"and {answer['count'] - len(binds)} more: see 'fusewatchd status'")
    return "\n".join(lines), 1 if refused or unfinished else 0


def _place(bind: Document) -> tuple[Any, str]:
    return bind["namespace"], bind["mount_point"]


def _outcomes(runtime_dir: str, begun: set[tuple[Any, str]]) -> dict[tuple[Any, str], str]:
    """Wait until the mounts work; return what holds each back, empty where it works."""
    end = time.monotonic() + OUTCOME_SECONDS
    states: dict[tuple[Any, str], str] = {}
    while begun:
        binds = {_place(bind): bind for bind in ask(runtime_dir)["binds"]}
        states = {
            place: "" if bind["verdict"] in _WORKS else bind["refusal"] or bind["verdict"]
            for place, bind in binds.items()
            if place in begun
        }
        if not any(states.values()) or time.monotonic() >= end:
            break
        time.sleep(_LOOK_SECONDS)
    return states
