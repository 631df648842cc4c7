"""``fusewatchd demo``: a crash and its repair on this machine, told as it happens.

A node is laid out in a private mount namespace: a real FUSE server, pods with containers of
their own, the real daemon.  Nothing outside that namespace is touched.
"""

from __future__ import annotations

import shlex
import sys
import time

from fusewatchd.demo.container import Access, Container, MountPropagation
from fusewatchd.demo.daemonprocess import DaemonProcess
from fusewatchd.demo.namespace import NamespaceForbiddenError, PrivateWorld, run_in_private_world
from fusewatchd.demo.node import DemoNode
from fusewatchd.demo.pods import PodMount, PodVolume

CRASHES = 3
DEADLINE_SECONDS = 10.0

_PODS: tuple[tuple[str, PodMount], ...] = (
    ("web", PodMount("data", "/data", propagation=MountPropagation.HOST_TO_CONTAINER)),
    ("batch", PodMount("data", "/data")),
    ("reader", PodMount("data", "/data", access=Access.READ_ONLY)),
    ("notebook", PodMount("data", "/data", sub_path="team/a")),
)


def show(server: str = "") -> int:
    """Run the demo; return 0 when every container works again after every crash.

    Args:
        server: another FUSE server as a command with ``{backing}`` and ``{mount}``.
    """
    sys.stdout.flush()
    try:
        return run_in_private_world(lambda world: _run(world, server), deadline_seconds=180)
    except NamespaceForbiddenError as exc:
        print(f"fusewatchd demo: {exc}", file=sys.stderr)
        return 2


def _run(world: PrivateWorld, server: str) -> int:
    with DemoNode(world) as node:
        files = {"hello": "data", "team/a/hello": "data of team a"}
        node.add_source("data", command=shlex.split(server), files=files)
        containers = _start_containers(node)
        _say(f"a node with one FUSE server, {len(containers)} pods, each with a container:")
        for name, mount in _PODS:
            what = f"{mount.access.name.lower()}, mountPropagation {mount.propagation.value}"
            below = f", subPath {mount.sub_path}" if mount.sub_path else ""
            _say(f"  {name:<10}{mount.mount_path}  {what}{below}")
        with DaemonProcess(node) as daemon:
            document = daemon.wait_until_watching(2 * len(containers) + 1)
            _say(f"fusewatchd {document['version']} watches {len(document['binds'])} mounts")
            broken = [n for n in range(CRASHES) if not _crash(node, containers, n + 1)]
            daemon.wait_until_watching(2 * len(containers) + 1)
            _say("")
            _say("what the daemon logged:")
            print(daemon.log())
        _say("everything works again" if not broken else "SOMETHING STAYED BROKEN")
    return 1 if broken else 0


def _start_containers(node: DemoNode) -> dict[str, Container]:
    containers: dict[str, Container] = {}
    for name, mount in _PODS:
        pod = node.add_pod(name, [PodVolume("data", node.sources["data"])], [mount])
        containers[name] = node.start_container(pod)
    return containers


def _crash(node: DemoNode, containers: dict[str, Container], number: int) -> bool:
    source = node.sources["data"]
    for container in containers.values():
        container.start_open_loop("/data/hello", 0.0005)
    _say("")
    killed = source.kill()
    _say(f"crash {number}: the server was killed (SIGKILL)")
    time.sleep(0.3)
    broken = [name for name, c in containers.items() if _is_broken(c)]
    _say(f"  +{(time.monotonic() - killed) * 1e3:7.1f} ms  ENOTCONN in: {', '.join(broken)}")
    back = source.restart()
    _say(f"  +{(back - killed) * 1e3:7.1f} ms  the server is back, mounted anew")
    is_fine = bool(broken)
    for name, container in containers.items():
        container.wait_until_readable("/data/hello", DEADLINE_SECONDS)
        at = container.stop_open_loop("/data/hello").first_success_after(killed + 0.2)
        if at is None:
            _say(f"                {name} is STILL BROKEN")
            is_fine = False
            continue
        later = (at - back) * 1e3
        _say(f"  +{(at - killed) * 1e3:7.1f} ms  {name} reads again, {later:.1f} ms later")
    return is_fine


def _is_broken(container: Container) -> bool:
    try:
        container.read("/data/hello")
    except OSError:
        return True
    return False


def _say(text: str) -> None:
    print(text, flush=True)
