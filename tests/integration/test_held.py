"""A server that ends, a connection that is kept, a successor that takes it over."""

from __future__ import annotations

import os
import time

import pytest

from fusewatchd.demo.cluster.loopback import free_port
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.fuse.fd_keeper import Keeper
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.sources import ServerOptions
from tests.integration.test_dead_sources import KERNELS
from tests.integration.test_hung import (
    ABORT,
    DEADLINE,
    LONG_ENOUGH,
    connection_of,
    fuse_lines,
    verdicts,
    waiting,
)
from tests.lab import in_lab, pod_with_container

pytestmark = pytest.mark.kernel

EVERYTHING = {
    **ABORT,
    "look_seconds": "1",
    "held.grace_seconds": "60",
    "dead_sources.detach": "true",
    "dead_sources.grace_seconds": "0.3",
}


@KERNELS
@in_lab(timeout=110)
def test_a_connection_that_is_kept_for_a_successor_is_left_alone(
    node: DemoNode, is_old: bool
) -> None:
    socket = os.path.join(node.lab, "keeper")
    with Keeper(socket) as keeper:
        source = node.add_source("one", options=ServerOptions(keeper=socket))
        _, container = pod_with_container(node, source, "web")
        number, before = connection_of(source), fuse_lines()
        with DaemonProcess(node, settings=EVERYTHING, as_old_kernel=is_old) as daemon:
            daemon.wait_until_watching(2)
            time.sleep(1.5)  # the server is known by then
            for _ in range(2):
                source.kill()
                daemon.wait_for(lambda d: verdicts(d)["held"] == 2)
                time.sleep(LONG_ENOUGH)
                document = daemon.status()
                assert verdicts(document)["held"] == 2
                assert {b["refusal"] for b in document["binds"]} == {None}
                assert (document["incidents"], document["dead_sources"]) == ([], [])
                assert waiting(number) > 0
                source.start()
                daemon.wait_until_watching(2)
                assert container.read("/data/hello") == "one"
                assert fuse_lines() == before
                time.sleep(1.5)  # the successor is known by then
            log = daemon.log()
            assert "event=held" in log
            for word in ("event=abort", "event=server_gone", "event=replaced", "event=source_dead"):
                assert word not in log
            # Without its keeper it is a server like any other.
            keeper.kill()
            time.sleep(1.5)
            source.options = ServerOptions()
            source.kill()
            daemon.wait_for(lambda d: verdicts(d)["stale"] == 2)
            source.restart()
            container.wait_until_readable("/data/hello", DEADLINE)


@in_lab(timeout=90)
def test_what_nobody_takes_over_in_time_is_hung(node: DemoNode) -> None:
    socket = os.path.join(node.lab, "keeper")
    address = f"127.0.0.1:{free_port()}"
    settings = {**EVERYTHING, "held.grace_seconds": "2", "web.listen_address": address}
    with Keeper(socket):
        source = node.add_source("one", options=ServerOptions(keeper=socket))
        pod_with_container(node, source, "web")
        with DaemonProcess(node, settings=settings) as daemon:
            daemon.wait_until_watching(2)
            time.sleep(1.0)
            source.kill()
            daemon.wait_for(lambda d: verdicts(d)["held"] == 2)
            daemon.wait_for(lambda d: verdicts(d)["stale"] == 2)
            log = daemon.log()
            places = [
                log.index(f"event={word}") for word in ("held", "hung", "aborting", "aborted")
            ]
            assert places == sorted(places)


@in_lab(timeout=90)
def test_a_request_that_the_old_server_took_along_does_not_count(node: DemoNode) -> None:
    """The question that it had read is never answered; the next one is."""
    socket = os.path.join(node.lab, "keeper")
    with Keeper(socket):
        source = node.add_source("one", options=ServerOptions(keeper=socket))
        _, container = pod_with_container(node, source, "web")
        number = connection_of(source)
        with DaemonProcess(node, settings=EVERYTHING) as daemon:
            daemon.wait_until_watching(2)
            time.sleep(1.0)
            source.hold()
            end = time.monotonic() + DEADLINE
            while not waiting(number):
                assert time.monotonic() < end
                time.sleep(0.005)
            source.kill()
            daemon.wait_for(lambda d: verdicts(d)["held"] == 2)
            source.start()
            daemon.wait_until_watching(2)
            assert container.read("/data/hello") == "one"
            assert "event=abort" not in daemon.log()
