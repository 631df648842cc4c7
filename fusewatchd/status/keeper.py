"""The part of the status document about held connections."""

from __future__ import annotations

from fusewatchd.model.held import EndedHold, HeldConnection, HoldRefusal
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.status.values import Document, shown
from fusewatchd.text import counted, duration_text

MAX_ENDED = 16


def keeper_document(snapshot: Snapshot) -> Document:
    """Return what is held, and why the rest is not; empty where nothing is to be held."""
    view = snapshot.keeper
    if not view.is_on:
        return {}
    return {
        "keeper": {
            "problem": shown(view.problem) or None,
            "outlives_its_process": view.survives,
            "stand_ins": len(snapshot.stand_ins),
            "held": [_held(view.held[device]) for device in sorted(view.held)],
            "not_held": [_refused(one) for one in view.refused],
            "ended": [_ended(one) for one in view.ended[-MAX_ENDED:]],
        }
    }


def _held(one: HeldConnection) -> Document:
    return {
        "device": str(one.device),
        "driver": shown(one.driver),
        "server_gone": one.is_dead,
        "without_server_seconds": round(one.since_seconds, 3),
        "waiting_calls": one.waiting,
        "oldest_wait_seconds": round(one.oldest_seconds, 3),
    }


def _refused(one: HoldRefusal) -> Document:
    return {
        "device": str(one.device),
        "driver": shown(one.driver),
        "reason": one.reason.value,
        "detail": shown(one.detail) or None,
    }


def _ended(one: EndedHold) -> Document:
    return {
        "device": str(one.device),
        "driver": shown(one.driver),
        "end": one.end.value,
        "waited": one.waited,
        "sent_on": one.sent_on,
        "refused_to_host": one.refused_to_host,
        "given_up": one.given_up,
        "longest_wait_seconds": round(one.longest_seconds, 3),
    }


def held_lines(document: Document, bind: Document) -> list[tuple[str, str]]:
    """Return what ``explain`` says of the connection of a mount, where some are to be held."""
    keeper = document.get("keeper")
    if keeper is None:
        return []
    device = bind["device"]
    for one in keeper["held"]:
        if one["device"] == device:
            return [("keeper", _held_text(one))]
    for one in keeper["not_held"]:
        if one["device"] == device:
            detail = f" ({one['detail']})" if one["detail"] else ""
            return [("keeper", f"not held: {one['reason']}{detail}; doctor says what to do")]
    return []


def _held_text(one: Document) -> str:
    if not one["server_gone"]:
        return "held: if its server ends, calls by path in containers wait for the next one"
    waits = "no call waits"
    if one["waiting_calls"]:
        oldest = duration_text(one["oldest_wait_seconds"])
        waits = f"{counted(one['waiting_calls'], 'call')} wait, the first for {oldest}"
    return f"its server ended {duration_text(one['without_server_seconds'])} ago: {waits}"
