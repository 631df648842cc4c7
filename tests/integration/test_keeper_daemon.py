"""The daemon with a keeper, on real mounts: processes in pods see a pause, and the host as before."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.container_spec import Access, MountPropagation
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodMount, PodVolume
from fusewatchd.demo.node.sources import Source
from fusewatchd.keeper.client import Client
from fusewatchd.keeper.protocol import Stop, socket_path
from tests.features import Feature, needs
from tests.holding import Caller, calling, limited, path_errors
from tests.integration.test_hung import connection_of, fuse_lines
from tests.keeping import KeeperProcess
from tests.lab import in_lab, pod_with_container
from tests.waiting import wait_until

pytestmark = [pytest.mark.kernel, needs(Feature.BENEATH, Feature.FUSE_FDINFO)]

OUTAGE = 0.5
LIMIT = 60.0
AT_ONCE = 1.0
HOLD = {"keeper.hold.drivers": '["*"]', "look_seconds": "1", "log.level": "debug"}


@contextmanager
def holding(node: DemoNode, **settings: str) -> Iterator[tuple[DaemonProcess, KeeperProcess]]:
    """Run a keeper and a daemon; every connection is aborted in the end."""
    with (
        limited(LIMIT),
        KeeperProcess(node.lab) as keeper,
        DaemonProcess(node, settings={**HOLD, **settings}) as daemon,
    ):
        try:
            yield daemon, keeper
        finally:
            print(daemon.log())


def held(document: Any) -> list[Any]:
    """Return what the status says is held."""
    return document["keeper"]["held"]  # type: ignore[no-any-return]


def wait_until_held(daemon: DaemonProcess, count: int) -> None:
    daemon.wait_for(lambda d: sum(not one["server_gone"] for one in held(d)) == count)


def pods(node: DemoNode, source: Source, *names: str) -> dict[str, Container]:
    return {name: pod_with_container(node, source, name)[1] for name in names}


def is_settled(document: Any) -> bool:
    """True when nothing waits, and nothing is left of an outage."""
    keeper = document["keeper"]
    return (
        not document["incidents"]
        and keeper["stand_ins"] == 0
        and all(not one["server_gone"] for one in keeper["held"])
    )


def crash_with_kill(source: Source) -> None:
    source.kill()
    time.sleep(OUTAGE)
    source.restart()


def crash_with_terminate(source: Source) -> None:
    source.server.terminate()
    source.server.exit_status()
    time.sleep(OUTAGE)
    source.restart()


@pytest.mark.parametrize("crash", [crash_with_kill, crash_with_terminate])
@in_lab(timeout=110)
def test_callers_in_containers_see_a_pause_and_no_error(
    node: DemoNode, crash: Callable[[Source], None]
) -> None:
    source = node.add_source("one")
    containers = pods(node, source, "web", "shop")
    before = len(fuse_lines())
    with holding(node) as (daemon, _):
        daemon.wait_until_watching(4)
        wait_until_held(daemon, 1)
        for _ in range(3):
            with calling(containers, "/data") as callers:
                time.sleep(0.2)
                crash(source)
                daemon.wait_until_watching(4)
                daemon.wait_for(is_settled)
                time.sleep(0.2)
                seen = [caller.end() for caller in callers]
            assert path_errors(seen) == {}
            assert all(OUTAGE / 2 < one.longest < OUTAGE + 5 for one in seen), seen
            assert len(fuse_lines()) == before
            wait_until_held(daemon, 1)
        ended = daemon.status()["keeper"]["ended"]
        # Released: a look at the processes may have missed its server for a moment, and found it again.
        assert {one["end"] for one in ended} <= {"replaced", "gone", "released"}
        assert sum(one["sent_on"] for one in ended) > 0


@in_lab(timeout=60)
def test_without_a_keeper_they_see_many_errors(node: DemoNode) -> None:
    source = node.add_source("one")
    containers = pods(node, source, "web", "shop")
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(4)
        with calling(containers, "/data") as callers:
            time.sleep(0.2)
            crash_with_kill(source)
            daemon.wait_until_watching(4)
            seen = [caller.end() for caller in callers]
    assert sum(path_errors(seen).values()) > 50


@in_lab(timeout=90)
def test_the_host_is_answered_at_once(node: DemoNode) -> None:
    source = node.add_source("one")
    containers = pods(node, source, "web")
    with holding(node) as (daemon, _):
        daemon.wait_until_watching(2)
        wait_until_held(daemon, 1)
        (bind,) = [p for p in _mount_points() if "/pods/" in p]
        with calling(containers, "/data") as callers:
            source.kill()
            daemon.wait_for(lambda d: d["keeper"]["stand_ins"] == 2)
            for path in (source.path, bind):
                assert _errno_of(lambda path=path: os.stat(path)) == errno.ENOTCONN
                assert _errno_of(lambda path=path: os.listdir(path)) == errno.ENOTCONN
                assert _run("mountpoint", "-q", path) != 0
                assert _run("mkdir", "-p", path) != 0
                assert _run("ls", "-l", os.path.dirname(path)) in (0, 1)
            assert _run("findmnt", source.path) == 0
            assert _run("umount", source.path) == 0
            assert source.path not in _mount_points()
            time.sleep(OUTAGE)
            source.start()
            daemon.wait_until_watching(2)
            daemon.wait_for(is_settled)
            seen = [caller.end() for caller in callers]
        assert path_errors(seen) == {}


def _mount_points() -> list[str]:
    return [line.split()[4] for line in fuse_lines()]


def _errno_of(call: Callable[[], object]) -> int:
    began = time.monotonic()
    try:
        call()
    except OSError as exc:
        return exc.errno or 0
    finally:
        assert time.monotonic() - began < AT_ONCE
    return 0


def _run(*words: str) -> int:
    return subprocess.run(words, capture_output=True, timeout=5 * AT_ONCE).returncode


@pytest.mark.parametrize("moment", ["before", "in the outage", "while it is replaced"])
@in_lab(timeout=110)
def test_a_daemon_that_is_killed_finishes_after_its_restart(node: DemoNode, moment: str) -> None:
    source = node.add_source("one")
    containers = pods(node, source, "web", "shop")
    before = len(fuse_lines())
    with holding(node, **{"keeper.hold.grace_seconds": "30"}) as (daemon, _):
        daemon.wait_until_watching(4)
        wait_until_held(daemon, 1)
        with calling(containers, "/data") as callers:
            time.sleep(0.1)
            if moment == "before":
                daemon.kill()
                source.kill()
                daemon.start()
            elif moment == "in the outage":
                source.kill()
                daemon.wait_for(lambda d: d["keeper"]["stand_ins"] == 3)
                daemon.kill()
                daemon.start()
            else:
                source.kill()
                daemon.wait_for(lambda d: d["keeper"]["stand_ins"] == 3)
                source.restart()
                daemon.kill()
                daemon.start()
            time.sleep(OUTAGE)
            if moment != "while it is replaced":
                source.restart()
            daemon.wait_until_watching(4)
            daemon.wait_for(is_settled)
            time.sleep(0.2)
            seen = [caller.end() for caller in callers]
        assert path_errors(seen) == {}
        assert len(fuse_lines()) == before


@in_lab(timeout=90)
def test_after_the_grace_all_is_as_without_a_keeper(node: DemoNode) -> None:
    source = node.add_source("one")
    containers = pods(node, source, "web")
    before = len(fuse_lines())
    with holding(node, **{"keeper.hold.grace_seconds": "1"}) as (daemon, _):
        daemon.wait_until_watching(2)
        wait_until_held(daemon, 1)
        caller = Caller(containers["web"], "/data")
        source.kill()
        daemon.wait_for(lambda d: not held(d))
        time.sleep(0.3)
        seen = caller.end()
        assert seen.longest < 3.0
        assert seen.errors.get("stat ENOTCONN", 0) > 0
        (ended,) = daemon.status()["keeper"]["ended"]
        assert ended["end"] == "grace"
        source.restart()
        daemon.wait_until_watching(2)
        containers["web"].wait_until_readable("/data/hello", 5)
        assert len(fuse_lines()) == before
        # The next crash is as good as the first.
        wait_until_held(daemon, 1)


@in_lab(timeout=60)
def test_what_another_process_holds_is_left_alone(node: DemoNode) -> None:
    source = node.add_source("one")
    pods(node, source, "web")
    from tests.keeping import clone_of_server

    clone = clone_of_server(source.server.pid)
    try:
        with holding(node) as (daemon, keeper):
            daemon.wait_until_watching(2)
            document = daemon.wait_for(lambda d: bool(d["keeper"]["not_held"]))
            (one,) = document["keeper"]["not_held"]
            assert one["reason"] == "other_holder" and one["device"].endswith(
                f":{connection_of(source)}"
            )
            assert not keeper.listed().connections
    finally:
        os.close(clone)


@in_lab(timeout=110)
def test_every_kind_of_mount_in_a_container(node: DemoNode) -> None:
    source = node.add_source("one", files={"hello": "one", "sub/hello": "one"})
    kinds = {
        "none": PodMount("v", "/data"),
        "h2c": PodMount("v", "/data", propagation=MountPropagation.HOST_TO_CONTAINER),
        "bidi": PodMount("v", "/data", propagation=MountPropagation.BIDIRECTIONAL),
        "ro": PodMount("v", "/data", access=Access.READ_ONLY),
        "sub": PodMount("v", "/data", sub_path="sub"),
    }
    containers = {}
    for name, mount in kinds.items():
        pod = node.add_pod(name, [PodVolume("v", source)], [mount])
        containers[name] = node.start_container(pod)
    before = len(fuse_lines())
    with holding(node) as (daemon, _):
        daemon.wait_until_watching(2 * len(kinds))
        wait_until_held(daemon, 1)
        tables = {name: _shape(container) for name, container in containers.items()}
        for _ in range(2):
            with calling(containers, "/data", each=1) as callers:
                time.sleep(0.1)
                crash_with_kill(source)
                daemon.wait_until_watching(2 * len(kinds))
                daemon.wait_for(is_settled)
                time.sleep(0.2)
                seen = [caller.end() for caller in callers]
            errors = path_errors(seen)
            errors = {what: n for what, n in errors.items() if "ENOENT" not in what}
            assert errors == {}
            assert len(fuse_lines()) == before
            assert {name: _shape(c) for name, c in containers.items()} == tables
            wait_until_held(daemon, 1)


def _shape(container: Container) -> list[tuple[str, bool, bool]]:
    """Return options and kind of propagation of the FUSE mounts in a container."""
    lines = [line for line in container.mountinfo().splitlines() if " - fuse" in line]
    # A peer of the bind on the host has its master, if that receives from the source.
    kinds = [("shared:" in line, "shared:" in line or "master:" in line) for line in lines]
    return [(line.split()[5], *kind) for line, kind in zip(lines, kinds, strict=True)]


@in_lab(timeout=110)
def test_a_pod_that_comes_in_the_outage_is_repaired_with_the_rest(node: DemoNode) -> None:
    source = node.add_source("one")
    containers = pods(node, source, "web")
    with holding(node, **{"keeper.hold.grace_seconds": "30"}) as (daemon, _):
        daemon.wait_until_watching(2)
        wait_until_held(daemon, 1)
        with calling(containers, "/data") as callers:
            source.kill()
            daemon.wait_for(lambda d: d["keeper"]["stand_ins"] == 2)
            late = node.add_pod("late", [PodVolume("v", source)], [PodMount("v", "/data")])
            daemon.wait_for(lambda d: d["keeper"]["stand_ins"] == 3)
            with pytest.raises(OSError) as raised:
                node.start_container(late)
            assert raised.value.errno == errno.ENOTCONN
            source.restart()
            daemon.wait_until_watching(3)
            daemon.wait_for(is_settled)
            assert node.start_container(late).read("/data/hello") == "one"
            time.sleep(0.1)
            seen = [caller.end() for caller in callers]
        assert path_errors(seen) == {}


@in_lab(timeout=110)
def test_a_second_crash_in_the_wait(node: DemoNode) -> None:
    source = node.add_source("one")
    containers = pods(node, source, "web", "shop")
    before = len(fuse_lines())
    with holding(node, **{"keeper.hold.grace_seconds": "30"}) as (daemon, _):
        daemon.wait_until_watching(4)
        wait_until_held(daemon, 1)
        with calling(containers, "/data") as callers:
            for _ in range(3):
                source.kill()
                time.sleep(0.2)
                source.restart()
                # As soon as the next one is held, though callers may still wait for it.
                wait_until_held(daemon, 1)
            daemon.wait_until_watching(4)
            daemon.wait_for(is_settled)
            time.sleep(0.2)
            seen = [caller.end() for caller in callers]
        assert path_errors(seen) == {}
        assert len(fuse_lines()) == before


@in_lab(timeout=110)
def test_a_keeper_that_is_killed_in_the_outage_goes_on(node: DemoNode) -> None:
    source = node.add_source("one")
    containers = pods(node, source, "web", "shop")
    before = len(fuse_lines())
    with holding(node, **{"keeper.hold.grace_seconds": "30"}) as (daemon, keeper):
        daemon.wait_until_watching(4)
        wait_until_held(daemon, 1)
        with calling(containers, "/data") as callers:
            source.kill()
            daemon.wait_for(lambda d: d["keeper"]["stand_ins"] == 3)
            keeper.kill()
            time.sleep(OUTAGE)
            source.restart()
            daemon.wait_until_watching(4)
            daemon.wait_for(is_settled)
            time.sleep(0.2)
            seen = [caller.end() for caller in callers]
        assert path_errors(seen) == {}
        assert len(fuse_lines()) == before
        wait_until_held(daemon, 1)


@in_lab(timeout=60)
def test_a_daemon_that_no_service_manager_started_has_a_keeper_of_its_own(node: DemoNode) -> None:
    source = node.add_source("one")
    containers = pods(node, source, "web")
    with limited(LIMIT), DaemonProcess(node, settings=HOLD) as daemon:
        daemon.wait_until_watching(2)
        wait_until_held(daemon, 1)
        daemon.kill()
        daemon.start()
        wait_until_held(daemon, 1)
        with calling(containers, "/data") as callers:
            crash_with_kill(source)
            daemon.wait_until_watching(2)
            daemon.wait_for(is_settled)
            seen = [caller.end() for caller in callers]
        assert path_errors(seen) == {}
        # It ends only with a daemon that started it: the test ends it for the one that was killed.
        assert not daemon.status()["keeper"]["outlives_its_process"]
    with suppress(OSError), Client(socket_path(daemon.runtime_dir), 5.0) as client:
        client.ask(Stop())


@in_lab(timeout=90)
def test_a_daemon_that_is_to_hold_nothing_lets_go_of_what_another_one_held(
    node: DemoNode,
) -> None:
    source = node.add_source("one")
    pods(node, source, "web")
    with holding(node) as (daemon, keeper):
        daemon.wait_until_watching(2)
        wait_until_held(daemon, 1)
        marker = os.path.join(node.lab, "state", "keeper-in-use")
        wait_until(lambda: os.path.exists(marker))
        daemon.stop()
        assert len(keeper.listed().connections) == 1
        daemon.values["keeper.hold.drivers"] = "[]"
        daemon.start()
        wait_until(lambda: not keeper.listed().connections)
        wait_until(lambda: not os.path.exists(marker))
        daemon.wait_for(lambda d: "keeper" not in d)
        assert source.server.is_running


@in_lab(timeout=90)
def test_a_pod_that_is_deleted_in_the_outage_waits_no_longer_and_others_do(node: DemoNode) -> None:
    source = node.add_source("one")
    pod, leaving = pod_with_container(node, source, "leaving")
    _, staying = pod_with_container(node, source, "staying")
    with DemoKubelet(node.pod_list) as kubelet:
        settings = {
            "kubelet.url": kubelet.url,
            "kubelet.refresh_seconds": "0.5",
            "keeper.hold.grace_seconds": "20",
        }
        with holding(node, **settings) as (daemon, _):
            daemon.wait_until_watching(4)
            wait_until_held(daemon, 1)
            first, second = Caller(leaving, "/data"), Caller(staying, "/data")
            source.kill()
            daemon.wait_for(lambda d: sum(one["waiting_calls"] for one in held(d)) == 2)
            pod.is_deleting = True
            daemon.wait_for(lambda d: sum(one["waiting_calls"] for one in held(d)) == 1)
            seen = first.end()
            assert seen.longest < 10.0
            assert any(what.endswith("ENOTCONN") for what in seen.errors)
            source.restart()
            daemon.wait_until_watching(1)
            time.sleep(1.0)
            assert path_errors([second.end()]) == {}
