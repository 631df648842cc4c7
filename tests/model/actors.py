"""Carrying steps out: what servers, their drivers and the init system do is in here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fusewatchd.demo.sources import OldServer
from fusewatchd.lineage import Fact
from fusewatchd.model import Mount
from fusewatchd.wire import decode
from tests.model import kubelet, others
from tests.model.places import SourceState, Upgraded, Violation, with_unique_id
from tests.model.possible import need, source_of
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


# ------------------------------------------------------------------------------- servers


def crash(stage: Stage, name: str) -> None:
    state = source_of(stage, name)
    need(state.is_up)
    state.source.kill()
    state.is_up = state.is_hung = False


def start(stage: Stage, name: str) -> None:
    state = source_of(stage, name)
    need(not state.is_up)
    _note_source_gone(stage, state)
    state.source.restart()
    stage.note_source(state)


def take_away(stage: Stage, name: str) -> None:
    """The driver detaches the dead source, and mounts it again some time."""
    state = source_of(stage, name)
    need(not state.is_up and state.is_mounted)
    _note_source_gone(stage, state)
    state.source.unmount()
    state.is_mounted = False


def upgrade(stage: Stage, name: str) -> None:
    state = source_of(stage, name)
    need(state.answers)
    state.upgraded.append(Upgraded(state.device, state.source.server))
    _note_source_gone(stage, state)
    state.source.restart(old=OldServer.DRAINING)
    stage.note_source(state)


def _note_source_gone(stage: Stage, state: SourceState) -> None:
    """Layers that are peers of those at the source go when these do, and show what they hid."""
    if state.stacked:
        for _, target in stage.targets():
            if target.source == state.source.name:
                target.is_learned = False
    state.stacked = 0


def end_old(stage: Stage, name: str) -> None:
    state = source_of(stage, name)
    need(bool(state.upgraded))
    state.upgraded.pop(0).process.kill()


def hang(stage: Stage, name: str) -> None:
    state = source_of(stage, name)
    need(state.answers)
    state.source.pause()
    state.is_hung = True


def resume(stage: Stage, name: str) -> None:
    state = source_of(stage, name)
    need(state.is_hung)
    state.source.resume()
    state.is_hung = False


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
        elif top is None or not _is_known(facts, with_unique_id(top)):
            target.is_learned = False


def _is_known(facts: list[Fact], top: Mount) -> bool:
    return any(fact.is_about(top) for fact in facts)


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
    "crash": crash,
    "start": start,
    "take-away": take_away,
    "upgrade": upgrade,
    "end-old": end_old,
    "hang": hang,
    "resume": resume,
    "add-pod": kubelet.add_pod,
    "delete": kubelet.delete,
    "start-container": kubelet.start_container,
    "stop-container": kubelet.stop_container,
    "restart-container": kubelet.restart_container,
    "stack": others.stack,
    "unpublish": others.unpublish,
    "publish": others.publish,
    "rebind": others.rebind,
    "kill-daemon": kill_daemon,
    "stop-daemon": stop_daemon,
    "start-daemon": start_daemon,
    "reload": reload,
}
