"""Switching recovery off and on while the daemon runs, and what a reload takes over."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from typing import Any

import pytest

from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.cluster.loopback import free_port
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodMount, PodVolume
from fusewatchd.demo.node.sources import Source
from tests.lab import in_lab, pod_with_container

pytestmark = pytest.mark.kernel

DEADLINE = 10.0
TAKEN_OVER = "configuration reloaded"
REFUSED = "configuration not reloaded, the old one stays"
STATE_IS_WRITTEN = 0.8
"""After this many seconds what changed is on the disk."""


class Configured:
    """A daemon with a configuration file that changes."""

    def __init__(self, node: DemoNode, text: str, **settings: str) -> None:
        self._file = os.path.join(node.lab, "fusewatchd.yaml")
        self._write(text)
        values = {name.replace("__", "."): value for name, value in settings.items()}
        self.daemon = DaemonProcess(node, config=self._file, settings=values)

    def _write(self, text: str) -> None:
        with open(self._file, "w", encoding="utf-8") as file:
            file.write(text)

    def reload(self, text: str, expected: str = TAKEN_OVER) -> None:
        """Change the file, send SIGHUP and wait until the daemon has answered in its log."""
        before = self.daemon.log().count(expected)
        self._write(text)
        os.kill(self.daemon.pid, signal.SIGHUP)
        end = time.monotonic() + DEADLINE
        while self.daemon.log().count(expected) == before:
            assert time.monotonic() < end, self.daemon.log()
            time.sleep(0.01)


def crash(source: Source) -> None:
    source.kill()
    source.restart()


def refusals(document: Any) -> dict[str, str]:
    return {bind["kind"]: bind["refusal"] for bind in document["binds"]}


def wait_for_refusals(daemon: DaemonProcess, expected: dict[str, str | None]) -> Any:
    return daemon.wait_for(lambda d: refusals(d) == expected, DEADLINE)


OFF = {"publish": "disabled", "container": "disabled"}
EXCLUDED = "recovery: {exclude: {volumes: [v]}}\n"


@in_lab(timeout=90)
def test_a_reload_switches_recovery_off_and_on(node: DemoNode) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "web")
    configured = Configured(node, "")
    with configured.daemon as daemon:
        daemon.wait_until_watching(2)
        for _ in range(2):
            configured.reload(EXCLUDED)
            crash(source)
            document = wait_for_refusals(daemon, OFF)
            for bind in document["binds"]:
                assert bind["evidence"].endswith("; recovery.exclude.volumes has v")
            with pytest.raises(OSError):
                container.read("/data/hello")
            # What was learned of the source while all was well is still known.
            configured.reload("")
            container.wait_until_readable("/data/hello", DEADLINE)
            daemon.wait_until_watching(2)
        told = [line for line in daemon.log().splitlines() if "reason=disabled" in line]
        assert len(told) == 2


@in_lab(timeout=90)
def test_a_bad_file_changes_nothing_and_is_told(node: DemoNode) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "web")
    configured = Configured(node, EXCLUDED)
    with configured.daemon as daemon:
        daemon.wait_until_watching(2)
        crash(source)
        wait_for_refusals(daemon, OFF)
        for bad in (
            "recovery: {mode: never}",
            "recovery: [",
            "recovery: {exclude: {namespaces: [a]}}",
            "recovery: {exclude: {volumes: [v], volume: [w]}}",
        ):
            configured.reload(bad, REFUSED)
            assert refusals(daemon.status()) == OFF
        assert "expected recover or report, found never" in daemon.log()
        assert "recovery.exclude.namespaces: needs kubelet.url" in daemon.log()
        assert "did you mean volumes?" in daemon.log()
        configured.reload("")
        container.wait_until_readable("/data/hello", DEADLINE)


@in_lab(timeout=60)
def test_what_needs_a_restart_is_said_and_the_rest_is_taken_over(node: DemoNode) -> None:
    address = f"127.0.0.1:{free_port()}"
    configured = Configured(node, "log: {level: warning}\nweb: {listen_address: ''}\n")
    del configured.daemon.values["web.listen_address"]
    with configured.daemon as daemon:
        assert " started " not in daemon.log()
        changed = f"log: {{level: debug}}\nweb: {{listen_address: '{address}'}}\nsockets: [/a/*]\n"
        configured.reload(changed)
        (line,) = [x for x in daemon.log().splitlines() if "needs a restart" in x]
        assert 'keys="sockets web.listen_address"' in line
        # As long as it differs from what runs, each reload says so.
        configured.reload(changed)
        assert daemon.log().count("needs a restart") == 2
        configured.reload("web: {listen_address: ''}\n")
        assert daemon.log().count("needs a restart") == 2


@in_lab(timeout=60)
def test_what_is_watched_changes_with_a_reload(node: DemoNode) -> None:
    pod_with_container(node, node.add_source("one"), "web")
    configured = Configured(node, "{look_seconds: 3600.0, ignore_fs_types: [fuse.demofs]}")
    with configured.daemon as daemon:
        assert daemon.status()["binds"] == []
        configured.reload("{look_seconds: 0.5, ignore_fs_types: [fuse.lxcfs]}")
        daemon.wait_until_watching(2)


@in_lab(timeout=60)
def test_without_a_file_there_is_nothing_to_reload(node: DemoNode) -> None:
    with DaemonProcess(node) as daemon:
        os.kill(daemon.pid, signal.SIGHUP)
        end = time.monotonic() + DEADLINE
        while "nothing to reload" not in daemon.log():
            assert time.monotonic() < end
            time.sleep(0.01)


@in_lab(timeout=90)
def test_back_off_and_outage_go_on_over_a_reload(node: DemoNode) -> None:
    source = node.add_source("one", files={"hello": "one", "part/hello": "part"})
    mounts = [PodMount("v", "/data", sub_path="part")]
    pod = node.add_pod("web", [PodVolume("v", source)], mounts)
    configured = Configured(node, "recovery: {back_off_initial_seconds: 3600.0}")
    part, kept = os.path.join(source.backing, "part"), os.path.join(source.backing, "kept")
    with configured.daemon as daemon:
        daemon.wait_until_watching(2)
        source.kill()
        os.rename(part, kept)
        source.restart()
        failed = daemon.wait_for(lambda d: any(b["failures"] for b in d["binds"]), DEADLINE)
        os.rename(kept, part)
        for _ in range(3):
            configured.reload("recovery: {back_off_initial_seconds: 3600.0, mode: recover}")
        document = daemon.status()
        (before,) = [b for b in failed["binds"] if b["failures"]]
        (after,) = [b for b in document["binds"] if b["failures"]]
        assert (after["failures"], after["phase"]) == (1, "cooldown")
        assert after["last_attempt"] == before["last_attempt"]
        (outage,) = document["incidents"]
        assert outage["noticed_at"][:19] == failed["incidents"][0]["noticed_at"][:19]
        assert after["mount_point"] == pod.subpath_path(mounts[0])


@pytest.mark.slow
@in_lab(timeout=110)
def test_reloads_in_the_middle_of_recoveries_lose_nothing(node: DemoNode) -> None:
    source = node.add_source("one")
    containers = [pod_with_container(node, source, f"p{n}")[1] for n in range(20)]
    configured = Configured(node, "")
    with configured.daemon as daemon:
        daemon.wait_until_watching(40)
        for _ in range(5):
            source.kill()
            source.unmount()
            source.launch()
            for number in range(10):
                configured.reload("" if number % 2 else EXCLUDED)
            source.wait_ready()
            configured.reload("")
            for container in containers:
                container.wait_until_readable("/data/hello", DEADLINE)
            document = daemon.wait_until_watching(40)
            assert all(bind["depth"] == 1 for bind in document["binds"])


# ------------------------------------------------------------------ what the kubelet tells


@pytest.mark.slow
@in_lab(timeout=90)
def test_a_pod_switches_itself_off_by_annotation(node: DemoNode) -> None:
    source = node.add_source("one")
    volumes, mounts = [PodVolume("v", source)], [PodMount("v", "/data")]
    notes = {"fusewatchd.io/recovery": "disabled"}
    off = node.add_pod("off", volumes, mounts, annotations=notes)
    left_alone = node.start_container(off)
    _, recovered = pod_with_container(node, source, "on")
    with DemoKubelet(node.pod_list) as kubelet:
        settings = {"kubelet.url": kubelet.url, "kubelet.refresh_seconds": "0.2"}
        with DaemonProcess(node, settings=settings) as daemon:
            daemon.wait_for(lambda d: d["pods_known"] and d["totals"]["verdicts"]["healthy"] == 4)
            crash(source)
            recovered.wait_until_readable("/data/hello", DEADLINE)
            document = daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == 2)
            stale = [b for b in document["binds"] if b["verdict"] == "stale"]
            assert {b["refusal"] for b in stale} == {"disabled"}
            assert all(b["evidence"].endswith("fusewatchd.io/recovery: disabled") for b in stale)
            # The others' outage is over, and said to be.
            daemon.wait_for(lambda d: not d["incidents"])
            assert "recovered 2 mounts" in daemon.log()

            # Neither a restart nor a kubelet that does not answer switches it on.
            time.sleep(STATE_IS_WRITTEN)
            kubelet.status = 503
            daemon.kill()
            daemon.start()
            document = daemon.wait_for(lambda d: d["totals"]["verdicts"]["healthy"] == 2)
            stale = [b for b in document["binds"] if b["verdict"] == "stale"]
            assert {b["refusal"] for b in stale} == {"disabled"}
            assert document["pods_known"] is False
            with pytest.raises(OSError):
                left_alone.read("/data/hello")

            kubelet.status = 200
            off.annotations = {}
            left_alone.wait_until_readable("/data/hello", DEADLINE)


@in_lab(timeout=90)
def test_containers_alone_are_switched_off_by_annotation(node: DemoNode) -> None:
    source = node.add_source("one")
    notes = {"fusewatchd.io/containers": "disabled"}
    pod = node.add_pod("web", [PodVolume("v", source)], [PodMount("v", "/data")], annotations=notes)
    container = node.start_container(pod)
    with (
        DemoKubelet(node.pod_list) as kubelet,
        DaemonProcess(node, settings={"kubelet.url": kubelet.url}) as daemon,
    ):
        daemon.wait_for(lambda d: d["pods_known"] and d["totals"]["verdicts"]["healthy"] == 2)
        crash(source)
        wait_for_refusals(daemon, {"publish": None, "container": "disabled"})
        with pytest.raises(OSError):
            container.read("/data/hello")


@pytest.mark.slow
@in_lab(timeout=90)
def test_namespaces_wait_for_the_kubelet_and_nothing_else_does(node: DemoNode) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "web")
    with DemoKubelet(node.pod_list) as kubelet:
        kubelet.status = 503
        configured = Configured(
            node, "recovery: {exclude: {namespaces: [ml]}}", kubelet__url=kubelet.url
        )
        with configured.daemon as daemon:
            daemon.wait_until_watching(2)
            crash(source)
            unknown = dict.fromkeys(OFF, "owner_unknown")
            wait_for_refusals(daemon, unknown)
            configured.reload("recovery: {exclude: {drivers: [other]}}")
            container.wait_until_readable("/data/hello", DEADLINE)
            configured.reload("recovery: {exclude: {namespaces: [ml]}}")
            crash(source)
            wait_for_refusals(daemon, unknown)
            kubelet.status = 200
            container.wait_until_readable("/data/hello", DEADLINE)
            configured.reload("recovery: {exclude: {namespaces: [ml, d*]}}")
            crash(source)
            wait_for_refusals(daemon, OFF)


@pytest.mark.slow
@in_lab(timeout=90)
def test_another_kubelet_is_asked_after_a_reload(node: DemoNode) -> None:
    source = node.add_source("one")
    pod_with_container(node, source, "web")
    with DemoKubelet(node.pod_list) as kubelet:
        configured = Configured(node, f"kubelet: {{url: 'http://127.0.0.1:{free_port()}'}}")
        with configured.daemon as daemon:
            daemon.wait_for(lambda d: [gap["source"] for gap in d["gaps"]] == ["kubelet"])
            configured.reload("")
            daemon.wait_for(lambda d: not d["gaps"])
            configured.reload(f"kubelet: {{url: '{kubelet.url}'}}")
            daemon.wait_for(lambda d: d["pods_known"] and d["binds"][0]["pod"]["name"] == "web")


@in_lab(timeout=90)
def test_a_file_of_conf_d_counts_and_a_reload_sees_that_it_went(node: DemoNode) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "web")
    configured = Configured(node, "recovery: {mode: recover}\n")
    directory = os.path.join(node.lab, "conf.d")
    os.mkdir(directory)
    drop_in = os.path.join(directory, "50-dry.yaml")
    with open(drop_in, "w", encoding="utf-8") as file:
        file.write("recovery: {mode: report}\n")
    with configured.daemon as daemon:
        daemon.wait_until_watching(2)
        crash(source)
        wait_for_refusals(daemon, {"publish": "report_only", "container": "report_only"})
        os.rename(drop_in, f"{drop_in}.off")
        configured.reload("recovery: {mode: recover}\n")
        container.wait_until_readable("/data/hello", DEADLINE)
        os.rename(f"{drop_in}.off", f"{directory}/50-dry.yml")
        configured.reload("", REFUSED)
        assert "50-dry.yml: expected a name ending in .yaml" in daemon.log()


@in_lab(timeout=60)
def test_a_dry_run_changes_nothing_whatever_the_file_says(node: DemoNode) -> None:
    source = node.add_source("one")
    pod_with_container(node, source, "web")
    configured = Configured(node, "recovery: {mode: recover}\n")
    configured.daemon.flags.append("--dry-run")
    with configured.daemon as daemon:
        daemon.wait_until_watching(2)
        configured.reload("recovery: {mode: recover}\n")
        crash(source)
        wait_for_refusals(daemon, {"publish": "report_only", "container": "report_only"})
        assert daemon.status()["mode"] == "report"


@in_lab(timeout=60)
def test_the_result_of_a_reload_and_the_mode_are_metrics(node: DemoNode) -> None:
    address = f"127.0.0.1:{free_port()}"
    configured = Configured(node, "", web__listen_address=address)

    def shown() -> dict[str, str]:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))

    with configured.daemon as daemon:
        daemon.status()
        assert shown()["fusewatchd_config_last_reload_successful"] == "1.0"
        assert int(float(shown()["process_start_time_seconds"])) > 1_600_000_000
        configured.reload("recovery: {mode: never}", REFUSED)
        assert shown()["fusewatchd_config_last_reload_successful"] == "0.0"
        configured.reload("recovery: {mode: report}")
        daemon.wait_for(lambda d: d["mode"] == "report", DEADLINE)
        after = shown()
        assert after["fusewatchd_config_last_reload_successful"] == "1.0"
        assert after['fusewatchd_mode{mode="report"}'] == "1.0"
        assert after['fusewatchd_mode{mode="recover"}'] == "0.0"
