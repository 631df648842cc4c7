"""The daemon with a kubelet and an API server: told of everything, held up by nothing."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from fusewatchd.demo.cluster.apiserver import DemoApiServer
from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.cluster.loopback import free_port
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.sources import Source
from fusewatchd.demo.timeouts import patient
from tests.lab import in_lab, pod_with_container
from tests.waiting import wait_until

pytestmark = pytest.mark.kernel

DEADLINE = 10.0
SLOW = 30.0


@dataclass(slots=True)
class Cluster:
    node: DemoNode
    kubelet: DemoKubelet
    apiserver: DemoApiServer
    metrics_address: str

    def settings(self) -> dict[str, str]:
        return {
            "kubelet.url": self.kubelet.url,
            "apiserver.url": self.apiserver.url,
            "web.listen_address": self.metrics_address,
        }

    def metrics(self) -> str:
        """Return what Prometheus would read."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=10) as page:
            return str(page.read().decode())

    def metric(self, line: str) -> float:
        """Return the value of a sample, named with its labels as Prometheus prints them."""
        text = self.metrics()
        for found in text.splitlines():
            if found.startswith(line + " "):
                return float(found.split()[-1])
        raise AssertionError(f"no {line} in\n{text}")


@contextmanager
def cluster(node: DemoNode) -> Iterator[Cluster]:
    with DemoKubelet(node.pod_list) as kubelet, DemoApiServer() as apiserver:
        yield Cluster(node, kubelet, apiserver, f"127.0.0.1:{free_port()}")


def crash(source: Source) -> None:
    source.kill()
    source.restart()


def wait_for_reasons(apiserver: DemoApiServer, reasons: list[str]) -> None:
    wait_until(lambda: apiserver.reasons() == reasons, lambda: str(apiserver.events()), DEADLINE)


@pytest.mark.parametrize("is_old", [False, True], ids=["kernel", "old-kernel"])
@in_lab(timeout=90)
def test_a_crash_is_told_as_events_and_metrics(node: DemoNode, is_old: bool) -> None:
    source = node.add_source("one")
    pod, container = pod_with_container(node, source, "web")
    with (
        cluster(node) as world,
        DaemonProcess(node, settings=world.settings(), as_old_kernel=is_old) as daemon,
    ):
        daemon.wait_for(lambda d: d["pods_known"] and d["totals"]["verdicts"]["healthy"] == 2)
        crash(source)
        container.wait_until_readable("/data/hello", DEADLINE)
        wait_for_reasons(world.apiserver, ["FuseMountStale", "FuseMountRecovered"])
        for event in world.apiserver.events():
            regarding = event["regarding"]
            assert (regarding["name"], regarding["uid"]) == ("web", pod.uid)
            assert event["reportingInstance"] == node.name
        daemon.wait_until_watching(2)
        recovered = 'fusewatchd_recoveries_total{driver="fuse.csi.demo",kind="%s",outcome="recovered",reason="none"}'
        assert world.metric(recovered % "publish") == 1
        assert world.metric(recovered % "container") == 1
        # Counted only when the answer is there, which the events do not wait for.
        posted = 'fusewatchd_events_total{outcome="posted"}'
        wait_until(lambda: world.metric(posted) == 2, daemon.log, DEADLINE)
        assert world.metric('fusewatchd_kubelet_requests_total{code="2xx"}') >= 1
        assert (
            world.metric('fusewatchd_recovery_duration_seconds_count{driver="fuse.csi.demo"}') == 1
        )
        assert world.metric('fusewatchd_outage_duration_seconds_count{driver="fuse.csi.demo"}') == 1
        assert world.metric("fusewatchd_detection_duration_seconds_count") == 1
        healthy = 'fusewatchd_mounts{driver="fuse.csi.demo",kind="container",verdict="healthy"}'
        assert world.metric(healthy) == 1
        document = daemon.status()
        assert {b["pod"]["name"] for b in document["binds"]} == {"web"}


@pytest.mark.parametrize("how", ["slow", "refusing", "gone", "nonsense"])
@in_lab(timeout=90)
def test_a_cluster_in_trouble_holds_no_recovery_up(node: DemoNode, how: str) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "web")
    with cluster(node) as world:
        if how == "slow":
            world.kubelet.delay_seconds = world.apiserver.delay_seconds = patient(SLOW)
        elif how == "refusing":
            world.kubelet.status = world.apiserver.status = 503
        elif how == "nonsense":
            world.kubelet.body = b"[1, 2"
            world.apiserver.status = 302
        else:
            world.kubelet.stop()
            world.apiserver.stop()
        with DaemonProcess(node, settings=world.settings()) as daemon:
            daemon.wait_until_watching(2)
            for _ in range(3):
                crash(source)
                # Far less than one answer takes.
                container.wait_until_readable("/data/hello", DEADLINE)
            if how != "slow":
                daemon.wait_for(lambda d: [gap["source"] for gap in d["gaps"]] == ["kubelet"])
            assert daemon.wait_until_watching(2)["pods_known"] is False
            assert daemon.stop(timeout=8) == 0


@in_lab(timeout=90)
def test_events_are_kept_while_the_api_server_is_away(node: DemoNode) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "web")
    with cluster(node) as world, DaemonProcess(node, settings=world.settings()) as daemon:
        daemon.wait_for(lambda d: d["pods_known"] and d["totals"]["verdicts"]["healthy"] == 2)
        world.apiserver.status = 503
        crash(source)
        container.wait_until_readable("/data/hello", DEADLINE)
        wait_until(lambda: bool(world.apiserver.requests), daemon.log, DEADLINE)
        assert world.apiserver.reasons() == []
        world.apiserver.status = 0
        wait_for_reasons(world.apiserver, ["FuseMountStale", "FuseMountRecovered"])


@in_lab(timeout=90)
def test_a_pod_that_is_being_deleted_is_left_alone(node: DemoNode) -> None:
    source = node.add_source("one")
    pod, _ = pod_with_container(node, source, "web")
    with cluster(node) as world, DaemonProcess(node, settings=world.settings()) as daemon:
        pod.is_deleting = True
        settings = {**daemon.values, "kubelet.refresh_seconds": "0.2"}
        daemon.stop()
        daemon.values = settings
        daemon.start()
        daemon.wait_for(lambda d: any(b["pod"]["deleting"] for b in d["binds"]))
        crash(source)
        document = daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == 2)
        time.sleep(0.5)
        document = daemon.status()
        assert {b["refusal"] for b in document["binds"]} == {"pod_ending"}
        assert world.apiserver.reasons() == []


@in_lab(timeout=90)
def test_a_new_pod_is_known_by_name_at_once(node: DemoNode) -> None:
    source = node.add_source("one")
    with cluster(node) as world:
        settings = {**world.settings(), "kubelet.refresh_seconds": "3600"}
        daemon = DaemonProcess(node, settings=settings)
        with daemon:
            daemon.wait_for(lambda d: d["pods_known"])
            pod_with_container(node, source, "later")
            daemon.wait_for(lambda d: {b["pod"]["name"] for b in d["binds"]} == {"later"})
