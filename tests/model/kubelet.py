"""What the kubelet, the runtime and a pod's driver do."""

from __future__ import annotations

import errno
from contextlib import suppress

from fusewatchd.demo.node.unmounting import Unmounting
from tests.model.places import PodState, Tables
from tests.model.possible import insist, may_unmount, need, pod_of, source_of
from tests.model.shapes import KEPT, SHAPES
from tests.model.stage import Stage

NO_SERVER = (errno.ENOTCONN, errno.ECONNABORTED)


def try_again(stage: Stage) -> None:
    """End pods that a hung server kept, and start containers that a dead one kept."""
    is_hung = any(state.is_hung for state in stage.sources.values())
    for name, pod in list(stage.pods.items()):
        if pod.is_ending:
            if not is_hung and may_unmount(stage, pod):
                _end(stage, name, pod)
        elif pod.waiting and _may_start(stage, pod):
            waiting, pod.waiting = pod.waiting, []
            for container in waiting:
                _start(stage, pod, container)


def add_pod(stage: Stage, name: str, shape: str, one: str, two: str) -> None:
    sources = [source_of(stage, one), source_of(stage, two)]
    need(name not in stage.pods and all(state.answers for state in sources))
    volumes, mounts = SHAPES[shape](sources[0].source, sources[1].source)
    uid = f"{int(name.removeprefix('p')):08x}-0000-4000-8000-000000000000"
    pod = PodState(stage.node.add_pod(name, volumes, mounts, uid=uid), shape, {})
    stage.pods[name] = pod
    pod.on_host = stage.host_targets(pod)
    for container in pod.pod.container_names:
        start_container(stage, name, container)


def delete(stage: Stage, name: str) -> None:
    """End a pod with plain umounts: two tries in three unmount until nothing is left."""
    pod = pod_of(stage, name)
    need(may_unmount(stage, pod))
    pod.inside.clear()
    pod.waiting.clear()
    pod.pod.is_deleting = pod.is_ending = True
    stage.tell_kubelet()
    _end(stage, name, pod)


def _end(stage: Stage, name: str, pod: PodState) -> None:
    once = int(name.removeprefix("p")) % 3 == 0
    unmounting = Unmounting.ONCE if once else Unmounting.UNTIL_BARE
    hung = any(state.is_hung for state in stage.sources.values())
    if insist(stage, lambda: stage.node.remove_pod(pod.pod, unmounting), may_fail=hung):
        del stage.pods[name]


def start_container(stage: Stage, name: str, container: str) -> None:
    pod = pod_of(stage, name)
    need(container in pod.pod.container_names and container not in (*pod.inside, *pod.waiting))
    need(_may_start(stage, pod))
    _start(stage, pod, container)


def _start(stage: Stage, pod: PodState, container: str) -> None:
    # Asked before: the daemon may put right meanwhile what the runtime has already met.
    is_dead = any(not stage.sources[t.source].is_up for t in pod.on_host.values())
    may_fail = is_dead or _shows_old(stage, pod)
    try:
        stage.node.start_container(pod.pod, container)
    except OSError as exc:
        if not may_fail or exc.errno not in NO_SERVER:
            raise
        stage.counts["container did not start"] += 1
        pod.waiting.append(container)
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
    states = [(t, stage.sources[t.source]) for t in pod.on_host.values()]
    return not any(t.is_bare or t.is_leaving or s.is_hung or s.errno for t, s in states)


def _shows_old(stage: Stage, pod: PodState) -> bool:
    table = Tables([]).host
    tops = [(t, table.top_at(t.path)) for t in pod.on_host.values()]
    return any(top and top.device != stage.sources[t.source].device for t, top in tops)


def stop_container(stage: Stage, name: str, container: str) -> None:
    pod = pod_of(stage, name)
    if container in pod.waiting:
        pod.waiting.remove(container)
        return
    need(container in pod.inside)
    pod.pod.containers[container].stop()
    del pod.inside[container]


def restart_container(stage: Stage, name: str, container: str) -> None:
    need(_may_start(stage, pod_of(stage, name)))
    stop_container(stage, name, container)
    start_container(stage, name, container)
