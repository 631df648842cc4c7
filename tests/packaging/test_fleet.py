"""How fleets get it: the Ansible role and the cloud-init snippet, run against booted machines."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.conftest import TOP, Packages
from tests.packaging.node import DEADLINE, PACKAGES, UNIT, PackagedNode, packaged_node
from tests.packaging.test_life import nothing_moved

pytestmark = [pytest.mark.packaging, pytest.mark.slow, pytest.mark.timeout(600)]

BINDS = 2


class Ansible:
    """ansible-playbook of this Python's environment, on one machine."""

    def __init__(self, node: PackagedNode, directory: Path) -> None:
        self._node = node
        self._inventory = directory / "inventory"
        self._inventory.write_text(
            f"[kubernetes_nodes]\n{node.machine.leader} ansible_connection=nsenter"
            " ansible_become=false ansible_python_interpreter=/usr/bin/python3\n"
        )
        self._environment = {
            **os.environ,
            "ANSIBLE_CONNECTION_PLUGINS": str(TOP / "tests/packaging/connection_plugins"),
            "ANSIBLE_HOME": str(directory / "home"),
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_NOCOLOR": "1",
            "LC_ALL": "C.UTF-8",
        }

    def play(self, **variables: object) -> str:
        """Run the rollout; return how many tasks changed something, and what was printed."""
        program = Path(sys.executable).with_name("ansible-playbook")
        words = [
            str(program),
            "-i",
            str(self._inventory),
            str(TOP / "packaging/ansible/rollout.yml"),
        ]
        for name, value in variables.items():
            words += ["-e", f"fusewatchd_{name}={value}"]
        done = subprocess.run(
            words, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def changes(said: str) -> int:
    (count,) = re.findall(r"changed=(\d+)", said)
    return int(count)


@pytest.fixture(scope="class")
def node(packages: Packages) -> Iterator[PackagedNode]:
    with packaged_node("trixie", packages.directory) as node:
        node.add("one")
        yield node


@pytest.fixture(scope="class")
def ansible(node: PackagedNode, tmp_path_factory: pytest.TempPathFactory) -> Ansible:
    return Ansible(node, tmp_path_factory.mktemp("ansible"))


class TestAnsible:
    def test_it_begins_with_looking(
        self, node: PackagedNode, ansible: Ansible, packages: Packages
    ) -> None:
        with nothing_moved(node):
            assert changes(ansible.play(package=packages.old_deb)) > 0
            node.wait_until_watching(BINDS)
        node.do("kill", name="one")
        node.do("restart", name="one")
        node.machine.wait_for(lambda: "report" in str(node.status()["binds"]))
        assert node.do("error", name="one") == errno.ENOTCONN

    def test_then_recovers_by_a_reload(
        self, node: PackagedNode, ansible: Ansible, packages: Packages
    ) -> None:
        before = node.pid
        ansible.play(package=packages.old_deb, mode="recover")
        assert node.reads("one")
        assert node.pid == before

    def test_changes_nothing_the_second_time(
        self, node: PackagedNode, ansible: Ansible, packages: Packages
    ) -> None:
        before = node.pid
        with nothing_moved(node):
            assert changes(ansible.play(package=packages.old_deb, mode="recover")) == 0
        assert node.pid == before

    def test_upgrades_and_goes_back(
        self, node: PackagedNode, ansible: Ansible, packages: Packages
    ) -> None:
        with nothing_moved(node):
            ansible.play(package=packages.deb, mode="recover")
            newer = node.machine.output("fusewatchd", "--version")
            ansible.play(package=packages.old_deb, mode="recover")
            assert node.machine.output("fusewatchd", "--version") != newer
            node.wait_until_watching(BINDS)

    def test_stops_and_takes_away(self, node: PackagedNode, ansible: Ansible) -> None:
        with nothing_moved(node):
            ansible.play(state="stopped")
            assert node.processes() == []
            assert node.machine.run("systemctl", "is-enabled", UNIT, check=False).returncode
            ansible.play(state="absent")
        assert node.machine.run("dpkg", "--verify", "fusewatchd", check=False).returncode == 0
        assert not node.machine.path("/usr/bin/fusewatchd").exists()


class TestCloudInit:
    def test_a_new_node_has_it_from_its_first_boot_on(
        self, node: PackagedNode, packages: Packages
    ) -> None:
        text = (TOP / "packaging/cloud-init/fusewatchd.yaml").read_text()
        digest = hashlib.sha256(packages.deb.read_bytes()).hexdigest()
        text = text.replace(
            "https://packages.example/fusewatchd.deb", f"file://{PACKAGES}/{packages.deb.name}"
        ).replace("0" * 64, digest)
        seed = "/var/lib/cloud/seed/nocloud"
        node.write(f"{seed}/user-data", text)
        node.write(f"{seed}/meta-data", "instance-id: node\n")
        run = node.machine.run
        assert "Valid" in run("cloud-init", "schema", "--config-file", f"{seed}/user-data").stdout
        for stage in (
            ("init", "--local"),
            ("init",),
            ("modules", "--mode=config"),
            ("modules", "--mode=final"),
        ):
            run("cloud-init", *stage, timeout=2 * DEADLINE)
        node.wait_until_up()
        assert "recovery.mode: report" in node.machine.output(
            "fusewatchd", "config-show", "--changed"
        )
