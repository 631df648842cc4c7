"""Containers of every sort, each repaired in its own mount namespace."""

from __future__ import annotations

import errno
import os
import time

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.container_spec import Access, MountPropagation, UserNamespace
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume
from fusewatchd.demo.node.sources import ServerOptions, Source
from fusewatchd.demo.node.unmounting import mount_points_below
from fusewatchd.linux import syscalls
from tests.features import Feature, needs
from tests.intruder import intruder
from tests.lab import WAYS, in_lab

pytestmark = pytest.mark.kernel

DEADLINE = 10.0
NOBODY = 65534
"""Who an owner without a name in a user namespace is, user_namespaces(7)."""


def add_pod(node: DemoNode, source: Source, name: str, *mounts: PodMount) -> DemoPod:
    return node.add_pod(name, [PodVolume("v", source)], mounts or [PodMount("v", "/data")])


def crash(source: Source) -> None:
    source.kill()
    source.restart()


def is_unwritable(container: Container) -> bool:
    try:
        container.write("/data/new", "x")
    except OSError as exc:
        assert exc.errno == errno.EROFS
        return True
    return False


def stack_writable_layer(source: Source, pod: DemoPod) -> None:
    """Do what ``mount --bind`` of another recoverer does."""
    syscalls.mount(source.path, pod.volume_path("v"), None, syscalls.MS_BIND)


@WAYS
@in_lab(timeout=90)
def test_bidirectional_mounts_still_reach_the_host(node: DemoNode, way: str) -> None:
    source = node.add_source("one", files={"hello": "one", "inside/.keep": ""})
    mount = PodMount("v", "/data", propagation=MountPropagation.BIDIRECTIONAL)
    pod = add_pod(node, source, "p", mount)
    container = node.start_container(pod)
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(2)
        crash(source)
        container.wait_until_readable("/data/hello", DEADLINE)
        daemon.wait_until_watching(2)
        container.call("mount_tmpfs", path="/data/inside")
        assert f"{pod.volume_path('v')}/inside" in mount_points_below(pod.directory)
        container.call("umount", path="/data/inside")
        assert f"{pod.volume_path('v')}/inside" not in mount_points_below(pod.directory)


@needs(Feature.FUSE_IDMAP)
@in_lab(timeout=60)
def test_idmapped_container_recovers(node: DemoNode) -> None:
    source = node.add_source("one", options=ServerOptions(allows_idmap=True))
    pod = add_pod(node, source, "p")
    container = node.start_container(pod, user_namespace=UserNamespace())
    owner = container.call("stat", path="/data/hello")
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(2)
        crash(source)
        container.wait_until_readable("/data/hello", DEADLINE)
        assert container.call("stat", path="/data/hello")["st_uid"] == owner["st_uid"] == 0
        daemon.wait_until_watching(2)


@needs(Feature.FUSE_IDMAP)
@in_lab(timeout=60)
def test_an_id_mapping_is_always_that_of_the_container(node: DemoNode) -> None:
    """Also in a namespace that a process of the container made, with another mapping."""
    source = node.add_source("one", options=ServerOptions(allows_idmap=True))
    pod = add_pod(node, source, "p")
    container = node.start_container(pod, user_namespace=UserNamespace(300_000))
    directory = container._cgroup_directory or pytest.skip("no cgroups here")
    orders = {"owner": lambda: str(os.stat("/data/hello").st_uid)}
    with (
        intruder(directory, orders, mount_namespace=container.pid) as process,
        DaemonProcess(node) as daemon,
    ):
        daemon.wait_until_watching(3)
        assert process.order("owner") == str(NOBODY)
        before = process.device("/data")
        crash(source)
        container.wait_until_readable("/data/hello", DEADLINE)
        daemon.wait_until_watching(3)
        assert process.device("/data") != before, daemon.log()
        assert process.order("owner") == str(NOBODY)
        assert container.call("stat", path="/data/hello")["st_uid"] == 0


@needs(Feature.FUSE_IDMAP)
@WAYS
@in_lab(timeout=60)
def test_idmapped_container_is_refused_where_the_new_server_has_no_idmap(
    node: DemoNode, way: str
) -> None:
    source = node.add_source("one", options=ServerOptions(allows_idmap=True))
    pod = add_pod(node, source, "p")
    container = node.start_container(pod, user_namespace=UserNamespace())
    before = container.mountinfo()
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(2)
        source.options = ServerOptions(allows_idmap=False)
        crash(source)
        document = daemon.wait_for(
            lambda d: any(b.get("refusal") == "idmap" for b in d["binds"]), DEADLINE
        )
        refused = [b for b in document["binds"] if b.get("refusal") == "idmap"]
        assert [b["kind"] for b in refused] == ["container"]
        assert container.mountinfo() == before


@in_lab(timeout=60)
def test_init_container_recovers(node: DemoNode) -> None:
    source = node.add_source("one")
    mounts = [PodMount("v", "/data", container="init"), PodMount("v", "/data", container="app")]
    pod = add_pod(node, source, "p", *mounts)
    init = node.start_container(pod, "init")
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(2)
        crash(source)
        init.wait_until_readable("/data/hello", DEADLINE)
        init.stop()
        app = node.start_container(pod, "app")
        assert app.read("/data/hello") == "one"
        daemon.wait_until_watching(2)


@WAYS
@in_lab(timeout=110)
def test_containers_born_from_the_stale_bind_recover(node: DemoNode, way: str) -> None:
    # As long as its attributes are cached a dead root can be looked at, and mounted.
    source = node.add_source("one", options=ServerOptions(attr_timeout=60.0))
    pod = add_pod(node, source, "p")
    node.start_container(pod)
    born_stale = 0
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(2)
        for number in range(6):
            source.kill()
            container = node.launch_container(pod, f"late{number}", mounts=[PodMount("v", "/data")])
            time.sleep(0.04 * number)
            source.restart()
            try:
                container.wait_ready()
            except OSError as exc:
                assert exc.errno == errno.ENOTCONN
                continue
            born_stale += 1
            container.wait_until_readable("/data/hello", DEADLINE)
            assert container.read("/data/hello") == "one"
    assert born_stale


@WAYS
@in_lab(timeout=90)
def test_private_read_only_container_stays_unwritable_under_a_foreign_stack(
    node: DemoNode, way: str
) -> None:
    source = node.add_source("one")
    pod = add_pod(node, source, "p", PodMount("v", "/data", access=Access.READ_ONLY))
    container = node.start_container(pod)
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(2)
        crash(source)
        container.wait_until_readable("/data/hello", DEADLINE)
        stack_writable_layer(source, pod)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            assert is_unwritable(container)
            time.sleep(0.02)
        assert container.read("/data/hello") == "one"


@WAYS
@in_lab(timeout=90)
def test_a_writable_layer_that_propagated_over_a_read_only_mount_is_taken_away(
    node: DemoNode, way: str
) -> None:
    source = node.add_source("one")
    mount = PodMount(
        "v", "/data", access=Access.READ_ONLY, propagation=MountPropagation.HOST_TO_CONTAINER
    )
    pod = add_pod(node, source, "p", mount)
    container = node.start_container(pod)
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(2)
        stack_writable_layer(source, pod)
        assert not is_unwritable(container), "the layer did not get there: nothing is tested"
        end = time.monotonic() + DEADLINE
        while not is_unwritable(container):
            assert time.monotonic() < end, container.mountinfo()
            time.sleep(0.05)
        assert container.read("/data/hello") == "one"


@WAYS
@in_lab(timeout=90)
def test_a_running_process_succeeds_with_its_next_open(node: DemoNode, way: str) -> None:
    source = node.add_source("one")
    containers = []
    for propagation in MountPropagation:
        pod = add_pod(
            node, source, propagation.name.lower(), PodMount("v", "/data", propagation=propagation)
        )
        containers.append(node.start_container(pod))
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(6)
        for container in containers:
            container.call("chdir", path="/data")
            container.start_open_loop("/data/hello", 0.002)
        source.kill()
        time.sleep(0.1)
        up = source.restart()
        daemon.wait_until_watching(6)
        time.sleep(0.1)
        for container in containers:
            report = container.stop_open_loop("/data/hello")
            assert report.first_success_after(up) is not None
            assert report.transitions[-1].content == "one"
            errors = [t.errno for t in report.transitions]
            assert errors[0] == errors[-1] == 0
            # What was under way when the server died is aborted, what comes then has no server.
            assert set(errors[1:-1]) <= {errno.ECONNABORTED, errno.ENOTCONN}
            assert errno.ENOTCONN in errors
