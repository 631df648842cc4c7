"""``fusewatchd demo``: a crash and its repair on this machine, told as it happens.

A node is laid out in a private mount namespace: a real FUSE server, pods with containers of
their own, a small kubelet and API server on loopback, the real daemon.  Nothing outside that
namespace is touched.
"""

from __future__ import annotations

import shlex
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fusewatchd.demo.cluster.apiserver import DemoApiServer
from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.cluster.loopback import free_port
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.container_spec import Access, MountPropagation
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodMount, PodVolume
from fusewatchd.demo.node.sources import Source
from fusewatchd.demo.node.world import NamespaceForbiddenError, PrivateWorld, run_in_private_world
from fusewatchd.demo.pause import compare
from fusewatchd.demo.prompt import prompt
from fusewatchd.errors import FusewatchError

CRASHES = 3
DEADLINE_SECONDS = 10.0
STALE_SECONDS = 0.3
"""How long the pods are left to suffer, so that it can be seen."""
REST_SECONDS = 1.0
"""Between a recovery and the next crash, as a server that is started anew lives for a while."""
FILE = "/data/hello"

_PODS: tuple[tuple[str, PodMount], ...] = (
    ("web", PodMount("data", "/data", propagation=MountPropagation.HOST_TO_CONTAINER)),
    ("batch", PodMount("data", "/data")),
    ("reader", PodMount("data", "/data", access=Access.READ_ONLY)),
    ("notebook", PodMount("data", "/data", sub_path="team/a")),
)
_METRICS = (
    "fusewatchd_mounts{",
    "fusewatchd_recoveries_total{",
    "fusewatchd_recovery_duration_seconds_sum",
    "fusewatchd_recovery_duration_seconds_count",
    "fusewatchd_detection_duration_seconds_sum",
    "fusewatchd_detection_duration_seconds_count",
    "fusewatchd_events_total{",
)


@dataclass(frozen=True, slots=True)
class _Stage:
    """Everything that plays along."""

    source: Source
    containers: dict[str, Container]
    apiserver: DemoApiServer
    metrics_address: str


def show(server: str = "", *, keep: bool = False) -> int:
    """Run the demo; return 0 when every container works again after every crash.

    Args:
        server: another FUSE server as a command with ``{backing}`` and ``{mount}``.
        keep: leave the node up afterwards, until Enter, for commands to be tried on it.
    """
    sys.stdout.flush()
    seconds = None if keep else 180.0
    try:
        return run_in_private_world(
            lambda world: _told(world, server, keep=keep), deadline_seconds=seconds
        )
    except NamespaceForbiddenError as exc:
        print(f"fusewatchd demo: {exc}", file=sys.stderr)
        return 2


def _told(world: PrivateWorld, server: str, *, keep: bool) -> int:
    try:
        return _run(world, server, keep=keep)
    except (FusewatchError, OSError, RuntimeError) as exc:
        print(f"fusewatchd demo: {exc}", file=sys.stderr)
        return 2


def _run(world: PrivateWorld, server: str, *, keep: bool) -> int:
    with DemoNode(world) as node, DemoKubelet(node.pod_list) as kubelet, DemoApiServer() as api:
        files = {"hello": "data", "team/a/hello": "data of team a"}
        source = node.add_source("data", command=shlex.split(server), files=files)
        containers = _start_containers(node)
        _tell_the_scene(server, containers)
        address = f"127.0.0.1:{free_port()}"
        settings = {
            "kubelet.url": kubelet.url,
            "apiserver.url": api.url,
            "web.listen_address": address,
            "web.status_page": "true",
            "log.format": "text",
        }
        with DaemonProcess(node, settings=settings) as daemon:
            stage = _Stage(source, containers, api, address)
            binds = 2 * len(containers) + 1
            daemon.wait_for(lambda d: d["pods_known"])
            document = daemon.wait_until_watching(binds)
            _say(f"fusewatchd {document['version']} watches {len(document['binds'])} mounts.")
            was_fine = []
            for number in range(CRASHES):
                was_fine.append(_crash(stage, number + 1))
                if not was_fine[-1]:
                    break
                daemon.wait_until_watching(binds)
                time.sleep(REST_SECONDS)
            if all(was_fine):
                was_fine += [_tell_events(stage), _tell_metrics(stage)]
            _say("\nThe daemon's log of the last crash:")
            _say(_last_story(daemon.log()))
            if keep:
                prompt(daemon, source, address)
        if all(was_fine):
            was_fine.append(compare(node, source, containers, FILE, settings))
    _say("Everything works again." if all(was_fine) else "SOMETHING STAYED BROKEN.")
    return 0 if all(was_fine) else 1


def _start_containers(node: DemoNode) -> dict[str, Container]:
    containers: dict[str, Container] = {}
    for name, mount in _PODS:
        pod = node.add_pod(name, [PodVolume("data", node.sources["data"])], [mount])
        containers[name] = node.launch_container(pod)
    for container in containers.values():
        container.wait_ready()
    return containers


def _tell_the_scene(server: str, containers: dict[str, Container]) -> None:
    kind = server.split()[0] if server else "a small server of the demo's own"
    _say(f"A node with one FUSE server ({kind}) and {len(containers)} pods:")
    for name, mount in _PODS:
        access = "read-only, " if mount.access is Access.READ_ONLY else ""
        below = f", subPath {mount.sub_path}" if mount.sub_path else ""
        _say(f"  {name:<10}{access}mountPropagation {mount.propagation.value}{below}")


def _crash(stage: _Stage, number: int) -> bool:
    containers = stage.containers
    for container in containers.values():
        container.start_open_loop(FILE, 0.001)
    killed = stage.source.kill()

    def at(moment: float) -> str:
        return f"  {(moment - killed) * 1e3:8.1f} ms  "

    _say(f"\nCrash {number}\n{at(killed)}the FUSE server is killed")
    time.sleep(STALE_SECONDS)
    broken = [name for name, container in containers.items() if _is_broken(container)]
    _say(f"{at(time.monotonic())}Transport endpoint is not connected: {', '.join(broken)}")
    back = stage.source.restart()
    _say(f"{at(back)}the FUSE server is back, as a new mount")
    is_fine = len(broken) == len(containers)
    repaired: list[tuple[float, str]] = []
    for name, container in containers.items():
        moment = _first_success(container, killed + STALE_SECONDS / 2)
        if moment is None:
            _say(f"               {name} IS STILL BROKEN")
            is_fine = False
        else:
            repaired.append((moment, name))
    for moment, name in sorted(repaired):
        _say(f"{at(moment)}{name} reads again, {(moment - back) * 1e3:.1f} ms after that")
    return is_fine


def _first_success(container: Container, after: float) -> float | None:
    """Return when the container's own loop of opens succeeded again; None: it did not."""
    _wait(lambda: container.open_loop(FILE).first_success_after(after) is not None)
    return container.stop_open_loop(FILE).first_success_after(after)


def _is_broken(container: Container) -> bool:
    try:
        container.read(FILE)
    except OSError:
        return True
    return False


def _tell_events(stage: _Stage) -> bool:
    """Print what `kubectl get events` would show; a pod has one Event for each reason."""
    wanted = 2 * CRASHES * len(stage.containers)
    _wait(lambda: sum(map(_times, stage.apiserver.events())) >= wanted)
    _say("\nEvents on the pods:")
    for event in stage.apiserver.events():
        name = event["regarding"]["name"]
        note = event["note"].split(":")[0].split(".")[0]
        _say(f"  {event['type']:<8}{name:<10}{event['reason']:<20} x{_times(event)}  {note}")
    return sum(map(_times, stage.apiserver.events())) >= wanted


def _times(event: dict[str, Any]) -> int:
    return int(event.get("series", {}).get("count", 1))


def _tell_metrics(stage: _Stage) -> bool:
    address = f"http://{stage.metrics_address}/metrics"
    with urllib.request.urlopen(address, timeout=5) as page:
        lines = page.read().decode().splitlines()
    shown = [x for x in lines if x.startswith(_METRICS) and not x.endswith(" 0.0")]
    _say(f"\nMetrics at {address} (those above 0):")
    for line in shown:
        _say(f"  {line}")
    return bool(shown)


def _last_story(log: str) -> str:
    """Return the log from the last death of a server on."""
    lines = log.splitlines()
    starts = [number for number, line in enumerate(lines) if "server is gone" in line]
    story = lines[starts[-1] :] if starts else lines
    return "\n".join(f"  {line}" for line in story) + "\n"


def _wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


def _say(text: str) -> None:
    print(text, flush=True)
