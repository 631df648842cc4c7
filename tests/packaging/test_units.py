"""``drivers.on_stale`` with a unit: a real systemctl, from inside the sandbox of the shipped service.

Each server is a unit that mounts straight into the pod, as those of drivers without a source do.
"""

from __future__ import annotations

import errno
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from tests.packaging.conftest import Packages
from tests.packaging.node import DEADLINE, UNIT, PackagedNode, packaged_node

pytestmark = [pytest.mark.packaging, pytest.mark.slow, pytest.mark.timeout(600)]

DRIVER = "s3.csi.aws.com"
VOLUMES = {"one": "pvc-0b7e.s3-logs", "two": "pvc-11.a--b"}
"""Names of PersistentVolumes; systemd escapes each dash of them."""
TEMPLATE = """[Unit]
Description=FUSE volume %I
StartLimitIntervalSec=0
[Service]
Type=forking
EnvironmentFile=/etc/fuse-volumes/%I
ExecStartPre=-/bin/umount -l ${TARGET}
ExecStartPre=/usr/bin/test ! -e /run/storage-is-away
ExecStart=/usr/bin/bindfs ${BACKING} ${TARGET}
"""
CONFIGURATION = f"""
look_seconds: 1
drivers:
  on_stale:
    - driver: {DRIVER}
      unit: "fuse-volume@{{volume}}.service"
      grace_seconds: 0.5
      back_off_initial_seconds: 1
"""


@pytest.fixture(scope="class")
def node(request: pytest.FixtureRequest, packages: Packages) -> Iterator[PackagedNode]:
    with packaged_node(request.cls.suite, packages.directory) as node:
        node.write("/etc/systemd/system/fuse-volume@.service", TEMPLATE)
        node.machine.run("systemctl", "daemon-reload")
        for name, volume in VOLUMES.items():
            places = node.do("add_direct", name=name, volume=volume, driver=DRIVER)
            lines = [f"TARGET={places['target']}", f"BACKING={places['backing']}"]
            node.write(f"/etc/fuse-volumes/{volume}", "\n".join(lines) + "\n")
            node.machine.run("systemctl", "start", unit(node, name))
            node.do("start_container", name=name)
        node.write("/etc/fusewatchd/fusewatchd.yaml", CONFIGURATION)
        node.install(packages.deb, "-o", "Dpkg::Options::=--force-confold")
        node.wait_until_up()
        node.wait_until_watching(2 * len(VOLUMES))
        yield node


def unit(node: PackagedNode, name: str) -> str:
    """Return the unit of a volume, as systemd itself names it."""
    template = "--template=fuse-volume@.service"
    return node.machine.output("systemd-escape", template, VOLUMES[name])


def state(node: PackagedNode, name: str, what: str) -> str:
    return node.machine.output("systemctl", "show", "--value", "-p", what, unit(node, name))


def kill(node: PackagedNode, name: str) -> None:
    """SIGKILL the server and wait until systemd has noticed."""
    node.machine.run("systemctl", "kill", "--signal=KILL", unit(node, name))
    node.machine.wait_for(lambda: state(node, name, "MainPID") in ("", "0"))


def binds_of(node: PackagedNode, name: str) -> list[Any]:
    return [bind for bind in node.status()["binds"] if bind["volume"] == VOLUMES[name]]


class Units:
    """What happens on a machine of each release."""

    suite: str

    def test_a_killed_server_is_restarted_by_its_unit(self, node: PackagedNode) -> None:
        rules = {bind["source"]["rule"] for bind in binds_of(node, "one")}
        assert rules == {"mountpoint-s3"}
        before = state(node, "one", "MainPID")
        devices = {bind["device"] for bind in binds_of(node, "one")}
        other = state(node, "two", "MainPID")
        kill(node, "one")
        assert node.reads("one")
        node.wait_until_watching(2 * len(VOLUMES))
        assert state(node, "one", "MainPID") not in ("0", before)
        assert state(node, "one", "ActiveState") == "active"
        assert state(node, "two", "MainPID") == other
        (device,) = {bind["device"] for bind in binds_of(node, "one")}
        assert device not in devices
        # It is systemd's child: nothing of it is, or ends with, the daemon's.
        assert unit(node, "one") in state(node, "one", "ControlGroup")

    def test_what_was_done_is_told(self, node: PackagedNode) -> None:
        told = node.entries("action_")
        events = [entry["FUSEWATCHD_EVENT"] for entry in told]
        assert events == ["action_started", "action_succeeded"]
        argv = f"systemctl --no-ask-password restart -- {shlex.quote(unit(node, 'one'))}"
        assert argv in told[0]["FUSEWATCHD_ARGV"].replace("\\\\", "\\")
        assert node.metric('fusewatchd_on_stale_actions_total{kind="unit",outcome="succ') == 1
        status = node.status()
        assert status["on_stale"] == []
        (container,) = (b for b in binds_of(node, "one") if b["namespace"] is not None)
        assert container["last_recovery"] is not None

    def test_it_works_without_a_message_bus(self, node: PackagedNode) -> None:
        """systemctl then talks to systemd itself; polkit is not even installed."""
        assert node.machine.run("which", "pkexec", check=False).returncode
        bus = "/run/dbus/system_bus_socket"
        node.machine.run("mv", bus, f"{bus}.away")
        try:
            kill(node, "one")
            assert node.reads("one")
            node.wait_until_watching(2 * len(VOLUMES))
        finally:
            node.machine.run("mv", f"{bus}.away", bus)

    def test_a_unit_that_fails_is_said_and_backs_off(self, node: PackagedNode) -> None:
        node.write("/run/storage-is-away", "")
        kill(node, "two")
        node.machine.wait_for(
            lambda: (
                [
                    (trouble["held_back"], trouble["attempts"] >= 3)
                    for trouble in node.status()["on_stale"]
                ]
                == [("back_off", True)]
            ),
            2 * DEADLINE,
        )
        (trouble,) = node.status()["on_stale"]
        assert trouble["last"]["outcome"] == "failed"
        assert "control process exited with error code" in trouble["last"]["output"]
        shown = node.machine.run("fusewatchd", "status", check=False).stdout
        (line,) = (x for x in shown.splitlines() if x.startswith("Restart of a server by unit"))
        assert "attempts, the last one failed" in line
        assert line.endswith(f"{VOLUMES['two']}/mount")
        entries = node.entries("action_failed")
        failed = [int(entry["__REALTIME_TIMESTAMP"]) / 1e6 for entry in entries]
        assert len(failed) >= 3
        first, second = failed[1] - failed[0], failed[2] - failed[1]
        assert second > first
        # The unit has taken the dead mount away each time.  The container still has its mount.
        (bound,) = binds_of(node, "two")
        assert (bound["verdict"], bound["namespace"] is None) == ("stale", False)
        assert node.do("error", name="two") == errno.ENOTCONN
        assert node.do("error", name="one") == 0
        node.machine.run("rm", "/run/storage-is-away")
        assert node.reads("two")
        node.wait_until_watching(2 * len(VOLUMES))
        assert node.status()["on_stale"] == []

    def test_the_servers_outlive_the_daemon(self, node: PackagedNode) -> None:
        before = {name: state(node, name, "MainPID") for name in VOLUMES}
        node.machine.run("systemctl", "stop", UNIT)
        assert {name: state(node, name, "MainPID") for name in VOLUMES} == before
        assert [node.do("error", name=name) for name in VOLUMES] == [0, 0]
        node.machine.run("systemctl", "start", UNIT)
        node.wait_until_watching(2 * len(VOLUMES))


class TestBookworm(Units):
    suite = "bookworm"


class TestTrixie(Units):
    suite = "trixie"
