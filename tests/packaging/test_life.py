"""The life of the Debian package on a node: one booted machine, from installing to purging.

The tests of one machine go on from each other, in their order.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fusewatchd import __version__
from tests.packaging.conftest import OLD_VERSION, Packages
from tests.packaging.node import UNIT, PackagedNode, packaged_node

CONFIG = "/etc/fusewatchd/fusewatchd.yaml"
DRY_RUN = "/etc/fusewatchd/conf.d/50-dry-run.yaml"
SOCKET = "fusewatchd.socket"
BINDS = 4
"""Of two pods, on the host and in the container."""

pytestmark = [pytest.mark.packaging, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="class")
def node(request: pytest.FixtureRequest, packages: Packages) -> Iterator[PackagedNode]:
    with packaged_node(request.cls.suite, packages.directory) as node:
        node.add("one")
        node.add("two", command=("bindfs", "-f", "{backing}", "{mount}"))
        yield node


@contextmanager
def nothing_moved(node: PackagedNode) -> Iterator[None]:
    """Compare all mount tables, with the ids of mounts, before and after."""
    before = node.tables()
    yield
    assert node.tables() == before


FILES: dict[str, set[str]] = {}


def crash(node: PackagedNode, name: str) -> None:
    node.do("kill", name=name)
    node.do("restart", name=name)


class Life:
    """What happens on a machine of each release."""

    suite: str

    def test_install_starts_it_and_moves_nothing(
        self, node: PackagedNode, packages: Packages
    ) -> None:
        FILES[node.machine.name] = node.files()
        # A dry run that is asked for before there is a package: dpkg has no question.
        node.write(DRY_RUN, "recovery: {mode: report}\n")
        with nothing_moved(node):
            node.install(packages.old_deb)
            node.wait_until_up()
            node.wait_until_watching(BINDS)
        shown = node.machine.output("fusewatchd", "config-show", "--changed")
        assert f"# {DRY_RUN}" in shown
        assert '"mode": "report"' in node.machine.output("fusewatchd", "status", "--json")
        node.machine.path(DRY_RUN).unlink()
        node.machine.run("systemctl", "reload", UNIT)
        assert node.machine.output("systemctl", "is-enabled", UNIT) == "enabled"
        assert f"version={OLD_VERSION}" in node.journal()

    def test_upgrade_keeps_a_changed_conffile_and_what_was_learned(
        self, node: PackagedNode, packages: Packages
    ) -> None:
        node.machine.run("sh", "-c", f"echo 'node_name: changed' >> {CONFIG}")
        before = node.pid
        node.do("kill", name="one")
        with nothing_moved(node):
            node.install(packages.deb, "-o", "Dpkg::Options::=--force-confold")
            node.wait_until_up(besides=before)
        assert "node_name: changed" in node.machine.output("cat", CONFIG)
        assert f"version={__version__}" in node.journal()
        assert node.do("error", name="one") == errno.ENOTCONN
        # Which source it was is nowhere but in what the old version had written down.
        node.do("restart", name="one")
        assert node.reads("one")
        node.wait_until_watching(BINDS)

    def test_a_killed_server_is_recovered_from_told_and_counted(self, node: PackagedNode) -> None:
        before = node.metric("fusewatchd_recoveries_total{")
        crash(node, "one")
        crash(node, "two")
        assert node.reads("one")
        assert node.reads("two")
        node.wait_until_watching(BINDS)
        node.machine.wait_for(lambda: node.metric("fusewatchd_recoveries_total{") >= before + BINDS)
        for event in ("server_gone", "stale", "source_back", "recovered"):
            assert node.entries(event)

    def test_the_commands_of_the_manual_work(self, node: PackagedNode) -> None:
        run = node.machine.run
        assert run("fusewatchd", "config-check").stdout == f"{CONFIG}: fine\n"
        assert run("fusewatchd", "check").returncode == 0
        assert "one" in run("fusewatchd", "status", "--all").stdout
        assert run("fusewatchd", "--version").stdout == f"fusewatchd {__version__}\n"
        assert "last recovery" in run("systemctl", "status", UNIT).stdout
        doctor = run("fusewatchd", "doctor", "--json", check=False)
        assert doctor.returncode in (0, 1), doctor.stdout + doctor.stderr

    def test_systemd_may_hold_the_port(self, node: PackagedNode) -> None:
        socket = "fusewatchd.socket"
        assert (
            node.machine.run("systemctl", "is-enabled", socket, check=False).stdout == "disabled\n"
        )
        with nothing_moved(node):
            node.machine.run("systemctl", "stop", UNIT)
            node.machine.run("systemctl", "start", SOCKET)
            # A scrape starts it.
            assert node.metric("fusewatchd_build_info") == 1
            node.wait_until_watching(BINDS)
            node.machine.run("systemctl", "stop", UNIT, SOCKET)
            node.machine.run("systemctl", "start", UNIT)
            node.wait_until_watching(BINDS)

    def test_an_upgrade_leaves_the_socket_as_it_was(
        self, node: PackagedNode, packages: Packages
    ) -> None:
        run = node.machine.run
        run("systemctl", "stop", UNIT)
        run("systemctl", "enable", "--now", SOCKET)
        assert node.metric("fusewatchd_build_info") == 1
        before = node.pid
        node.install(packages.deb, "--reinstall", "-o", "Dpkg::Options::=--force-confold")
        node.wait_until_up(besides=before)
        assert node.machine.output("systemctl", "is-active", SOCKET) == "active"
        assert node.machine.output("systemctl", "is-enabled", SOCKET) == "enabled"
        assert node.metric("fusewatchd_build_info") == 1
        run("systemctl", "disable", "--now", SOCKET)
        run("systemctl", "restart", UNIT)
        node.wait_until_watching(BINDS)

    def test_a_runtime_that_hangs_in_its_start_does_not_keep_it_down(
        self, node: PackagedNode
    ) -> None:
        unit = "[Service]\nType=notify\nTimeoutStartSec=0\nExecStart=/bin/sleep 3600\n"
        node.write("/run/systemd/system/k3s-agent.service", unit)
        node.machine.run("systemctl", "daemon-reload")
        node.machine.run("systemctl", "start", "--no-block", "k3s-agent.service")
        before = node.pid
        node.machine.run("kill", "-KILL", str(before))
        node.wait_until_up(besides=before)
        node.machine.run("systemctl", "stop", "k3s-agent.service")
        node.machine.run("rm", "/run/systemd/system/k3s-agent.service")
        node.machine.run("systemctl", "daemon-reload")
        node.wait_until_watching(BINDS)

    def test_a_bad_configuration_is_a_failure_and_no_loop(self, node: PackagedNode) -> None:
        config = node.machine.output("cat", CONFIG)
        with nothing_moved(node):
            node.write(CONFIG, "recovery: {mod: report}\n")
            assert node.machine.run("systemctl", "restart", UNIT, check=False).returncode
            assert node.machine.output("systemctl", "is-failed", UNIT) == "failed"
        journal = node.journal()
        assert f"{CONFIG}: recovery.mod: no such key; did you mean mode?" in journal
        node.write(CONFIG, config + "\n")
        node.machine.run("systemctl", "restart", UNIT)
        node.wait_until_watching(BINDS)

    def test_options_of_the_service_and_a_reload(self, node: PackagedNode) -> None:
        options = "/etc/default/fusewatchd"
        before = node.machine.output("cat", options)
        with nothing_moved(node):
            node.write(options, 'FUSEWATCHD_OPTIONS="--set recovery.mode=report"\n')
            node.machine.run("systemctl", "restart", UNIT)
            node.wait_until_watching(BINDS)
            node.machine.run("systemctl", "reload", UNIT)
            node.machine.wait_for(lambda: "configuration reloaded" in node.journal())
        node.do("kill", name="one")
        node.do("restart", name="one")
        node.machine.wait_for(lambda: "report_only" in node.journal())
        assert node.do("error", name="one") == errno.ENOTCONN
        node.write(options, before + "\n")
        node.machine.run("systemctl", "restart", UNIT)
        assert node.reads("one")
        node.wait_until_watching(BINDS)

    def test_restart_stop_and_start_move_nothing(self, node: PackagedNode) -> None:
        with nothing_moved(node):
            before = node.pid
            node.machine.run("systemctl", "restart", UNIT)
            assert node.wait_until_up() != before
            node.machine.run("systemctl", "stop", UNIT)
            assert node.processes() == []
        crash(node, "one")
        assert node.do("error", name="one") == errno.ENOTCONN
        node.machine.run("systemctl", "start", UNIT)
        assert node.reads("one")
        node.wait_until_watching(BINDS)

    def test_it_comes_back_when_it_is_killed(self, node: PackagedNode) -> None:
        before = node.pid
        with nothing_moved(node):
            node.machine.run("kill", "-KILL", str(before))
            node.wait_until_up(besides=before)
            node.wait_until_watching(BINDS)
        crash(node, "one")
        assert node.reads("one")
        node.wait_until_watching(BINDS)

    def test_it_comes_back_when_it_hangs(self, node: PackagedNode) -> None:
        node.drop_in("watchdog", "WatchdogSec=3")
        node.machine.run("systemctl", "restart", UNIT)
        before = node.wait_until_up()
        with nothing_moved(node):
            node.machine.run("kill", "-STOP", str(before))
            node.wait_until_up(besides=before)
            node.wait_until_watching(BINDS)
        assert "Watchdog timeout" in node.journal()
        node.drop_in("watchdog", "")
        node.machine.run("systemctl", "restart", UNIT)
        node.wait_until_watching(BINDS)

    def test_a_mount_namespace_of_its_own_is_refused(self, node: PackagedNode) -> None:
        node.drop_in("private", "PrivateTmp=yes\nRestart=no")
        with nothing_moved(node):
            assert node.machine.run("systemctl", "restart", UNIT, check=False).returncode
        assert "this process has a mount namespace of its own" in node.journal()
        node.drop_in("private", "")
        node.machine.run("systemctl", "reset-failed", UNIT)
        node.machine.run("systemctl", "start", UNIT)
        node.wait_until_watching(BINDS)

    def test_events_that_could_not_be_posted_outlive_an_upgrade(
        self, node: PackagedNode, packages: Packages
    ) -> None:
        config = node.machine.output("cat", CONFIG)
        urls = node.do("serve_cluster")
        node.write(
            CONFIG,
            f"kubelet: {{url: {urls['kubelet']}}}\napiserver: {{url: {urls['apiserver']}}}\n",
        )
        node.machine.run("systemctl", "restart", UNIT)
        node.wait_until_watching(BINDS)
        crash(node, "one")
        assert node.reads("one")
        node.wait_until_watching(BINDS)
        before = node.pid
        node.install(packages.deb, "--reinstall", "-o", "Dpkg::Options::=--force-confold")
        node.wait_until_up(besides=before)
        assert node.do("events") == []
        node.do("let_api_answer")
        node.machine.wait_for(lambda: "FuseMountRecovered" in node.do("events"), 90.0)
        node.write(CONFIG, config + "\n")
        node.machine.run("systemctl", "restart", UNIT)
        node.wait_until_watching(BINDS)

    def test_downgrade_keeps_what_was_learned(self, node: PackagedNode, packages: Packages) -> None:
        before = node.pid
        node.do("kill", name="two")
        with nothing_moved(node):
            options = ("--allow-downgrades", "-o", "Dpkg::Options::=--force-confold")
            node.install(packages.old_deb, *options)
            node.wait_until_up(besides=before)
        assert node.machine.output("fusewatchd", "--version") == f"fusewatchd {OLD_VERSION}"
        node.do("restart", name="two")
        assert node.reads("two")
        node.wait_until_watching(BINDS)

    def test_removal_keeps_configuration_and_what_was_learned(self, node: PackagedNode) -> None:
        before = FILES[node.machine.name]
        node.machine.run("systemctl", "stop", UNIT)
        node.machine.run("systemctl", "start", SOCKET)
        assert node.metric("fusewatchd_build_info") == 1
        with nothing_moved(node):
            node.machine.run("apt-get", "remove", "--yes", "fusewatchd")
        assert node.machine.run("systemctl", "is-active", SOCKET, check=False).returncode
        assert node.processes() == []
        assert not node.machine.path("/run/fusewatchd").exists()
        assert node.machine.run("systemctl", "is-active", UNIT, check=False).stdout == "inactive\n"
        assert {p for p in node.files() - before if not p.startswith("/var/lib/fusewatchd")} == {
            "/etc/default/fusewatchd",
            "/etc/fusewatchd",
            CONFIG,
            # Debian forgets whether a service is enabled at the purge only.
            f"/etc/systemd/system/multi-user.target.wants/{UNIT}",
        }
        assert node.machine.path("/var/lib/fusewatchd/state.json").exists()
        assert node.reads("one")

    def test_purge_leaves_nothing(self, node: PackagedNode) -> None:
        with nothing_moved(node):
            node.machine.run("apt-get", "purge", "--yes", "fusewatchd")
        assert node.files() == FILES[node.machine.name]
        assert node.reads("one")
        assert node.reads("two")


class TestBookworm(Life):
    suite = "bookworm"


class TestTrixie(Life):
    suite = "trixie"
