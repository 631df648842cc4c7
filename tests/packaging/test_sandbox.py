"""What the unit allows and what it does not, under the systemd of each release."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator

import pytest

from fusewatchd.model.capabilities import Capability
from fusewatchd.workers.privileges import Kind
from tests.integration.test_process_rights import (
    USERS,
    kind_of,
    require_rights,
    status_in,
)
from tests.packaging.conftest import Packages
from tests.packaging.node import DEADLINE, UNIT, PackagedNode, packaged_node

WORST_SCORE = 50
"""Of systemd-analyze security, times ten."""

pytestmark = [pytest.mark.packaging, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="class")
def node(request: pytest.FixtureRequest, packages: Packages) -> Iterator[PackagedNode]:
    with packaged_node(request.cls.suite, packages.directory) as node:
        node.install(packages.deb)
        node.wait_until_up()
        yield node


class Sandbox:
    """What is tried on a machine of each release."""

    suite: str

    def test_the_daemon_is_in_the_hosts_namespace_and_confined(self, node: PackagedNode) -> None:
        ours, hosts = (node.machine.output("readlink", f"/proc/{p}/ns/mnt") for p in (node.pid, 1))
        assert ours == hosts
        status = status_in(node.machine.output("cat", f"/proc/{node.pid}/status"))
        assert int(status["CapBnd"], 16) == sum(1 << capability for capability in Capability)

    def test_systemd_understands_the_unit_and_thinks_well_of_it(self, node: PackagedNode) -> None:
        done = node.machine.run("systemd-analyze", "--man=no", "verify", node.show("FragmentPath"))
        # What is not there to be ordered after is none of ours.
        assert [x for x in (done.stdout + done.stderr).splitlines() if "fusewatchd" in x] == []
        node.machine.run("systemd-analyze", "security", f"--threshold={WORST_SCORE}", UNIT)

    def test_every_call_of_ours_is_let_through(self, node: PackagedNode) -> None:
        confined, free = (self._probe(node, unit) for unit in (UNIT, ""))
        assert confined == free
        assert {"openat2", "statmount"} < set(confined)

    def test_others_are_not(self, node: PackagedNode) -> None:
        forbidden = self._probe(node, UNIT, "forbidden")
        assert forbidden == dict.fromkeys(forbidden, errno.EPERM)
        assert len(forbidden) > 5

    @staticmethod
    def _probe(node: PackagedNode, unit: str, *arguments: str) -> dict[str, int]:
        """Return the errno of each call of ``sandbox_probe``, run as the service is."""
        name = "confined" if unit else "free"
        program = f"/usr/bin/python3 /opt/stage/sandbox_probe.py {' '.join(arguments)}"
        script = """
        mkdir -p "/run/systemd/system/$1.service.d"
        if [ -n "$3" ]; then cp "$(systemctl show -P FragmentPath "$3")" "/run/systemd/system/$1.service"; fi
        printf '[Service]\\nType=exec\\nWatchdogSec=0\\nRestart=no\\nStateDirectory=\\nRuntimeDirectory=\\nExecStart=\\nExecStart=%s\\nExecReload=\\nStandardOutput=truncate:/run/probe\\n' "$2" >"/run/systemd/system/$1.service.d/probe.conf"
        [ -n "$3" ] || mv "/run/systemd/system/$1.service.d/probe.conf" "/run/systemd/system/$1.service"
        systemctl daemon-reload
        systemctl start --wait "$1"
        cat /run/probe
        """
        found: dict[str, int] = json.loads(
            node.machine.output("sh", "-euc", script, "sh", name, program, unit)
        )
        return found

    def test_it_learns_of_mounts_by_fanotify(self, node: PackagedNode) -> None:
        links = node.machine.output("sh", "-c", f"readlink /proc/{node.pid}/fd/*")
        assert "anon_inode:[fanotify]" in links.splitlines()

    def test_a_mount_of_another_user_is_asked_and_aborted(self, node: PackagedNode) -> None:
        node.write(
            "/etc/fusewatchd/fusewatchd.yaml",
            "probe: {interval_seconds: 1, deadline_seconds: 1}\n"
            "hung: {after_seconds: 2, abort: true}\n",
        )
        node.machine.run("systemctl", "restart", UNIT)
        node.wait_until_up()
        node.add("users", user_id=1000)
        node.wait_until_watching(2)
        node.do("hold", name="users")
        node.do("begin_read", name="users")
        node.machine.wait_for(lambda: node.entries("abort"), 2 * DEADLINE)
        node.machine.wait_for(lambda: self._is_stale(node), 2 * DEADLINE)
        node.do("restart", name="users")
        node.wait_until_watching(2)

    @staticmethod
    def _is_stale(node: PackagedNode) -> bool:
        return {"stale"} == {bind["verdict"] for bind in node.status()["binds"]}

    def test_the_status_may_be_opened_to_a_group(self, node: PackagedNode) -> None:
        node.write("/etc/fusewatchd/fusewatchd.yaml", "status_group: games\n")
        node.machine.run("systemctl", "restart", UNIT)
        node.wait_until_up()
        ask = ["setpriv", "--reuid", "5", "--clear-groups", "--regid"]
        assert node.machine.run(*ask, "60", "fusewatchd", "status", check=False).returncode in (
            0,
            1,
        )
        refused = node.machine.run(*ask, "65534", "fusewatchd", "status", check=False)
        assert "only root and the members of status_group" in refused.stderr

    def test_every_process_has_the_rights_of_its_kind(self, node: PackagedNode) -> None:
        node.add("rights")
        node.wait_until_watching(2)
        # Until it knows where the kubelet works, it may have to begin again there, with its rights.
        ready = "http://127.0.0.1:9847/readyz"
        node.machine.wait_for(
            lambda: node.machine.run("curl", "-sf", ready, check=False).returncode == 0, 90.0
        )
        group = f"/sys/fs/cgroup{node.show('ControlGroup')}"
        script = 'for pid in $(cat "$1/cgroup.procs"); do cat "/proc/$pid/status"; echo; done'
        texts = node.machine.output("sh", "-euc", script, "sh", group).split("\n\n")
        found = [status_in(text) for text in texts if text.strip()]
        # The package made the user that talks with others.
        own = int(node.machine.output("id", "--user", "fusewatchd"))
        assert own not in (0, 65534)
        kinds = {status["Pid"]: kind_of(status, node.pid) for status in found}
        for status in found:
            require_rights(kinds[status["Pid"]], status, {**USERS, Kind.FRONT: own})
        wanted = {Kind.CORE, Kind.FORK_SERVER, Kind.MOUNT, Kind.PROBE, Kind.SCAN, Kind.FRONT}
        assert set(kinds.values()) >= wanted


class TestBookworm(Sandbox):
    suite = "bookworm"


class TestTrixie(Sandbox):
    suite = "trixie"
