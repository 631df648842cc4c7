"""``fusewatchd explain`` as a person uses it, with the daemon and without."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container_spec import MountPropagation
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodMount, PodVolume, VolumeKind
from tests.lab import in_lab, pod_with_container, run_fusewatchd

pytestmark = pytest.mark.kernel


def explain(daemon: DaemonProcess, *words: str) -> subprocess.CompletedProcess[str]:
    sets = [word for key, value in daemon.values.items() for word in ("--set", f"{key}={value}")]
    return run_fusewatchd("explain", *words, *sets)


@pytest.mark.slow
@in_lab(timeout=90)
def test_why_did_it_not_recover(node: DemoNode) -> None:
    source = node.add_source("one")
    other = PodVolume("h", kind=VolumeKind.HOST_PATH, host_path=node.add_source("two").path)
    mounts = [
        PodMount("v", "/data"),
        PodMount("h", "/host", propagation=MountPropagation.BIDIRECTIONAL),
    ]
    pod = node.add_pod("app", [PodVolume("v", source), other], mounts)
    container = node.start_container(pod)
    bind = pod.volume_path("v")
    with (
        DemoKubelet(node.pod_list) as kubelet,
        DaemonProcess(node, settings={"kubelet.url": kubelet.url}) as daemon,
    ):
        daemon.wait_for(lambda d: d["pods_known"])
        daemon.wait_until_watching(2)
        source.kill()
        source.restart()
        daemon.wait_for(lambda d: len(d["outages"]) == 1)
        source.kill()
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == 2)
        done = explain(daemon, f"{bind}/some/file")
        assert (done.returncode, done.stderr) == (1, "")
        for words in (
            f"{bind}  stale",
            f"demo/app, uid {pod.uid}",
            "by lineage: mounted there while healthy",
            f"{source.path}: fuse.demofs",
            "2 mounts recovered after",
            "source_missing: Its source is not mounted.",
            "fusewatchd replaces it within milliseconds",
            "Check the driver",
        ):
            assert words in done.stdout, done.stdout
        # The history outlives the daemon.
        daemon.stop()
        daemon.start()
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == 2)
        whole = explain(daemon, "demo/app", "--json")
        assert whole.returncode == 1
        mounts = json.loads(whole.stdout)["mounts"]
        assert {mount["bind"]["mount_point"] for mount in mounts} == {bind, "/data", "/host"}
        told = {mount["bind"]["mount_point"]: mount["outages"] for mount in mounts}
        assert all(any("recovery_ms" in o for o in told[path]) for path in (bind, "/data"))
        alien = explain(daemon, "demo/app:/host")
        assert "not: The mount shows no volume of its pod on the host" in alien.stdout
        source.restart()
        container.wait_until_readable("/data/hello", 10.0)
        daemon.wait_until_watching(2)
        inside = explain(daemon, f"{container.spec.container_id[:12]}:/data/x")
        assert inside.returncode == 0, inside.stderr
        assert "the volume as a container sees it" in inside.stdout
        unknown = explain(daemon, "demo/ap")
        assert (unknown.returncode, unknown.stdout) == (2, "")
        assert unknown.stderr == "nothing is known of demo/ap; near: demo/app\n"


@pytest.mark.slow
@in_lab(timeout=60)
def test_without_a_daemon_it_looks_by_itself_and_says_so(node: DemoNode) -> None:
    source = node.add_source("one")
    pod, _ = pod_with_container(node, source, "p")
    daemon = DaemonProcess(node)
    with daemon:
        daemon.wait_until_watching(2)
    source.kill()
    source.restart()
    linked = os.path.join(node.lab, "linked")
    os.symlink(node.kubelet_root, linked)
    bind = pod.volume_path("v")
    done = explain(daemon, bind.replace(node.kubelet_root, linked))
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("No fusewatchd is running: this command looked at the node once.")
    # What the daemon wrote down is the only thing that tells where this came from.
    assert "by lineage: mounted there while healthy" in done.stdout
    assert "Start it: `systemctl start fusewatchd`" in done.stdout
    assert explain(daemon, source.path).returncode == 1
    unknown = explain(daemon, "demo/p")
    assert "names of pods are not known here, only uids" in unknown.stderr
