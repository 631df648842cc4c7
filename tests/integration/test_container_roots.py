"""Images whose layers are served by FUSE: which pods have lost theirs."""

from __future__ import annotations

import os
import subprocess

import pytest

from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from tests.lab import in_lab, run_fusewatchd

pytestmark = [pytest.mark.kernel, pytest.mark.slow]


@in_lab(timeout=120)
def test_pods_with_a_dead_layer_need_a_restart(node: DemoNode) -> None:
    """As containerd has it with the stargz snapshotter."""
    state = f"{node.lab}/containerd"
    layer, other = (
        node.add_source(f"layer{n}", path=f"{state}/snapshotter/snapshots/{n}/fs") for n in (1, 2)
    )
    pods = [node.add_pod(name, [], []) for name in ("hit", "well")]
    for pod, lower in zip(pods, (f"{other.path}:{layer.path}", other.path), strict=True):
        container = node.start_container(pod)
        root = f"{state}/k8s.io/{container.spec.container_id}/rootfs"
        os.makedirs(root)
        run = ["mount", "-t", "overlay", "-o", f"lowerdir={lower}:/usr", "overlay", root]
        subprocess.run(run, check=True)
    with (
        DemoKubelet(node.pod_list) as kubelet,
        DaemonProcess(node, settings={"kubelet.url": kubelet.url, "look_seconds": "0.5"}) as daemon,
    ):
        daemon.wait_for(lambda d: d["pods_known"])
        assert daemon.status()["dead_roots"] == []
        layer.kill()
        (found,) = daemon.wait_for(lambda d: d["dead_roots"])["dead_roots"]
        assert (found["pod"]["name"], found["layer"]) == ("hit", layer.path)
        assert [pod["name"] for pod in daemon.status()["needs_restart"]] == ["hit"]
        sets = [
            word for key, value in daemon.values.items() for word in ("--set", f"{key}={value}")
        ]
        status = run_fusewatchd("status", *sets)
        assert status.returncode == 1
        assert "Image of pod demo/hit has a dead layer" in status.stdout
        assert "event=dead_root" in daemon.log()
        # A new server does not help the overlay.
        layer.restart()
        cycle = daemon.status()["cycle"]
        document = daemon.wait_for(lambda d: d["cycle"] > cycle + 1)
        assert [one["pod"]["name"] for one in document["dead_roots"]] == ["hit"]
        subprocess.run(["umount", f"{state}/k8s.io/{found['container']}/rootfs"], check=True)
        daemon.wait_for(lambda d: not d["needs_restart"])
