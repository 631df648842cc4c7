"""Events on what stands for a volume, and Events that outlive the daemon, against a real server."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusewatchd.daemon.front.kept_events import NAME as STATE_NAME
from fusewatchd.daemon.front.kept_events import KeptEvents as KeptByRoot
from fusewatchd.demo.cluster.apiserver import DemoApiServer
from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.cluster.loopback import free_port
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.front.clients import KeptEvents
from fusewatchd.kube.clocks import Clocks
from fusewatchd.kube.endpoint import Endpoint
from fusewatchd.kube.events.news import PosterNews
from fusewatchd.kube.events.poster import EventPoster
from fusewatchd.report.events.draft import (
    EventDraft,
    ObjectReference,
    VolumeObject,
    VolumeReference,
)
from tests.lab import in_lab, pod_with_container
from tests.waiting import wait_until

PATIENCE = 20.0
VOLUME = "/api/v1/persistentvolumes/shop-data"
DATASET = "/apis/data.fluid.io/v1alpha1/namespaces/shop/datasets/data"
ON_CLAIM = EventDraft(
    VolumeReference("shop-data", VolumeObject.CLAIM), "FuseMountStale", "Watch", "gone", "Warning"
)
ON_DATASET = EventDraft(
    VolumeReference("shop-data", VolumeObject.DATASET), "FuseRecoverSucceed", "Replace", "ok", "Normal"
)  # fmt: skip
ON_POD = EventDraft(
    ObjectReference("Pod", "shop", "web", "u"), "FuseMountStale", "W", "n", "Warning"
)
CLAIM_REF = {"kind": "PersistentVolumeClaim", "namespace": "shop", "name": "data", "uid": "c-1"}


@contextmanager
def posting(url: str, state_dir: str = "") -> Iterator[EventPoster]:
    clocks = Clocks(chance=lambda: 0.0)
    by_root = KeptByRoot(state_dir)
    assert by_root.load() == ""
    kept = KeptEvents(by_root.text, lambda: None)
    poster = EventPoster(Endpoint(url), "node-1", clocks=clocks, nodes=1, keeper=kept)
    poster.start()
    try:
        yield poster
    finally:
        poster.stop(1.0)
        text = kept.take()
        by_root.take(text, json.loads(text))
        by_root.close()


def news_of(poster: EventPoster, condition: Callable[[PosterNews], bool]) -> PosterNews:
    seen: list[PosterNews] = []

    def total() -> PosterNews:
        seen.append(poster.collect())
        return PosterNews(
            sum(n.posted for n in seen),
            sum(n.failed for n in seen),
            sum(n.dropped for n in seen),
            tuple(p for n in seen for p in n.problems),
        )

    wait_until(lambda: condition(total()))
    return total()


def test_the_claim_and_the_dataset_are_named_as_the_server_names_them() -> None:
    with DemoApiServer() as server, posting(server.url) as poster:
        server.objects = {VOLUME: {"spec": {"claimRef": CLAIM_REF}}, DATASET: {"metadata": {"uid": "d-1"}}}  # fmt: skip
        poster.post(ON_CLAIM)
        poster.post(ON_DATASET)
        news_of(poster, lambda n: n.posted == 2)
        claim, dataset = (event["regarding"] for event in server.events())
        assert claim == {"apiVersion": "v1", **CLAIM_REF}
        assert dataset == {
            "apiVersion": "data.fluid.io/v1alpha1", "kind": "Dataset", "namespace": "shop",
            "name": "data", "uid": "d-1",
        }  # fmt: skip


def test_what_happens_again_asks_for_nothing_again() -> None:
    with DemoApiServer() as server, posting(server.url) as poster:
        server.objects = {VOLUME: {"spec": {"claimRef": CLAIM_REF}}}
        poster.post(ON_CLAIM)
        news_of(poster, lambda n: n.posted == 1)
        poster.post(ON_CLAIM)
        news_of(poster, lambda n: n.posted == 1)
        assert [method for method, _ in server.requests] == ["GET", "POST", "PATCH"]
        (event,) = server.events()
        assert event["series"]["count"] == 2


@pytest.mark.parametrize("spec", [None, {}, {"claimRef": {}}], ids=["no-volume", "none", "unbound"])
def test_a_volume_without_a_claim_is_nobodys_event(spec: object) -> None:
    with DemoApiServer() as server, posting(server.url) as poster:
        server.objects = {} if spec is None else {VOLUME: {"spec": spec}}
        for draft in (ON_CLAIM, ON_DATASET, ON_POD):
            poster.post(draft)
        news = news_of(poster, lambda n: n.posted == 1)
        wait_until(lambda: len(server.requests) >= 3)
        assert (news.failed, news.dropped, news.problems) == (0, 0, ())
        assert [event["regarding"]["kind"] for event in server.events()] == ["Pod"]


def test_an_answer_that_makes_no_sense_is_refused() -> None:
    with DemoApiServer() as server, posting(server.url) as poster:
        server.objects = {VOLUME: {"spec": {"claimRef": "../../secrets"}}}
        poster.post(ON_CLAIM)
        news = news_of(poster, lambda n: n.failed == 1)
        assert "spec.claimRef.namespace: expected" in news.problems[0]
        assert server.events() == []


def test_a_missing_permission_is_said_once_and_pods_are_told_as_before() -> None:
    with DemoApiServer() as server, posting(server.url) as poster:
        server.forbidden = {"/api/v1/persistentvolumes/"}
        for number in range(5):
            poster.post(EventDraft(ON_CLAIM.regarding, "R", "A", f"n{number}", "Warning"))
        poster.post(ON_POD)
        news = news_of(poster, lambda n: n.posted == 1 and n.failed == 5)
        assert len(news.problems) == 1
        assert "not allowed to get persistentvolumes" in news.problems[0]
        assert len([p for method, p in server.requests if method == "GET"]) == 1


def test_what_could_not_be_said_is_said_by_the_next_run(tmp_path: Path) -> None:
    port = free_port()
    state = str(tmp_path)
    with posting(f"http://127.0.0.1:{port}", state) as poster:
        for _ in range(3):
            poster.post(ON_POD)
        poster.post(ON_CLAIM)
        news_of(poster, lambda n: bool(n.problems))
    assert os.stat(tmp_path / STATE_NAME).st_mode & 0o077 == 0
    with DemoApiServer() as server, posting(server.url, state) as poster:
        server.objects = {VOLUME: {"spec": {"claimRef": CLAIM_REF}}}
        wait_until(lambda: len(server.events()) == 2)
        wait_until(lambda: any(e.get("series", {}).get("count") == 3 for e in server.events()))
        (name,) = (e["metadata"]["name"] for e in server.events() if "series" in e)
    with posting(server.url, state):
        pass
    # One that was told already is not told again, and what happens again is the same Event.
    with DemoApiServer() as server:
        server._events[("shop", name)] = json.loads(json.dumps(_event_of(name)))
        with posting(server.url, state) as poster:
            poster.post(ON_POD)
            wait_until(lambda: bool(server.requests))
            news_of(poster, lambda n: n.posted == 1)
            assert [method for method, _ in server.requests] == ["PATCH"]
            (event,) = server.events()
            assert event["series"]["count"] == 4


def _event_of(name: str) -> dict[str, object]:
    from fusewatchd.kube.events.objects import EventsApi, Occurrences, event_object

    assert isinstance(ON_POD.regarding, ObjectReference)
    return event_object(
        EventsApi.EVENTS_V1, Occurrences(ON_POD, ON_POD.regarding, name, 1, 1e9, 1e9), "node-1"
    )


@pytest.mark.parametrize("text", ['{"version": 9, "events": []}', "[]"])
def test_a_file_that_is_not_as_written_is_left_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / STATE_NAME
    path.write_text(text)
    path.chmod(0o600)
    with DemoApiServer() as server, posting(server.url, str(tmp_path)) as poster:
        poster.post(ON_POD)
        news = news_of(poster, lambda n: n.posted == 1)
        assert "is left out" in news.problems[0]


@pytest.mark.parametrize("text", ["", "{"])
def test_a_torn_file_is_left_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / STATE_NAME
    path.write_text(text)
    path.chmod(0o600)
    kept = KeptByRoot(str(tmp_path))
    assert kept.load() == f"{path}: torn or empty"
    assert kept.text == ""


@pytest.mark.kernel
@in_lab(timeout=90)
def test_an_outage_while_the_api_server_is_away_is_told_by_the_next_daemon(node: DemoNode) -> None:
    source = node.add_source("one")
    pod, container = pod_with_container(node, source, "web")
    (volume,) = pod.volumes
    path = f"/api/v1/persistentvolumes/{volume.directory_name}"
    claim = {"namespace": pod.namespace, "name": volume.claim_name, "uid": "c-1"}
    with DemoKubelet(node.pod_list) as kubelet, DemoApiServer() as server:
        settings = {"kubelet.url": kubelet.url, "apiserver.url": server.url}
        server.objects = {path: {"spec": {"claimRef": claim}}}
        server.status = 503
        with DaemonProcess(node, settings=settings) as daemon:
            daemon.wait_for(lambda d: d["pods_known"] and d["totals"]["verdicts"]["healthy"] == 2)
            source.kill()
            source.restart()
            container.wait_until_readable("/data/hello", PATIENCE)
            wait_until(lambda: "event=recovered" in daemon.log() and len(server.requests) > 0)
        server.status = 0
        with DaemonProcess(node, settings=settings):
            wait_until(lambda: len(server.events()) == 4)
    told = {(e["regarding"]["kind"], e["regarding"]["uid"], e["reason"]) for e in server.events()}
    assert told == {
        (kind, uid, reason)
        for kind, uid in (("Pod", pod.uid), ("PersistentVolumeClaim", "c-1"))
        for reason in ("FuseMountStale", "FuseMountRecovered")
    }
