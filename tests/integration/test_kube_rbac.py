"""The roles that are shipped allow all that the daemon asks for, and each rule is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fusewatchd.demo.cluster.apiserver import DemoApiServer
from fusewatchd.kube.clocks import Clocks
from fusewatchd.kube.endpoint import Endpoint
from fusewatchd.kube.errors import ConflictError, ForbiddenError
from fusewatchd.kube.events.poster import EventPoster
from fusewatchd.kube.http import Client
from fusewatchd.kube.node_condition_poster import NodeConditionPoster
from fusewatchd.report.events.draft import (
    EventDraft,
    ObjectReference,
    VolumeObject,
    VolumeReference,
)
from fusewatchd.report.events.node_condition import TYPE, WELL
from tests.waiting import wait_until

KUBERNETES = Path(__file__).parents[2] / "conf" / "kubernetes"
PATIENCE = 20.0
VOLUME = "/api/v1/persistentvolumes/shop-data"
DATASET = "/apis/data.fluid.io/v1alpha1/namespaces/shop/datasets/data"
OBJECTS = {
    VOLUME: {"spec": {"claimRef": {"namespace": "shop", "name": "data", "uid": "c"}}},
    DATASET: {"metadata": {"uid": "d"}},
    "/api/v1/nodes": {"metadata": {"remainingItemCount": 2}},
}
ABOUT = {
    "pod": ObjectReference("Pod", "shop", "web", "u"),
    "claim": VolumeReference("shop-data", VolumeObject.CLAIM),
    "dataset": VolumeReference("shop-data", VolumeObject.DATASET),
}


def rules_of(*names: str) -> list[dict[str, Any]]:
    documents = [d for n in names for d in yaml.safe_load_all((KUBERNETES / n).read_text())]
    return [rule for d in documents if d["kind"] == "ClusterRole" for rule in d["rules"]]


def told(server: DemoApiServer) -> tuple[set[str], list[str]]:
    """Say everything that the daemon ever says; return what arrived and what was complained of."""
    poster = EventPoster(Endpoint(server.url), "node-1", clocks=Clocks(chance=lambda: 0.0))
    poster.start()
    problems: list[str] = []
    done = [0]
    for about in ABOUT.values():
        for _ in range(2):
            poster.post(EventDraft(about, "R", "A", "n", "Normal"))

    def is_over() -> bool:
        news = poster.collect()
        problems.extend(news.problems)
        done[0] += news.posted + news.failed
        return done[0] >= 6 or bool(problems)

    wait_until(is_over)
    poster.stop(1.0)
    return {event["regarding"]["kind"] for event in server.events()}, problems


@pytest.mark.parametrize("has_events_v1", [True, False])
def test_what_is_shipped_is_enough(has_events_v1: bool) -> None:
    with DemoApiServer(has_events_v1=has_events_v1) as server:
        server.rules, server.objects = rules_of("rbac.yaml"), dict(OBJECTS)
        if has_events_v1:
            assert told(server) == ({"Pod", "PersistentVolumeClaim", "Dataset"}, [])
        else:
            poster = EventPoster(Endpoint(server.url), "node-1", nodes=1)
            poster.start()
            poster.post(EventDraft(ABOUT["pod"], "R", "A", "n", "Normal"))
            wait_until(lambda: len(server.events()) == 1)
            poster.stop(1.0)
        server.rules += rules_of("rbac-node-condition.yaml")
        condition = NodeConditionPoster(Endpoint(server.url), "node-1")
        condition.start()
        condition.tell(WELL)
        wait_until(lambda: TYPE in server.conditions)
        condition.stop()
        condition.wait(PATIENCE)
        assert server.conditions == {}


@pytest.mark.parametrize("left_out", ["events", "persistentvolumes", "datasets"])
def test_a_rule_that_is_missing_is_named(left_out: str) -> None:
    with DemoApiServer() as server:
        server.rules = [r for r in rules_of("rbac.yaml") if left_out not in r["resources"]]
        server.objects = dict(OBJECTS)
        _, problems = told(server)
        assert len(problems) == 1
        assert left_out in problems[0]
        assert "not allowed to" in problems[0]


def test_everything_else_is_refused_as_by_the_real_one() -> None:
    with DemoApiServer() as server:
        server.rules = rules_of("rbac.yaml", "rbac-node-condition.yaml")
        client = Client(Endpoint(server.url))
        for method, path in (
            ("GET", "/api/v1/namespaces/shop/secrets/x"),
            ("GET", "/api/v1/persistentvolumes"),
            ("DELETE", "/api/v1/namespaces/shop/pods/x"),
            ("PATCH", "/api/v1/nodes/node-1"),
        ):
            with pytest.raises(ForbiddenError, match='is forbidden: User "demo" cannot'):
                client.request(method, path, {})


def test_an_older_version_is_a_conflict() -> None:
    with DemoApiServer() as server:
        told_kinds, problems = told_pod(server)
        assert (told_kinds, problems) == ({"Pod"}, [])
        (event,) = server.events()
        path = f"/apis/events.k8s.io/v1/namespaces/shop/events/{event['metadata']['name']}"
        client = Client(Endpoint(server.url))
        with pytest.raises(ConflictError):
            client.request("PATCH", path, {"metadata": {"resourceVersion": "0"}})
        version = event["metadata"]["resourceVersion"]
        assert client.request("PATCH", path, {"metadata": {"resourceVersion": version}})


def told_pod(server: DemoApiServer) -> tuple[set[str], list[str]]:
    poster = EventPoster(Endpoint(server.url), "node-1", nodes=1)
    poster.start()
    poster.post(EventDraft(ABOUT["pod"], "R", "A", "n", "Normal"))
    wait_until(lambda: len(server.events()) == 1)
    poster.stop(1.0)
    return {event["regarding"]["kind"] for event in server.events()}, list(
        poster.collect().problems
    )
