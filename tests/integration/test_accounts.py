"""The account of all FUSE mounts: what is not understood is loud, what others made is not."""

from __future__ import annotations

import os
import subprocess
import urllib.error
import urllib.request

import pytest

from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.cluster.loopback import free_port
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode, ForeignKind
from fusewatchd.linux import syscalls
from tests.lab import in_lab, pod_with_container, run_fusewatchd

pytestmark = pytest.mark.kernel
DEADLINE = 20.0


def asked(daemon: DaemonProcess, *words: str) -> tuple[int, str]:
    sets = [word for key, value in daemon.values.items() for word in ("--set", f"{key}={value}")]
    done = run_fusewatchd(*words, *sets)
    return done.returncode, done.stdout


def web() -> dict[str, str]:
    return {"web.listen_address": f"127.0.0.1:{free_port()}"}


def fetched(daemon: DaemonProcess, path: str) -> tuple[int, str]:
    try:
        url = f"http://{daemon.values['web.listen_address']}{path}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def assert_loud(daemon: DaemonProcess, kind: str, code: int, words: str) -> None:
    """Everything that a person or a machine may ask tells of it."""
    document = daemon.wait_for(lambda d: bool(d["accounts"]["unexplained"]), DEADLINE)
    assert {one["class"] for one in document["accounts"]["unexplained"]} == {kind}
    for command in ("status", "check"):
        status, output = asked(daemon, command)
        assert status == code
        assert words in output
    status, output = asked(daemon, "doctor")
    assert status == 1
    assert words in output
    daemon.wait_for(lambda _: fetched(daemon, "/readyz")[0] == 503, DEADLINE)
    assert words in fetched(daemon, "/readyz")[1]
    assert f'fusewatchd_fuse_mounts{{class="{kind}"}} 1.0' in fetched(daemon, "/metrics")[1]
    assert daemon.log().count(f"event={kind}") == 1


def assert_quiet(daemon: DaemonProcess) -> None:
    assert not daemon.status()["accounts"]["unexplained"]
    assert asked(daemon, "status")[0] == 0
    assert asked(daemon, "check")[0] == 0
    assert "event=still_dead" not in daemon.log()
    assert "event=not_understood" not in daemon.log()


@in_lab(timeout=90)
def test_a_mount_in_the_pods_directory_that_is_no_known_volume(node: DemoNode) -> None:
    source = node.add_source("one")
    pod, _ = pod_with_container(node, source, "p")
    odd = os.path.join(pod.directory, "volumes/kubernetes.io~glusterfs/old")
    with DaemonProcess(node, settings=web()) as daemon:
        daemon.wait_until_watching(2)
        daemon.wait_for(lambda d: d["accounts"]["fuse_mounts"] == 3, DEADLINE)
        assert_quiet(daemon)
        os.makedirs(odd)
        syscalls.mount(source.path, odd, None, syscalls.MS_BIND)
        assert_loud(daemon, "not_understood", 2, "glusterfs/old")
        syscalls.umount2(odd)
        daemon.wait_for(lambda d: not d["accounts"]["unexplained"], DEADLINE)
        assert "event=accounts_clear" in daemon.log()


@pytest.mark.parametrize("has_list", [False, True], ids=["no-list", "list"])
@in_lab(timeout=90)
def test_a_dead_volume_of_which_a_new_daemon_knows_nothing(node: DemoNode, has_list: bool) -> None:
    source = node.add_source("one")
    pod, container = pod_with_container(node, source, "p")
    source.kill()
    source.unmount()
    syscalls.umount2(pod.volume_path("v"), syscalls.MNT_DETACH)
    with DemoKubelet(node.pod_list) as kubelet:
        settings = {**web(), **({"kubelet.url": kubelet.url} if has_list else {})}
        with DaemonProcess(node, settings=settings) as daemon:
            assert_loud(daemon, "still_dead", 1, "/data")
            container.stop()
            daemon.wait_for(lambda d: not d["accounts"]["unexplained"], DEADLINE)


@in_lab(timeout=60)
def test_what_a_privileged_container_mounts_of_its_volume_is_its_own(node: DemoNode) -> None:
    source = node.add_source("one", files={"hello": "x", "part/hello": "x"})
    _, container = pod_with_container(node, source, "p")
    with DaemonProcess(node, settings=web()) as daemon:
        daemon.wait_until_watching(2)
        enter = ["nsenter", "-t", str(container.pid), "-m", "-r", "mount", "--bind"]
        subprocess.run([*enter, "/data/part", "/tmp"], check=True)
        daemon.wait_for(lambda d: d["accounts"]["classes"]["own"]["mounts"] == 1, DEADLINE)
        source.kill()
        source.restart()
        container.wait_until_readable("/data/hello", DEADLINE)
        daemon.wait_for(lambda d: d["accounts"]["classes"]["own"]["dead"] == 1, DEADLINE)
        daemon.wait_for(lambda d: not d["incidents"], DEADLINE)
        assert_quiet(daemon)
        assert "1 place still shows the dead one" in daemon.log()


@in_lab(timeout=90)
def test_copies_of_agents_and_of_people_are_counted_and_named(node: DemoNode) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "p")
    for kind in (ForeignKind.NODE_AGENT, ForeignKind.CSI_PLUGIN):
        node.add_foreign(kind)
    copy = os.path.join(node.lab, "copy")
    os.mkdir(copy)
    with DaemonProcess(node, settings=web()) as daemon:
        daemon.wait_until_watching(2)
        syscalls.mount(source.path, copy, None, syscalls.MS_BIND)
        syscalls.mount(None, copy, None, syscalls.MS_PRIVATE)
        document = daemon.wait_for(
            lambda d: d["accounts"]["classes"]["copy"]["mounts"] == 1, DEADLINE
        )
        accounts = document["accounts"]
        classes = {name: one["mounts"] for name, one in accounts["classes"].items()}
        assert accounts["fuse_mounts"] == sum(classes.values())
        assert classes["bind_host"] == classes["bind_container"] == classes["source"] == 1
        assert_quiet(daemon)
        source.kill()
        source.restart()
        container.wait_until_readable("/data/hello", DEADLINE)
        daemon.wait_for(lambda d: not d["incidents"], DEADLINE)
        daemon.wait_for(lambda d: d["accounts"]["classes"]["copy"]["dead"] == 1, DEADLINE)
        assert_quiet(daemon)
        assert "recovered on the host, 1 place still shows the dead one" in daemon.log()
        assert copy in daemon.log()
