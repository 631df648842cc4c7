"""Volumes that somebody unmounts on the host while a container goes on with them."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.linux import syscalls
from tests.lab import in_lab, pod_with_container, run_fusewatchd

pytestmark = pytest.mark.kernel
DEADLINE = 20.0
MNT_FORCE = 1


def asked(daemon: DaemonProcess, *words: str) -> tuple[int, str]:
    sets = [word for key, value in daemon.values.items() for word in ("--set", f"{key}={value}")]
    done = run_fusewatchd(*words, *sets)
    return done.returncode, done.stdout


def stale_inside(document: Any) -> list[Any]:
    return [
        bind
        for bind in document["binds"]
        if bind["kind"] == "container" and bind["refusal"] == "unmounted_on_host"
    ]


def assert_dead(container: Container) -> None:
    with pytest.raises(OSError) as caught:
        container.read("/data/hello")
    assert caught.value.errno == errno.ENOTCONN


@pytest.mark.parametrize("has_list", [False, True], ids=["no-list", "list"])
@pytest.mark.parametrize("order", ["dies-first", "unmounted-first", "directory-deleted"])
@in_lab(timeout=90)
def test_a_dead_mount_in_a_container_is_told_until_it_is_published_again(
    node: DemoNode, has_list: bool, order: str
) -> None:
    source = node.add_source("one")
    pod, container = pod_with_container(node, source, "p")
    target = pod.volume_path("v")
    with DemoKubelet(node.pod_list) as kubelet:
        settings = {"kubelet.url": kubelet.url} if has_list else {}
        with DaemonProcess(node, settings=settings) as daemon:
            daemon.wait_until_watching(2)
            if order != "unmounted-first":
                source.kill()
                daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == 2)
            syscalls.umount2(target, syscalls.MNT_DETACH)
            if order == "directory-deleted":
                os.rmdir(target)
            if order == "unmounted-first":
                daemon.wait_for(
                    lambda d: not any(b["kind"] == "publish" and b["device"] for b in d["binds"])
                )
                assert container.read("/data/hello")
                source.kill()
            daemon.wait_for(lambda d: bool(stale_inside(d)), DEADLINE)
            source.restart()
            assert_dead(container)
            document = daemon.wait_for(lambda d: bool(d["incidents"] and stale_inside(d)), DEADLINE)
            assert document["namespaces"]["not_entered_stale_mounts"] == 0
            assert asked(daemon, "status")[0] == 1
            assert asked(daemon, "check")[0] == 1
            assert "unmounted on the host" in asked(daemon, "explain", pod.uid)[1]
            assert "outage ended" not in daemon.log()
            assert "never entered" not in daemon.log()
            # A daemon that is started now knows as much as the one before.
            (incident,) = document["incidents"]
            daemon.stop()
            daemon.start()
            again = daemon.wait_for(lambda d: bool(d["incidents"] and stale_inside(d)), DEADLINE)
            (later,) = again["incidents"]
            assert later["noticed_at"] == incident["noticed_at"]
            assert later["server_end"] == incident["server_end"]
            assert "event=outage_goes_on" in daemon.log()
            os.makedirs(target, exist_ok=True)
            node.publish(pod, pod.volumes[0])
            container.wait_until_readable("/data/hello", DEADLINE)
            daemon.wait_for(lambda d: not d["incidents"], DEADLINE)
            assert daemon.log().count("event=server_gone") == 1


@in_lab(timeout=60)
def test_a_bind_that_is_forced_off_breaks_its_pod_for_good(node: DemoNode) -> None:
    """umount -f of one bind cuts the connection of all; the others recover."""
    source = node.add_source("one")
    (pod, container), (_, other) = (pod_with_container(node, source, f"p{n}") for n in range(2))
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(4)
        syscalls.umount2(pod.volume_path("v"), MNT_FORCE)
        source.kill()
        source.restart()
        other.wait_until_readable("/data/hello", DEADLINE)
        document = daemon.wait_for(lambda d: d["totals"]["verdicts"]["healthy"] == 2, DEADLINE)
        (stale,) = stale_inside(document)
        assert stale["directory_uid"] == pod.uid
        assert stale["source"]["path"] == source.path
        assert_dead(container)
        assert asked(daemon, "status")[0] == 1
        container.stop()
        daemon.wait_for(lambda d: not d["incidents"] and not stale_inside(d), DEADLINE)
        assert asked(daemon, "status")[0] == 0


@in_lab(timeout=60)
def test_a_drain_is_no_outage(node: DemoNode) -> None:
    source = node.add_source("one")
    pod, _ = pod_with_container(node, source, "p")
    with (
        DemoKubelet(node.pod_list) as kubelet,
        DaemonProcess(node, settings={"kubelet.url": kubelet.url}) as daemon,
    ):
        daemon.wait_until_watching(2)
        pod.is_deleting = True
        daemon.wait_for(lambda d: any(b["pod"]["deleting"] for b in d["binds"]), DEADLINE)
        source.kill()
        daemon.wait_for(lambda d: {b["refusal"] for b in d["binds"]} == {"pod_ending"}, DEADLINE)
        assert not daemon.status()["incidents"]
        assert "event=server_gone" not in daemon.log()
