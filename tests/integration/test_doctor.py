"""``fusewatchd doctor`` on a node where everything is real: what it finds, and what it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

import pytest

from fusewatchd.demo.cluster.apiserver import DemoApiServer
from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.timeouts import patient
from fusewatchd.linux import syscalls
from tests.lab import fusewatchd_command, in_lab, pod_with_container
from tests.unit.doctor.test_checks import FLUID, jwt

pytestmark = pytest.mark.kernel

Findings = dict[str, tuple[str, str]]
OF_THE_MACHINE = {"propagation", "fusectl", "user"}
"""These are as they are where the test runs."""


class Patient:
    """A node with its kubelet and API server, and the doctor's command line for it."""

    def __init__(self, node: DemoNode, stack: ExitStack) -> None:
        self.node = node
        self.token = os.path.join(node.lab, "token")
        self.renew(time.time() + 7200)
        secret = self.secret
        self.kubelet = stack.enter_context(DemoKubelet(node.pod_list, token=secret))
        self.apiserver = stack.enter_context(DemoApiServer(token=secret))
        self.settings = {
            "kubelet.url": self.kubelet.url,
            "kubelet.token_file": self.token,
            "apiserver.url": self.apiserver.url,
            "apiserver.token_file": self.token,
            "web.listen_address": '""',
        }
        self.daemon = DaemonProcess(node, settings=self.settings)

    def renew(self, expires_at: float) -> None:
        self.secret = jwt({"exp": expires_at})
        with open(self.token, "w") as file:
            file.write(self.secret)
        os.chmod(self.token, 0o600)

    def say(self, *more: str, lead: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        sets = [word for k, v in self.daemon.values.items() for word in ("--set", f"{k}={v}")]
        words = [*lead, *fusewatchd_command("doctor", *sets, *more)]
        return subprocess.run(
            words, capture_output=True, text=True, env=python_environment(),
            timeout=patient(60), check=False,
        )  # fmt: skip

    def examine(self, *more: str, lead: tuple[str, ...] = ()) -> Findings:
        """Return level and text by check; of several of one name the worst."""
        done = self.say("--json", *more, lead=lead)
        assert done.stdout, done.stderr
        answer: Any = json.loads(done.stdout)
        found: Findings = {}
        for finding in answer["findings"]:
            if finding["check"] not in found or finding["level"] != "ok":
                found[finding["check"]] = (finding["level"], finding["text"])
        assert done.returncode == int(answer["totals"]["fail"] > 0)
        return found


def unwell(found: Findings) -> set[str]:
    return {check for check, (level, _) in found.items() if level != "ok"}


@pytest.mark.slow
@in_lab(timeout=100)
def test_a_node_in_good_health_and_one_that_is_not(node: DemoNode) -> None:
    source = node.add_source("one")
    pod_with_container(node, source, "web")
    with ExitStack() as stack:
        patient = Patient(node, stack)
        without = patient.examine()
        assert unwell(without) <= {"daemon", *OF_THE_MACHINE}
        assert without["daemon"] == ("warn", "not running")
        assert without["pod demo/web"] == (
            "ok",
            f"would be recovered (1 on the host, 1 in containers) from {source.path}",
        )
        with patient.daemon as daemon:
            daemon.wait_until_watching(2)
            found = patient.examine()
            assert unwell(found) <= OF_THE_MACHINE
            assert found["daemon"] == ("ok", f"running, process {daemon.pid}")
            assert found["kubelet"] == ("ok", f"{patient.kubelet.url} tells of 1 pods")
            assert found["kubelet token"][1] == f"{patient.token} is good for 120 minutes"
            assert "may create events.events.k8s.io, patch events" in found["API server"][1]
            source.kill()
            daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == 2)
            broken = patient.examine()
            assert broken["pod demo/web"] == ("fail", "2 of 2 mounts are stale: source_missing")
            text = patient.say().stdout
            assert len(text.splitlines()) < 40
            assert "fail  pod demo/web     2 of 2 mounts are stale: source_missing\n" in text
            assert "→ its server was not mounted again" in text
            source.restart()
            daemon.wait_until_watching(2)


@pytest.mark.slow
@in_lab(timeout=110)
def test_each_check_fails_for_real(node: DemoNode) -> None:
    source = node.add_source("one")
    pod_with_container(node, source, "web")
    with ExitStack() as stack:
        patient = Patient(node, stack)
        healthy = unwell(patient.examine())
        os.chmod(patient.token, 0o644)
        found = patient.examine()
        assert found["kubelet token"][1].endswith("others can read it (mode 0644); chmod 600")
        assert found["kubelet"][0] == found["API server"][0] == "fail"

        patient.renew(time.time() - 100)
        found = patient.examine()
        assert found["apiserver token"][0] == "fail"
        assert "401" in found["kubelet"][1]

        patient.kubelet.token = patient.apiserver.token = patient.secret
        patient.kubelet.status = 403
        patient.apiserver.denied = {("patch", "events.events.k8s.io")}
        patient.apiserver.ahead_seconds = 90.0
        found = patient.examine()
        assert "403" in found["kubelet"][1]
        assert found["API server"][1].endswith("may not patch events.events.k8s.io")
        assert found["clock"][0] == "fail"

        patient.kubelet.stop()
        found = patient.examine("--set", "kubelet.root=/nowhere", "--set", "recovery.mode=report")
        assert found["kubelet root"][0] == "fail"
        assert "refused" in found["kubelet"][1]

        found = patient.examine("--set", "recovery.mode=report")
        assert found[next(check for check in found if check.startswith("pod "))][0] == "warn"
        found = patient.examine("--set", "web.listen_address=0.0.0.0:9847")
        assert found["metrics"] == ("warn", "whoever reaches 0.0.0.0:9847 can read them")
        assert "metrics" not in healthy


@pytest.mark.slow
@in_lab(timeout=100)
def test_limits_privileges_and_others_who_repair(node: DemoNode) -> None:
    source = node.add_source("one")
    for name in ("a", "b", "c"):
        pod_with_container(node, source, name)
    with ExitStack() as stack:
        patient = Patient(node, stack)
        # A user namespace of its own has limits of its own, and nobody else's privileges.
        few = 'echo 3 >/proc/sys/user/max_inotify_watches; exec "$@"'
        found = patient.examine(
            lead=("unshare", "--user", "--map-root-user", "sh", "-c", few, "sh")
        )
        assert found["inotify"][0] == "warn"
        none = few.replace(
            "3 >/proc/sys/user/max_inotify_watches", "0 >/proc/sys/user/max_inotify_instances"
        )
        found = patient.examine(
            lead=("unshare", "--user", "--map-root-user", "sh", "-c", none, "sh")
        )
        assert found["inotify"][0] == "warn"
        assert "user.max_inotify_instances (0)" in found["inotify"][1]

        found = patient.examine(lead=("unshare", "--mount"))
        assert found["namespace"][0] == "fail"

        found = patient.examine(
            lead=("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin")
        )
        assert found["privileges"] == ("fail", "missing: CAP_SYS_ADMIN")
        assert found["kernel"][0] == "fail"

        other = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)", *FLUID.split()]
        )
        stack.callback(other.wait)
        stack.callback(other.kill)
        found = patient.examine()
        assert found["recoverers"] == (
            "warn",
            f"Fluid's FuseRecovery is on (process {other.pid}): two repair the same binds",
        )


@pytest.mark.parametrize(("is_shared", "level"), [(False, "warn"), (True, "ok")])
@in_lab(timeout=60)
def test_propagation_of_the_kubelets_directory(node: DemoNode, is_shared: bool, level: str) -> None:
    root = node.kubelet_root
    syscalls.mount(root, root, None, syscalls.MS_BIND)
    syscalls.mount(None, root, None, syscalls.MS_SHARED if is_shared else syscalls.MS_PRIVATE)
    with ExitStack() as stack:
        found = Patient(node, stack).examine()
    assert found["propagation"][0] == level
    syscalls.umount2(root, syscalls.MNT_DETACH)


def test_where_there_is_no_kubernetes() -> None:
    done = subprocess.run(
        fusewatchd_command("doctor", "--set", "kubelet.root=/nowhere", "--set", "runtime_dir=/nowhere"),
        capture_output=True, text=True, env={**python_environment(), "COLUMNS": "80"},
        timeout=patient(60), check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == ""
    assert "fail  kubelet root     no directory with pods was found" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
