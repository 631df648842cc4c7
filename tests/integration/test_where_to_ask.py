"""A connection is asked where a path leads to it, and nothing else is disturbed by that."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.container_spec import MountPropagation
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodMount, PodVolume, VolumeKind
from fusewatchd.demo.node.sources import ServerOptions, Source, detach_all
from fusewatchd.linux import syscalls
from tests.automounter import Automounter
from tests.lab import in_lab, pod_with_container, run_fusewatchd

pytestmark = pytest.mark.kernel

DEADLINE = 20.0


def verdicts(document: Any) -> set[str]:
    return {bind["verdict"] for bind in document["binds"]}


def connection(document: Any) -> Any:
    """Return the only one."""
    (only,) = document["connections"].values()
    return only


@contextmanager
def disk_at(path: str) -> Iterator[None]:
    syscalls.mount("disk", path, "tmpfs", 0, "mode=755")
    try:
        yield
    finally:
        detach_all(path)


@pytest.mark.parametrize("daemon_first", [True, False])
@in_lab(timeout=90)
def test_a_disk_mounted_over_the_parent_of_the_source(node: DemoNode, daemon_first: bool) -> None:
    source = node.add_source("one", path=f"{node.lab}/disk/volume/one")
    _, container = pod_with_container(node, source, "app")
    daemon = DaemonProcess(node)
    if daemon_first:
        daemon.start()
        daemon.wait_until_watching(2)
    with disk_at(f"{node.lab}/disk"):
        if not daemon_first:
            daemon.start()
        daemon.wait_until_watching(2)
        source.kill()
        daemon.wait_for(lambda d: verdicts(d) == {"stale"}, DEADLINE)
        if daemon_first:
            source.start()
            container.wait_until_readable("/data/hello", DEADLINE)
            daemon.wait_until_watching(2)
            source.kill()
    daemon.stop()


@in_lab(timeout=90)
def test_the_inner_server_was_first_and_the_outer_one_is_mounted_over_it(node: DemoNode) -> None:
    inner = node.add_source("inner", path=f"{node.lab}/volumes/outer/inner")
    _, container = pod_with_container(node, inner, "app")
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(2)
        outer = node.add_source("outer", path=f"{node.lab}/volumes/outer", files={"inner/x": "x"})
        daemon.wait_until_watching(2)
        inner.kill()
        daemon.wait_for(lambda d: verdicts(d) == {"stale"}, DEADLINE)
        inner.start()
        container.wait_until_readable("/data/hello", DEADLINE)
        assert container.read("/data/hello") == "inner"
        detach_all(inner.path)
        outer.close()


@contextmanager
def nested(node: DemoNode) -> Iterator[tuple[Source, Source, Container]]:
    """An inner source at a directory of an outer one, of which no pod has anything."""
    never_cached = ServerOptions(attr_timeout=0.0)
    outer = node.add_source("outer", files={"inner/x": "x"}, options=never_cached)
    inner = node.add_source("inner", path=f"{outer.path}/inner")
    _, container = pod_with_container(node, inner, "app")
    try:
        yield outer, inner, container
    finally:
        detach_all(outer.path)


@pytest.mark.parametrize("how", ["dead", "hung"])
@in_lab(timeout=90)
def test_an_outer_server_says_nothing_of_the_inner_one(node: DemoNode, how: str) -> None:
    settings = {"probe.interval_seconds": "0.2", "probe.deadline_seconds": "0.5"}
    with (
        nested(node) as (outer, inner, container),
        DaemonProcess(node, settings=settings) as daemon,
    ):
        daemon.wait_until_watching(2)
        outer.kill() if how == "dead" else outer.pause()
        for _ in range(20):  # ten times its turn
            time.sleep(0.1)
            assert verdicts(daemon.status()) == {"healthy"}
        assert container.read("/data/hello") == "inner"
        inner.kill()
        daemon.wait_for(lambda d: verdicts(d) == {"stale"}, DEADLINE)
        outer.resume() if how == "hung" else None


@in_lab(timeout=90)
def test_a_look_beside_an_outer_one_that_is_dead(node: DemoNode) -> None:
    """``check`` asks everything once, and says what the daemon says."""
    with nested(node) as (outer, inner, _), DaemonProcess(node) as daemon:
        daemon.wait_until_watching(2)
        outer.kill()
        inner.kill()
        daemon.wait_for(lambda d: verdicts(d) == {"stale"}, DEADLINE)
        words = [w for k, v in daemon.values.items() for w in ("--set", f"{k}={v}")]
        done = run_fusewatchd("check", "--json", *words)
        assert done.returncode == 1, done.stdout + done.stderr


@in_lab(timeout=90)
def test_where_no_path_leads_nothing_is_called_healthy(node: DemoNode) -> None:
    """All that shows it on the host lies below a new disk, and its server ends."""
    source = node.add_source("one", path=f"{node.lab}/disk/one")
    node.add_pod("app", [PodVolume("v", source)])
    settings = {"probe.interval_seconds": "0.2"}
    with DaemonProcess(node, settings=settings) as daemon:
        daemon.wait_until_watching(1)
        with disk_at(f"{node.lab}/disk"), disk_at(node.pods_directory):
            document = daemon.wait_for(lambda d: verdicts(d) == {"unknown"}, DEADLINE)
            assert "no path leads to it" in document["binds"][0]["evidence"]
            source.kill()
            time.sleep(1.0)
            document = daemon.status()
            assert verdicts(document) == {"unknown"}
            said = run_fusewatchd("explain", document["binds"][0]["mount_point"], *daemon._sets)
            assert "no path leads to it" in said.stdout and said.returncode == 2
        daemon.wait_for(lambda d: verdicts(d) == {"stale"}, DEADLINE)


# -------------------------------------------------------------------------- automounts


@contextmanager
def automounts(node: DemoNode, timeout: int) -> Iterator[Automounter]:
    """``repo`` is mounted by whoever walks there."""
    os.makedirs(f"{node.lab}/content")
    with open(f"{node.lab}/content/hello", "w") as file:
        file.write("repo")
    directory = f"{node.lab}/cvmfs"
    words = [sys.executable, "-m", "fusewatchd.demo.fuse.server", "--mount", f"{directory}/repo"]
    automounter = Automounter(
        directory, {"repo": [*words, "--backing", f"{node.lab}/content"]}, timeout
    )
    try:
        yield automounter
    finally:
        automounter.close()


@in_lab(timeout=120)
def test_an_automount_that_no_pod_has_expires(node: DemoNode) -> None:
    settings = {"probe.interval_seconds": "0.5"}
    with automounts(node, 3) as automounter, DaemonProcess(node, settings=settings):
        assert Path(automounter.directory, "repo/hello").read_text() == "repo"
        assert automounter.wait_for("expired repo", 15.0)
        assert automounter.events() == ["started", "mounted repo", "expired repo"]


@in_lab(timeout=120)
def test_an_automount_in_a_container_expires_and_its_death_is_seen(node: DemoNode) -> None:
    with automounts(node, 3) as automounter:
        shared(automounter.directory)
        volume = PodVolume("v", kind=VolumeKind.HOST_PATH, host_path=automounter.directory)
        mount = PodMount("v", "/cvmfs", propagation=MountPropagation.HOST_TO_CONTAINER)
        container = node.start_container(node.add_pod("app", [volume], [mount]))
        with DaemonProcess(node, settings={"probe.interval_seconds": "0.5"}):
            assert container.read("/cvmfs/repo/hello") == "repo"
            assert automounter.wait_for("expired repo", 15.0)
            assert automounter.events().count("mounted repo") == 1


def shared(path: str) -> None:
    syscalls.mount(None, path, None, syscalls.MS_SHARED)


@in_lab(timeout=120)
def test_a_bind_of_an_automount_is_asked_in_turn_and_lets_it_expire(node: DemoNode) -> None:
    """The bind keeps the server; the place from which it came goes all the same."""
    with automounts(node, 3) as automounter:
        source = Source("repo", f"{automounter.directory}/repo", "", ServerOptions())
        settings = {"probe.interval_seconds": "0.5"}
        with DaemonProcess(node, settings=settings) as daemon:
            os.stat(f"{source.path}/hello")
            _, container = pod_with_container(node, source, "app")
            daemon.wait_until_watching(2)
            assert automounter.wait_for("expired repo", 15.0)
            assert container.read("/data/hello") == "repo"
            os.kill(connection(daemon.status())["servers"][0]["pid"], signal.SIGKILL)
            daemon.wait_for(lambda d: verdicts(d) == {"stale"}, DEADLINE)
            assert automounter.events().count("mounted repo") == 1
