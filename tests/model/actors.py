"""Carrying steps out: servers, drivers, the kubelet, other recoverers, the init system."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from fusewatchd.demo.sources import OldServer
from fusewatchd.demo.unmounting import Unmounting
from fusewatchd.linux import syscalls
from fusewatchd.model import Device
from tests.model.depth import stuck_below
from tests.model.places import (
    Options,
    PodState,
    SourceState,
    Tables,
    Target,
    Violation,
    layers_at,
    options_of,
)
from tests.model.shapes import KEPT, SHAPES
from tests.model.stage import Stage
from tests.model.steps import Step

BUSY_SECONDS = 5.0
BUSY_SECONDS_WHILE_HUNG = 0.3
"""A probe that waits for a hung server holds the mount that it asks at."""
NO_SERVER = (errno.ENOTCONN, errno.ECONNABORTED)


class NotPossible(Exception):
    """The step makes no sense as things are; a shortened sequence may hold such."""


def carry_out(stage: Stage, step: Step) -> None:
    """Do one step and note what it changes.

    Raises:
        NotPossible: nothing was done.
        Violation: a plain unmount or rmdir did not work.
    """
    name, *arguments = step.words
    ACTORS[name](stage, *arguments)
    stage.tell_kubelet()


def _need(condition: bool) -> None:
    if not condition:
        raise NotPossible


def _source(stage: Stage, name: str) -> SourceState:
    return stage.sources[name]


def _pod(stage: Stage, name: str) -> PodState:
    _need(name in stage.pods and not stage.pods[name].is_ending)
    return stage.pods[name]


# ------------------------------------------------------------------------------- servers


def crash(stage: Stage, name: str) -> None:
    state = _source(stage, name)
    _need(state.is_up)
    state.source.kill()
    state.is_up = state.is_hung = False


def start(stage: Stage, name: str) -> None:
    state = _source(stage, name)
    _need(not state.is_up)
    _note_source_gone(stage, state)
    state.source.restart()
    stage.note_source(state)


def take_away(stage: Stage, name: str) -> None:
    """The driver detaches the dead source, and mounts it again some time."""
    state = _source(stage, name)
    _need(not state.is_up and state.is_mounted)
    _note_source_gone(stage, state)
    state.source.unmount()
    state.is_mounted = False


def upgrade(stage: Stage, name: str) -> None:
    state = _source(stage, name)
    _need(state.answers)
    state.draining[state.device] = state.source.server
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
    state = _source(stage, name)
    _need(bool(state.draining))
    state.draining.pop(next(iter(state.draining))).kill()


def hang(stage: Stage, name: str) -> None:
    state = _source(stage, name)
    _need(state.answers)
    state.source.pause()
    state.is_hung = True


def resume(stage: Stage, name: str) -> None:
    state = _source(stage, name)
    _need(state.is_hung)
    state.source.resume()
    state.is_hung = False


# ---------------------------------------------------------------- the kubelet, the runtime


def add_pod(stage: Stage, name: str, shape: str, one: str, two: str) -> None:
    sources = [_source(stage, one), _source(stage, two)]
    _need(name not in stage.pods and all(state.answers for state in sources))
    volumes, mounts = SHAPES[shape](sources[0].source, sources[1].source)
    uid = f"{int(name.removeprefix('p')):08x}-0000-4000-8000-000000000000"
    pod = PodState(stage.node.add_pod(name, volumes, mounts, uid=uid), shape, {})
    stage.pods[name] = pod
    pod.on_host = stage.host_targets(pod)
    for container in pod.pod.container_names:
        start_container(stage, name, container)


def delete(stage: Stage, name: str) -> None:
    """End a pod with plain umounts: two tries in three unmount until nothing is left."""
    _need(name in stage.pods)
    pod = stage.pods[name]
    pod.inside.clear()
    pod.pod.is_deleting = True
    stage.tell_kubelet()
    once = int(name.removeprefix("p")) % 3 == 0
    unmounting = Unmounting.ONCE if once else Unmounting.UNTIL_BARE
    hung = any(state.is_hung for state in stage.sources.values())
    if _insist(stage, lambda: stage.node.remove_pod(pod.pod, unmounting), may_fail=hung):
        del stage.pods[name]
    else:
        pod.is_ending = True


def start_container(stage: Stage, name: str, container: str) -> None:
    pod = _pod(stage, name)
    _need(container in pod.pod.container_names and container not in pod.inside)
    _need(_may_start(stage, pod))
    try:
        stage.node.start_container(pod.pod, container)
    except OSError as exc:
        # The kubelet tries again later.
        is_dead = any(not stage.sources[t.source].is_up for t in pod.on_host.values())
        if not (is_dead or _shows_old(stage, pod)) or exc.errno not in NO_SERVER:
            raise
        stage.counts["container did not start"] += 1
        return
    pod.inside[container] = stage.container_targets(pod, container)
    for target in pod.inside[container]:
        # A daemon that was not there cannot know whose copy it is, unless it sees them alike.
        target.is_lost = not stage.is_daemon_up
    if pod.shape == "nested":
        with suppress(OSError):
            pod.pod.containers[container].write("/data/cache/mine", KEPT)


def _may_start(stage: Stage, pod: PodState) -> bool:
    """A bare or hung volume would give a container that tells nothing, or none at all."""
    return not any(t.is_bare or stage.sources[t.source].is_hung for t in pod.on_host.values())


def _shows_old(stage: Stage, pod: PodState) -> bool:
    table = Tables([]).host
    tops = [(t, table.top_at(t.path)) for t in pod.on_host.values()]
    return any(top and top.device != stage.sources[t.source].device for t, top in tops)


def stop_container(stage: Stage, name: str, container: str) -> None:
    pod = _pod(stage, name)
    _need(container in pod.inside)
    pod.pod.containers[container].stop()
    del pod.inside[container]


def restart_container(stage: Stage, name: str, container: str) -> None:
    _need(_may_start(stage, _pod(stage, name)))
    stop_container(stage, name, container)
    start_container(stage, name, container)


# -------------------------------------------------------------- somebody else on the node


def _volume(stage: Stage, where: str) -> tuple[PodState, Target, str]:
    name, _, volume = where.partition("/")
    pod = _pod(stage, name)
    target = pod.on_host.get(pod.pod.volume_path(volume))
    _need(target is not None)
    assert target is not None
    return pod, target, volume


def stack(stage: Stage, where: str, times: str) -> None:
    """``mount --bind`` of the source over a bind, as many recoverers do it."""
    _, target, _ = _volume(stage, where)
    state = stage.sources[target.source]
    _need(state.answers and not target.is_bare)
    for _ in range(int(times)):
        with stage.frozen():
            before = stage.tables()
            source = before.host.top_at(state.source.path)
            assert source is not None
            syscalls.mount(state.source.path, target.path, None, syscalls.MS_BIND)
            _note_layers(stage, before, stage.tables(), options_of(source))
        target.is_learned = False


def _note_layers(stage: Stage, before: Tables, now: Tables, options: Options) -> None:
    """Note the new mount, and its copies wherever it was propagated to."""
    for _, target in stage.targets():
        container = target.container
        new = layers_at(now.of(container), target.path) - layers_at(
            before.of(container), target.path
        )
        if new:
            target.foreign |= new
            alive = partial(stage.is_alive, stage.sources[target.source])
            target.stuck |= stuck_below(now.of(container).stack_at(target.path), new, alive)
            target.is_overlaid = True
            target.add_options(options)
    for state in stage.sources.values():
        path = state.source.path
        state.stacked += len(layers_at(now.host, path) - layers_at(before.host, path))


def unpublish(stage: Stage, where: str) -> None:
    """Somebody unmounts a bind under a running pod."""
    _, target, _ = _volume(stage, where)
    _need(not target.is_bare)
    hung = stage.sources[target.source].is_hung
    if _insist(stage, lambda: _until_bare(target.path), may_fail=hung):
        target.is_bare, target.is_learned = True, False
        target.foreign.clear()


def _until_bare(path: str) -> None:
    while True:
        try:
            syscalls.umount2(path, syscalls.UMOUNT_NOFOLLOW)
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                return
            raise


def publish(stage: Stage, where: str) -> None:
    """The driver publishes again what is bare."""
    pod, target, volume = _volume(stage, where)
    _need(target.is_bare and stage.sources[target.source].answers)
    stage.node.publish(pod.pod, pod.pod.volume(volume))
    _note_published(stage, target)


def rebind(stage: Stage, where: str) -> None:
    """Another recoverer: lazily off with the old one, on with the new one."""
    pod, target, volume = _volume(stage, where)
    _need(not target.is_bare and stage.sources[target.source].answers)
    while any(mount.is_fuse for mount in Tables([]).host.at(target.path)):
        syscalls.umount2(target.path, syscalls.MNT_DETACH)
    stage.node.publish(pod.pod, pod.pod.volume(volume))
    _note_published(stage, target)


def _note_published(stage: Stage, target: Target) -> None:
    top = Tables([]).host.top_at(target.path)
    assert top is not None
    target.is_bare, target.is_learned = False, False
    target.foreign.clear()
    target.options.add(options_of(top))


def _insist(stage: Stage, work: Callable[[], object], *, may_fail: bool) -> bool:
    """Try again while it is busy, as the kubelet does; False when that may be and is so."""
    end = time.monotonic() + (BUSY_SECONDS_WHILE_HUNG if may_fail else BUSY_SECONDS)
    while True:
        try:
            work()
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise Violation(f"could not be taken away: {exc}") from exc
            stage.counts["busy"] += 1
            if time.monotonic() > end:
                if may_fail:
                    return False
                raise Violation(f"busy for {BUSY_SECONDS} s: {exc}") from exc
            time.sleep(0.002)
        else:
            return True


# ------------------------------------------------------------------------- the daemon


def kill_daemon(stage: Stage) -> None:
    _need(stage.is_daemon_up)
    stage.daemon.kill()
    _note_daemon_gone(stage)


def stop_daemon(stage: Stage) -> None:
    _need(stage.is_daemon_up)
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
    facts = document["lineage"]
    kept = {(f["mount_point"], f["mount_id"], Device(**f["device"])) for f in facts}
    found = [(item["key"], item["facts"]) for item in document["containers"]]
    copies = {(key["mount_point"], f["mount_id"]) for key, f in found if f["origin"]}
    tables = stage.tables()
    for _, target in stage.targets():
        top = tables.of(target.container).top_at(target.path)
        if target.container is not None:
            target.is_lost = top is None or (target.path, top.mount_id) not in copies
        elif top is None or (target.path, top.mount_id, top.device) not in kept:
            target.is_learned = False


def start_daemon(stage: Stage) -> None:
    _need(not stage.is_daemon_up)
    stage.write_config()
    stage.daemon.start()
    stage.is_daemon_up = True
    stage.wait_for_daemon()


def reload(stage: Stage, superseded: str) -> None:
    """SIGHUP with another policy, or with a file that must be refused."""
    _need(stage.is_daemon_up)
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
    "add-pod": add_pod,
    "delete": delete,
    "start-container": start_container,
    "stop-container": stop_container,
    "restart-container": restart_container,
    "stack": stack,
    "unpublish": unpublish,
    "publish": publish,
    "rebind": rebind,
    "kill-daemon": kill_daemon,
    "stop-daemon": stop_daemon,
    "start-daemon": start_daemon,
    "reload": reload,
}
