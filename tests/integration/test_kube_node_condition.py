"""The node condition as it arrives at an API server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fusewatchd.demo.cluster.apiserver import DemoApiServer
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.kube.clocks import Clocks
from fusewatchd.kube.endpoint import Endpoint
from fusewatchd.kube.node_condition_poster import (
    HEARTBEAT_SECONDS,
    REST_SECONDS,
    NodeConditionPoster,
)
from fusewatchd.report.events.node_condition import TYPE, WELL, NodeCondition
from tests.lab import in_lab, pod_with_container
from tests.waiting import wait_until

PATIENCE = 30.0
BAD = NodeCondition(True, "FuseMountsNotAnswering", "1 FUSE mount in 1 pod does not answer")


class Hands:
    """Clocks that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.clocks = Clocks(lambda: self.now, lambda: 1_700_000_000.0 + self.now, lambda: 0.0)

    def move(self, poster: NodeConditionPoster, seconds: float) -> None:
        self.now += seconds
        with poster._lock:
            poster._lock.notify()


@contextmanager
def posting(server: DemoApiServer, hands: Hands) -> Iterator[NodeConditionPoster]:
    poster = NodeConditionPoster(Endpoint(server.url), "node/1", hands.clocks)
    poster.start()
    try:
        yield poster
    finally:
        poster.stop()
        poster.wait(PATIENCE)


def test_told_kept_alive_changed_and_taken_away() -> None:
    hands = Hands()
    with DemoApiServer() as server:
        server.conditions = {"Ready": {"type": "Ready"}}
        with posting(server, hands) as poster:
            poster.tell(WELL)
            wait_until(lambda: poster._posted == WELL)
            first = server.conditions[TYPE]
            assert first == {
                "type": "FuseMountsUnavailable", "status": "False", "reason": "FuseMountsAvailable",
                "message": "all FUSE mounts of pods answer",
                "lastHeartbeatTime": "2023-11-14T22:30:00Z",
                "lastTransitionTime": "2023-11-14T22:30:00Z",
            }  # fmt: skip
            hands.move(poster, HEARTBEAT_SECONDS)
            wait_until(lambda: server.conditions[TYPE] != first)
            beat = server.conditions[TYPE]
            wait_until(lambda: poster._not_before > hands.now)
            assert beat["lastTransitionTime"] == first["lastTransitionTime"]
            poster.tell(BAD)
            hands.move(poster, REST_SECONDS)
            wait_until(lambda: server.conditions[TYPE]["status"] == "True")
            assert server.conditions[TYPE]["lastTransitionTime"] > beat["lastHeartbeatTime"]
        assert set(server.conditions) == {"Ready"}
        assert {path for _, path in server.requests} == {"/api/v1/nodes/node%2F1/status"}


def test_what_flaps_is_not_written_each_time() -> None:
    hands = Hands()
    with DemoApiServer() as server, posting(server, hands) as poster:
        poster.tell(WELL)
        wait_until(lambda: poster._posted == WELL)
        for _ in range(50):
            poster.tell(BAD)
            poster.tell(WELL)
        poster.tell(BAD)
        hands.move(poster, REST_SECONDS)
        wait_until(lambda: server.conditions[TYPE]["status"] == "True")
        assert len(server.requests) == 2


def test_a_missing_permission_is_named_and_tried_again_later() -> None:
    hands = Hands()
    with DemoApiServer() as server, posting(server, hands) as poster:
        server.forbidden = {"/api/v1/nodes/"}
        poster.tell(BAD)
        wait_until(lambda: poster.problem == "not allowed to patch nodes/status")
        assert len(server.requests) == 1
        server.forbidden = set()
        hands.move(poster, 2.0)
        wait_until(lambda: poster.problem == "")
        assert server.conditions[TYPE]["status"] == "True"


@pytest.mark.kernel
@pytest.mark.slow
@in_lab(timeout=120)
def test_an_outage_that_lasts_is_a_condition_of_the_node(node: DemoNode) -> None:
    source = node.add_source("one")
    pod_with_container(node, source, "web")
    with DemoApiServer() as server:
        settings = {"apiserver.url": server.url, "apiserver.node_condition": "true"}
        with DaemonProcess(node, settings=settings) as daemon:
            daemon.wait_until_watching(2)
            wait_until(
                lambda: server.conditions.get(TYPE, {}).get("status") == "False", seconds=PATIENCE
            )
            source.kill()
            wait_until(lambda: server.conditions[TYPE]["status"] == "True", seconds=PATIENCE)
            assert "2 FUSE mounts in 1 pod" in server.conditions[TYPE]["message"]
            source.restart()
            wait_until(lambda: server.conditions[TYPE]["status"] == "False", seconds=PATIENCE)
        assert server.conditions == {}
