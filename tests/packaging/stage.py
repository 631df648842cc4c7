"""Runs inside a booted machine: FUSE servers and pods on its host, moved by lines of JSON.

Each line of stdin is ``{"do": method of Stage, "with": arguments}``, each of stdout an answer.
It has a copy of the package of its own: what is installed and removed meanwhile is another.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from fusewatchd.demo.cluster.apiserver import DemoApiServer
from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.node import cgroups
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodMount, PodVolume
from fusewatchd.demo.node.sources import ServerOptions
from fusewatchd.demo.node.world import PrivateWorld

LAB = "/srv/node"
KUBELET = "/var/lib/kubelet"


class Stage:
    """What a test may ask for."""

    def __init__(self) -> None:
        os.makedirs(LAB)
        self.node = DemoNode(PrivateWorld(LAB, False, False, "", cgroups.new_name()), name="node")
        # Where the daemon looks by itself; nodes often have it on another disk.
        os.symlink(self.node.kubelet_root, KUBELET)
        self.containers: dict[str, Container] = {}
        self.api: DemoApiServer | None = None

    def add(self, name: str, command: list[str], user_id: int) -> None:
        """Start a source and a pod with a container that has it at /data."""
        options = ServerOptions(user_id=user_id)
        source = self.node.add_source(name, command=command, options=options)
        pod = self.node.add_pod(name, [PodVolume("v", source)], [PodMount("v", "/data")])
        self.containers[name] = self.node.start_container(pod)

    def add_direct(self, name: str, volume: str, driver: str) -> dict[str, str]:
        """Lay out a pod in whose target somebody else's server is to mount; say where it is."""
        pod_volume = PodVolume("v", None, directory=volume, driver=driver)
        pod = self.node.add_pod(name, [pod_volume], [PodMount("v", "/data")])
        backing = os.path.join(LAB, "backing", name)
        os.makedirs(backing)
        with open(os.path.join(backing, "hello"), "w", encoding="utf-8") as file:
            file.write(name)
        return {"target": pod.volume_path("v"), "backing": backing}

    def start_container(self, name: str) -> None:
        """Start the container of a pod, once what it uses is mounted."""
        (pod,) = (pod for pod in self.node.pods.values() if pod.name == name)
        self.containers[name] = self.node.start_container(pod)

    def kill(self, name: str) -> None:
        """SIGKILL the server."""
        self.node.sources[name].kill()

    def restart(self, name: str) -> None:
        """Start a new server in place of a dead one."""
        self.node.sources[name].restart()

    def hold(self, name: str) -> None:
        """Let the server read requests and answer none."""
        self.node.sources[name].hold()

    def read(self, name: str, seconds: float) -> str:
        """Return what a container reads, once it can."""
        container = self.containers[name]
        container.wait_until_readable("/data/hello", seconds)
        return container.read("/data/hello")

    def error(self, name: str) -> int:
        """Return the errno of reading; 0 when it works."""
        try:
            self.containers[name].read("/data/hello")
        except OSError as error:
            return error.errno or -1
        return 0

    def begin_read(self, name: str) -> None:
        """Let a container read without waiting for it."""
        self.containers[name].begin("read", path="/data/hello")

    def tables(self) -> dict[str, str]:
        """Return the mount tables of the host and of every container."""
        with open("/proc/1/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            host = file.read()
        return {"host": host} | {n: c.mountinfo() for n, c in self.containers.items()}

    def serve_cluster(self) -> dict[str, str]:
        """Start a kubelet, and an API server that refuses everything; return their URLs."""
        self.api = DemoApiServer()
        self.api.status = 503
        kubelet = DemoKubelet(self.node.pod_list)
        self.api.start()
        kubelet.start()
        return {"kubelet": kubelet.url, "apiserver": self.api.url}

    def let_api_answer(self) -> None:
        """Let the API server take Events from now on."""
        assert self.api is not None
        self.api.status = 0

    def events(self) -> list[str]:
        """Return the reasons of the Events that were posted."""
        assert self.api is not None
        return self.api.reasons()


def main() -> int:
    """Obey until stdin ends."""
    stage = Stage()
    with stage.node:
        for line in sys.stdin:
            request = json.loads(line)
            answer: dict[str, Any]
            try:
                answer = {"value": getattr(stage, request["do"])(**request["with"])}
            except Exception as error:
                answer = {"error": repr(error)}
            print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
