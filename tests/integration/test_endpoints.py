"""What the real daemon says at ``/healthz`` and ``/readyz``, and on sockets of systemd."""

from __future__ import annotations

import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from fusewatchd.demo.cluster.loopback import free_port
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.timeouts import patient
from fusewatchd.serve.listeners import listen_on, name_of
from tests.lab import fusewatchd_command, in_lab, pod_with_container, run_fusewatchd

pytestmark = pytest.mark.kernel

DEADLINE = 20.0


def said(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=patient(30)) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read().decode()


def wait_for(address: str, path: str, expected: tuple[int, str]) -> None:
    end = time.monotonic() + patient(DEADLINE)
    while said(address, path) != expected:
        assert time.monotonic() < end, said(address, path)
        time.sleep(0.05)


@in_lab(timeout=60)
def test_ready_means_that_everything_is_seen(node: DemoNode) -> None:
    source = node.add_source("one")
    pod_with_container(node, source, "p")
    address = f"127.0.0.1:{free_port()}"
    with DaemonProcess(node, settings={"web.listen_address": address}):
        wait_for(address, "/readyz", (200, "the node and its containers were looked at\n"))
        status, text = said(address, "/healthz")
        assert (status, text[:11]) == (200, "last cycle ")
    nowhere = {"web.listen_address": address, "kubelet.root": "/nowhere"}
    with DaemonProcess(node, settings=nowhere):
        wait_for(address, "/readyz", (503, "the kubelet's directory was not found\n"))
        assert said(address, "/healthz")[0] == 200


@in_lab(timeout=60)
def test_sockets_of_systemd_take_the_place_of_addresses(node: DemoNode) -> None:
    pod_with_container(node, node.add_source("one"), "p")
    daemon = DaemonProcess(node, settings={"web.listen_address": "127.0.0.1:1"})
    sets = [word for k, v in daemon.values.items() for word in ("--set", f"{k}={v}")]
    (listener,) = listen_on(["127.0.0.1:0"])
    start = 'exec 3<&"$1"; shift; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'
    command = fusewatchd_command("run", "--any-namespace", *sets)
    with listener:
        process = subprocess.Popen(
            ["bash", "-c", start, "sh", str(listener.fileno()), *command],
            pass_fds=[listener.fileno()],
            env=python_environment(),
        )
        try:
            # Asked before it listens: systemd holds the port all the time.
            assert said(name_of(listener), "/healthz")[0] in (200, 503)
            wait_for(
                name_of(listener), "/readyz", (200, "the node and its containers were looked at\n")
            )
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(patient(DEADLINE))


def test_config_check_reads_the_web_configuration_too(tmp_path: Path) -> None:
    web = tmp_path / "web.yml"
    web.write_text("basic_auth_users: {a: hunter2}\n")
    done = run_fusewatchd("config-check", "--set", f"web.config_file={web}")
    assert done.returncode == 2
    assert done.stderr == f"{web}: basic_auth_users.a: expected a bcrypt hash, $2y$10$…\n"


def test_addresses_may_be_a_list(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("web: {listen_address: ['127.0.0.1:9847', '[::1]:9847']}\n")
    assert run_fusewatchd("config-check", "--config", str(file)).returncode == 0
    file.write_text("web: {listen_address: ['127.0.0.1']}\n")
    done = run_fusewatchd("config-check", "--config", str(file))
    assert "web.listen_address: expected host:port with a port" in done.stderr
