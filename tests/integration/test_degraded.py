"""What only makes the daemon notice sooner may be missing: it goes on, says so and tries again."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.timeouts import patient
from fusewatchd.linux.features import probe_features
from tests.features import Feature, needs
from tests.lab import in_lab, pod_with_container, run_fusewatchd
from tests.ownlimits import run_with_own_limits, set_limit

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(patient(150))]

DEADLINE = 20.0
UNLIMITED = 1000


def degraded(document: Any) -> dict[str, str]:
    return {one["what"]: one["why"] for one in document["degraded"]}


def recovers(node: DemoNode, daemon: DaemonProcess) -> None:
    """Crash a server under two pods, and one that comes later."""
    source = node.sources.get("one") or node.add_source("one")
    name = f"p{len(node.pods)}"
    _, container = pod_with_container(node, source, name)
    daemon.wait_until_watching(2 * len(node.pods), DEADLINE)
    source.kill()
    source.restart()
    container.wait_until_readable("/data/hello", DEADLINE)


def limited(limits: dict[str, int], what: str, names: str) -> None:
    """Start the daemon at a limit, crash a server, raise the limit, crash it once more."""

    def body(node: DemoNode) -> None:
        for limit in limits:
            set_limit(limit, limits[limit])
        with DaemonProcess(node, settings={"sockets": '[{glob: "/nowhere/*"}]'}) as daemon:
            recovers(node, daemon)
            document = daemon.wait_for(lambda d: what in degraded(d), DEADLINE)
            assert names in degraded(document)[what], document["degraded"]
            assert f"Without {what}: " in daemon.table()
            assert f"goes on without {what}" in daemon.log()
            said = run_fusewatchd("doctor", *daemon._sets).stdout
            assert f"without {what}" in said and names in said
            for limit in limits:
                set_limit(limit, UNLIMITED)
            if what == "fanotify":  # it takes rights that are given up at the start
                daemon.stop()
                daemon.start()
                assert what not in degraded(daemon.status())
                return
            daemon.wait_for(lambda d: what not in degraded(d), 2 * DEADLINE)
            assert f"has {what} again" in daemon.log()
            recovers(node, daemon)
            assert "Traceback" not in daemon.log()

    run_with_own_limits(body, timeout=120)


def test_no_inotify_instance() -> None:
    limited({"max_inotify_instances": 0}, "inotify", "fs.inotify.max_user_instances")


def test_no_inotify_instance_for_the_directories_of_sockets() -> None:
    limited({"max_inotify_instances": 1}, "socket_inotify", "user.max_inotify_instances")


def test_watches_used_up() -> None:
    limited({"max_inotify_watches": 3}, "inotify_watches", "fs.inotify.max_user_watches")


@needs(Feature.MOUNT_EVENTS)
@pytest.mark.parametrize(
    ("limit", "name"),
    [("max_fanotify_groups", "max_user_groups"), ("max_fanotify_marks", "max_user_marks")],
)
def test_no_fanotify(limit: str, name: str) -> None:
    limited({limit: 0}, "fanotify", f"fs.fanotify.{name}")


@pytest.mark.parametrize("starts_without", [True, False])
def test_no_mount_namespace(starts_without: bool) -> None:
    """Nothing can be replaced, not even in the host's own namespace; then everything is."""

    def body(node: DemoNode) -> None:
        source = node.add_source("one")
        _, container = pod_with_container(node, source, "app")
        daemon = DaemonProcess(node)
        if starts_without:
            set_limit("max_mnt_namespaces", 0)
        with daemon:
            daemon.wait_until_watching(2, DEADLINE)
            if not starts_without:
                recovers(node, daemon)
                set_limit("max_mnt_namespaces", 0)
            source.kill()
            source.restart()
            document = daemon.wait_for(is_told, DEADLINE)
            assert "used up: user.max_mnt_namespaces (0)" in degraded(document)["mount_namespace"]
            said = run_fusewatchd("doctor", *daemon._sets)
            assert "used up: user.max_mnt_namespaces (0)" in " ".join(said.stdout.split())
            assert said.returncode == 1
            said = run_fusewatchd("explain", binds_of(document)[0]["mount_point"], *daemon._sets)
            assert "user.max_mnt_namespaces" in said.stdout
            assert "changed by others" not in daemon.log()
            set_limit("max_mnt_namespaces", UNLIMITED)
            container.wait_until_readable("/data/hello", 2 * DEADLINE)
            daemon.wait_for(lambda d: not degraded(d), 2 * DEADLINE)
            daemon.wait_until_watching(2, DEADLINE)

    run_with_own_limits(body, timeout=120)


def binds_of(document: Any) -> list[Any]:
    return [bind for bind in document["binds"] if bind["kind"] == "publish"]


def is_told(document: Any) -> bool:
    last = binds_of(document)[0]["last_attempt"]
    return last is not None and last["reason"] == "namespace_limit"


@needs(Feature.MOUNT_SETATTR)
def test_what_is_found_out_without_a_mount_namespace_is_the_same() -> None:
    def body(_: DemoNode) -> None:
        whole = probe_features()
        set_limit("max_mnt_namespaces", 0)
        without = probe_features()
        assert "max_mnt_namespaces" in without.namespace_shortage
        assert not whole.namespace_shortage
        for name in ("open_tree", "mount_setattr", "beneath"):
            assert getattr(without, name) == getattr(whole, name), name

    run_with_own_limits(body, timeout=60)


@in_lab()
def test_a_socket_whose_mode_keeps_root_out(node: DemoNode) -> None:
    # Without a pod the kubelet is still looked for, with all rights.
    pod_with_container(node, node.add_source("one"), "app")
    path = f"{node.lab}/server.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        os.chmod(path, 0o600)
        os.chown(path, 1000, 1000)
        with DaemonProcess(node, settings={"sockets": f'[{{glob: "{path}"}}]'}) as daemon:
            document = daemon.wait_for(lambda d: "sockets" in degraded(d), DEADLINE)
            assert degraded(document)["sockets"] == f"Permission denied: {path}"
            os.chmod(path, 0o666)
            daemon.wait_for(lambda d: "sockets" not in degraded(d), 2 * DEADLINE)
            assert "has sockets again" in daemon.log()
