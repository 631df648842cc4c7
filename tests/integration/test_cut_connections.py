"""A connection that is cut while its server lives: named as such, with who lingers."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.sources import ServerOptions, Source
from fusewatchd.linux import syscalls
from tests.lab import in_lab, pod_with_container, run_fusewatchd

pytestmark = pytest.mark.kernel

DEADLINE = 20.0
_MNT_FORCE = 1  # umount2(2)
LINGERS = ServerOptions(lingers=True)
QUICK = {"dead_sources.grace_seconds": "1", "look_seconds": "1", "probe.interval_seconds": "0.5"}


def host_bind(document: Any) -> Any:
    (bind,) = [bind for bind in document["binds"] if bind["kind"] == "publish"]
    return bind


def cut_by_umount(source: Source) -> None:
    """As somebody does who wants to get rid of a mount that is in use."""
    other = f"{os.path.dirname(source.path)}/copy"
    os.mkdir(other)
    syscalls.mount(source.path, other, None, syscalls.MS_BIND)
    syscalls.umount2(other, _MNT_FORCE)


def cut_by_fusectl(source: Source) -> None:
    minor = os.minor(os.stat(source.path).st_dev)
    with open(f"/sys/fs/fuse/connections/{minor}/abort", "w") as file:
        file.write("1")


@pytest.mark.parametrize("detach", ["true", "false"])
@pytest.mark.parametrize("cut", [cut_by_umount, cut_by_fusectl])
@in_lab(timeout=90)
def test_it_is_cut_and_its_server_lives_on(
    node: DemoNode, cut: Callable[[Source], None], detach: str
) -> None:
    source = node.add_source("one", options=LINGERS)
    _, container = pod_with_container(node, source, "app")
    settings = {**QUICK, "dead_sources.detach": detach}
    with DaemonProcess(node, settings=settings) as daemon:
        daemon.wait_until_watching(2)
        cut(source)
        document = daemon.wait_for(
            lambda d: host_bind(d)["refusal"] == "server_alive" and d["servers"][0]["processes"],
            DEADLINE,
        )
        pid = source.server.pid
        assert document["servers"][0]["processes"][0]["pid"] == pid
        assert document["dead_sources"]
        log = daemon.log()
        assert (
            f"FUSE connection is cut, and no end was seen of its server python (pid {pid})" in log
        )
        assert "by 'umount -f' of a bind, or by an abort" in log and "server is gone" not in log
        mount_point = host_bind(document)["mount_point"]
        said = run_fusewatchd("explain", mount_point, *daemon._sets).stdout
        assert f"no end was seen of its server python (pid {pid})" in said
        assert "server gone" not in said and "detach: true" not in said
        assert "reason      server_alive" in said
        source.server.kill()
        source.unmount()
        source.start()
        container.wait_until_readable("/data/hello", DEADLINE)


@in_lab(timeout=90)
def test_advice_that_is_followed_already_is_not_given(node: DemoNode) -> None:
    """Its server is gone, and something that is mounted inside holds the detach back."""
    source = node.add_source("one", files={"in/x": "x"})
    pod_with_container(node, source, "app")
    settings = {**QUICK, "dead_sources.detach": "true"}
    with DaemonProcess(node, settings=settings) as daemon:
        daemon.wait_until_watching(2)
        syscalls.mount("inside", f"{source.path}/in", "tmpfs", 0, "size=64k")
        source.kill()
        document = daemon.wait_for(lambda d: d["dead_sources"], DEADLINE)
        said = run_fusewatchd("explain", host_bind(document)["mount_point"], *daemon._sets).stdout
        assert "detach: true" not in said and "fusewatchd detaches it (dead_sources.detach)" in said
        source.unmount()


@pytest.mark.slow
@in_lab(timeout=150)
def test_the_kernel_aborts_it_after_a_timeout(node: DemoNode) -> None:
    """Every 15 seconds it looks for requests that have waited for too long."""
    if not os.path.exists("/proc/sys/fs/fuse/default_request_timeout"):
        pytest.skip("no request timeouts, which Linux has since 6.15")
    options = ServerOptions(lingers=True, request_timeout=16)
    source = node.add_source("one", options=options)
    pod_with_container(node, source, "app")
    with DaemonProcess(node, settings=QUICK) as daemon:
        daemon.wait_until_watching(2)
        source.hold()
        daemon.wait_for(lambda d: host_bind(d)["verdict"] == "stale", 90.0)
        daemon.wait_for(lambda d: host_bind(d)["refusal"] == "server_alive", DEADLINE)
        assert "by an abort, or by the kernel's request timeout: a request had waited for" in (
            daemon.log()
        )
        said = run_fusewatchd("explain", host_bind(daemon.status())["mount_point"], *daemon._sets)
        assert "the kernel's request timeout" in said.stdout
        said = run_fusewatchd("doctor", *daemon._sets)
        assert "fs.fuse.default_request_timeout is" in " ".join(said.stdout.split())
        source.release()
