"""Servers that mount straight into the pod, started again by a command or a unit."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume
from fusewatchd.demo.node.sources import Source
from fusewatchd.linux import syscalls
from tests.integration.test_cluster import cluster
from tests.lab import in_lab, pod_with_container
from tests.waiting import wait_until

pytestmark = pytest.mark.kernel

DEADLINE = 20.0
_START = """#!/bin/sh
# $1: where to mount.  Does what the unit of a driver does.
echo "$# $*" >>{lab}/calls
env >{lab}/environment
readlink /proc/self/fd/0 >>{lab}/environment
umount -l "$1" 2>>{lab}/calls
: >{lab}/ready
PYTHONPATH={path} PYTHONSAFEPATH=1 setsid {python} -m fusewatchd.demo.fuse.server \\
    --mount "$1" --backing {backing} </dev/null >{lab}/ready 2>&1 &
echo $! >>{lab}/pids
until grep -q READY {lab}/ready; do sleep 0.05; done
echo "is up"
"""


@dataclass(slots=True)
class Direct:
    """A volume whose server mounts at the publish path itself."""

    node: DemoNode
    pod: DemoPod
    source: Source
    container: Container

    @property
    def target(self) -> str:
        return self.pod.volume_path("v")

    def lines(self, name: str) -> list[str]:
        try:
            with open(os.path.join(self.node.lab, name)) as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []


def direct(node: DemoNode) -> Direct:
    volume = PodVolume("v", None, handle="bucket/data")
    pod = node.add_pod("web", [volume], [PodMount("v", "/data")])
    source = node.add_source("one", path=pod.volume_path("v"))
    return Direct(node, pod, source, node.start_container(pod))


def script(node: DemoNode, name: str, text: str) -> str:
    path = os.path.join(node.lab, name)
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, 0o755)
    return path


def start_script(node: DemoNode, backing: str) -> str:
    path = python_environment()["PYTHONPATH"]
    text = _START.format(lab=node.lab, path=path, python=sys.executable, backing=backing)
    return script(node, "start", text)


@contextmanager
def servers_ended(volume: Direct) -> Iterator[None]:
    """End the servers that the command left."""
    try:
        yield
    finally:
        for pid in volume.lines("pids"):
            os.kill(int(pid), signal.SIGKILL)


def settings(rule: dict[str, object], **more: str) -> dict[str, str]:
    full = {"driver": "fuse.csi.*", "grace_seconds": 0.2, "back_off_initial_seconds": 0.3, **rule}
    return {"drivers.on_stale": json.dumps([full]), "look_seconds": "1", **more}


def has_ended(pid: str) -> bool:
    """True also for one that nobody has waited for yet."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@in_lab(timeout=90)
def test_a_command_brings_a_direct_mount_back(node: DemoNode) -> None:
    volume = direct(node)
    command = [start_script(node, volume.source.backing), "{target}", "{handle}", "a {volume} b"]
    with cluster(node) as around, servers_ended(volume):
        values = {**around.settings(), **settings({"command": command})}
        with DaemonProcess(node, settings=values) as daemon:
            daemon.wait_until_watching(2)
            volume.source.kill()
            volume.container.wait_until_readable("/data/hello", DEADLINE)
            assert volume.container.read("/data/hello") == "one"
            daemon.wait_until_watching(2)
            assert volume.lines("calls") == [f"3 {volume.target} bucket/data a v b"]
            environment = volume.lines("environment")
            names = {line.partition("=")[0] for line in environment[:-1]}
            assert names <= {"PATH", "LANG", "HOME", "PWD", "SHLVL", "_", "OLDPWD"}
            assert environment[-1] == "/dev/null"
            wait_until(lambda: "FuseServerRestarted" in around.apiserver.reasons())
            told = [r for r in around.apiserver.reasons() if r.startswith("FuseServer")]
            assert told == ["FuseServerRestarting", "FuseServerRestarted"]
            labels = 'kind="command",outcome="succeeded"'
            assert around.metric(f"fusewatchd_on_stale_actions_total{{{labels}}}") == 1
            assert 'output="is up"' in daemon.log()


@in_lab(timeout=90)
def test_a_unit_is_restarted_and_named_as_systemd_does(node: DemoNode) -> None:
    """``systemctl`` is a stand-in here: what it is told is what counts."""
    volume = direct(node)
    start = start_script(node, volume.source.backing)
    stub = f'#!/bin/sh\necho "$*" >>{node.lab}/units\nexec {start} {volume.target}\n'
    syscalls.mount(script(node, "systemctl", stub), "/usr/bin/systemctl", None, syscalls.MS_BIND)
    with servers_ended(volume):
        values = settings({"unit": "demo@{handle}.service"})
        with DaemonProcess(node, settings=values) as daemon:
            daemon.wait_until_watching(2)
            volume.source.kill()
            volume.container.wait_until_readable("/data/hello", DEADLINE)
            expected = "--no-ask-password restart -- demo@bucket-data.service"
            assert volume.lines("units") == [expected]
            daemon.wait_until_watching(2)


@pytest.mark.parametrize(
    ("text", "outcome", "shown"),
    [
        ("echo 'no \033[31m way' >&2; exit 3", "failed", r"no \x1b[31m way"),
        (
            "trap '' TERM; sleep 300 & echo $! >>{lab}/children; wait; sleep 300",
            "timed_out",
            "",
        ),
    ],
    ids=["fails", "hangs"],
)
@pytest.mark.slow
@in_lab(timeout=90)
def test_what_does_not_help_is_ended_and_backs_off(
    node: DemoNode, text: str, outcome: str, shown: str
) -> None:
    volume, other = direct(node), node.add_source("other")
    _, container = pod_with_container(node, other, "p2")
    body = f"#!/bin/sh\necho $$ >>{node.lab}/calls\n" + text.replace("{lab}", node.lab) + "\n"
    rule = {
        "command": [script(node, "helper", body)],
        "timeout_seconds": 0.5,
        "driver": "fuse.csi.demo",
        "back_off_max_seconds": 300,
    }
    with DaemonProcess(node, settings=settings(rule, **{"log.format": "logfmt"})) as daemon:
        daemon.wait_until_watching(4)
        volume.source.kill()
        wait_until(lambda: volume.lines("calls"))
        other.kill()
        other.restart()
        container.wait_until_readable("/data/hello", DEADLINE)  # nobody waits for the command
        document = daemon.wait_for(
            lambda d: (
                d["on_stale"]
                and d["on_stale"][0]["attempts"] >= 2
                and d["on_stale"][0]["held_back"] == "back_off"
            )
        )
        (trouble,) = document["on_stale"]
        assert trouble["place"] == volume.target
        assert trouble["last"]["outcome"] == outcome
        assert shown in trouble["last"]["output"]
        reasons = {b["refusal"] for b in document["binds"] if b["verdict"] == "stale"}
        assert reasons == {"awaits_action"}
        assert "\033" not in daemon.log()
        for pid in (*volume.lines("calls"), *volume.lines("children")):
            wait_until(lambda pid=pid: has_ended(pid))  # type: ignore[misc]


@in_lab(timeout=60)
def test_a_command_ends_with_the_daemon(node: DemoNode) -> None:
    volume = direct(node)
    body = f"#!/bin/sh\necho $$ >>{node.lab}/calls\nexec sleep 300\n"
    rule: dict[str, object] = {"command": [script(node, "helper", body)], "timeout_seconds": 300}
    with DaemonProcess(node, settings=settings(rule)) as daemon:
        daemon.wait_until_watching(2)
        volume.source.kill()
        wait_until(lambda: volume.lines("calls"))
    (pid,) = volume.lines("calls")
    wait_until(lambda: has_ended(pid))


@pytest.mark.slow
@in_lab(timeout=60)
def test_nothing_is_run_in_report_mode_or_for_somebody_else(node: DemoNode) -> None:
    volume = direct(node)
    command = [script(node, "helper", f"#!/bin/sh\necho x >>{node.lab}/calls\n")]
    report = settings({"command": command}, **{"recovery.mode": "report"})
    other = settings({"command": command, "driver": "other.*"})
    off = settings({"command": command}, **{"recovery.exclude.volumes": '["v"]'})
    volume.source.kill()
    for values in (report, other, off):
        with DaemonProcess(node, settings=values) as daemon:
            document = daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"])
            time.sleep(1.5)
            assert volume.lines("calls") == []
            document = daemon.status()
            held = [t["held_back"] for t in document["on_stale"]]
            assert held == (["report_only"] if values is report else [])
