"""Carrying steps out: what the init system does to the daemon is in here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fusewatchd.json_values import decode
from fusewatchd.model.ledger import Fact
from fusewatchd.model.mounts import Mount
from tests.model import copies, inside, kubelet, others, servers
from tests.model.places import Violation, with_unique_id
from tests.model.possible import need
from tests.model.stage import Stage
from tests.model.steps import Step


def carry_out(stage: Stage, step: Step) -> None:
    """Do one step and note what it changes.

    What met a hung or dead server is tried again first.  It is no step, so that the choice of
    steps rests on what was wanted, which the seed tells, and never on who was faster.

    Raises:
        NotPossible: nothing was done.
        Violation: a plain unmount or rmdir did not work.
    """
    others.try_again(stage)
    kubelet.try_again(stage)
    name, *arguments = step.words
    ACTORS[name](stage, *arguments)
    stage.tell_kubelet()


# ------------------------------------------------------------------------- the daemon


def kill_daemon(stage: Stage) -> None:
    need(stage.is_daemon_up)
    stage.daemon.kill()
    _note_daemon_gone(stage)


def stop_daemon(stage: Stage) -> None:
    need(stage.is_daemon_up)
    status = stage.daemon.stop()
    if status:
        raise Violation(f"the daemon ended with status {status}")
    _note_daemon_gone(stage)


def _note_daemon_gone(stage: Stage) -> None:
    """What is not in the state file has to be learned again, where that can be."""
    stage.is_daemon_up = False
    document: dict[str, Any] = {"lineage": [], "containers": []}
    with suppress(FileNotFoundError):
        path = os.path.join(stage.daemon.values["state_dir"], "state.json")
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    facts = [decode(Fact, item) for item in document["lineage"]]
    found = [(item["key"], item["facts"]) for item in document["containers"]]
    copies = {(key["mount_point"], f["mount_id"]) for key, f in found if f["origin"]}
    tables = stage.tables()
    for _, target in stage.targets():
        top = tables.of(target.container).top_at(target.path)
        if target.container is not None:
            target.is_lost = top is None or (target.path, top.mount_id) not in copies
            continue
        known = _known(facts, with_unique_id(top)) if top else []
        target.is_learned = target.is_learned and bool(known)
        if not any(fact.seen_working for fact in known):
            target.served_id = 0


def _known(facts: list[Fact], top: Mount) -> list[Fact]:
    """Return what tells where it came from: one that was seen alone is known too."""
    return [fact for fact in facts if fact.candidates and fact.is_about(top)]


def start_daemon(stage: Stage) -> None:
    need(not stage.is_daemon_up)
    stage.write_config()
    stage.daemon.start()
    stage.is_daemon_up = True
    stage.wait_for_daemon()


def reload(stage: Stage, superseded: str) -> None:
    """SIGHUP with another policy, or with a file that must be refused."""
    need(stage.is_daemon_up)
    if superseded == "bad":
        stage.write_config("recovery: [\n")
    else:
        stage.superseded = superseded
        stage.write_config()
    stage.hang_up()


ACTORS: dict[str, Callable[..., None]] = {
    "crash": servers.crash,
    "start": servers.start,
    "take-away": servers.take_away,
    "upgrade": servers.upgrade,
    "over": servers.over,
    "end-old": servers.end_old,
    "hang": servers.hang,
    "resume": servers.resume,
    "retype": servers.retype,
    "err": servers.err,
    "serve": servers.serve,
    "inside": inside.inside,
    "copy": copies.copy,
    "uncopy": copies.uncopy,
    "add-pod": kubelet.add_pod,
    "delete": kubelet.delete,
    "start-container": kubelet.start_container,
    "stop-container": kubelet.stop_container,
    "restart-container": kubelet.restart_container,
    "stack": others.stack,
    "pile": others.pile,
    "unpublish": others.unpublish,
    "publish": others.publish,
    "rebind": others.rebind,
    "kill-daemon": kill_daemon,
    "stop-daemon": stop_daemon,
    "start-daemon": start_daemon,
    "reload": reload,
}
