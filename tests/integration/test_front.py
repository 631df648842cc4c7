"""The process that talks with others: who it is, what its end costs, what it is given and when."""

from __future__ import annotations

import os
import signal
import stat
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from fusewatchd.demo.cluster.apiserver import DemoApiServer
from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.cluster.loopback import free_port
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.timeouts import patient
from fusewatchd.workers.privileges import PRIVILEGES, Kind
from tests.certificates import make_authority, make_certificate
from tests.integration.test_process_rights import status_of
from tests.lab import in_lab, pod_with_container
from tests.waiting import wait_until

pytestmark = pytest.mark.kernel

DEADLINE = 20.0
NAME = "fusewatchd-fron"
"""``comm`` of a front, proc_pid_comm(5)."""


def fronts() -> list[int]:
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            status = status_of(pid)
        except OSError:
            continue
        if status["Name"] == NAME and not status["State"].startswith("Z"):
            found.append(pid)
    return found


def the_front(other_than: int = 0) -> int:
    wait_until(lambda: [p for p in fronts() if p != other_than], lambda: "no front", DEADLINE)
    (pid,) = (p for p in fronts() if p != other_than)
    return pid


def gaps(document: Any) -> list[str]:
    """Return what cannot be seen for want of a front, or of what it asks."""
    return [g["source"] for g in document["gaps"] if g["source"] in ("front", "kubelet")]


def page(address: str, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=patient(DEADLINE)) as answer:
        return str(answer.read().decode())


def metric(address: str, name: str) -> float:
    (line,) = (line for line in page(address).splitlines() if line.startswith(f"{name} "))
    return float(line.split()[1])


@in_lab(timeout=60)
def test_it_is_another_user_without_rights_and_holds_nothing_of_the_node(node: DemoNode) -> None:
    address = f"127.0.0.1:{free_port()}"
    with DaemonProcess(node, settings={"web.listen_address": address}):
        assert "fusewatchd_build_info" in page(address)
        pid = the_front()
        status = status_of(pid)
        assert set(status["Uid"].split()) == set(status["Gid"].split()) != {"0"}
        assert status["Groups"].strip() == ""
        assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        limit = str(PRIVILEGES[Kind.FRONT].address_space)
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("Max address space"))
        assert line.split()[3:5] == [limit, limit]
        assert " rw-s " not in Path(f"/proc/{pid}/maps").read_text(), "memory of the workers"
        for name in os.listdir(f"/proc/{pid}/fd"):
            mode = os.stat(f"/proc/{pid}/fd/{name}").st_mode
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            is_stream = stat.S_ISSOCK(mode) or target.startswith(("anon_inode:", "/memfd:"))
            assert int(name) <= 2 or is_stream, target


@in_lab(timeout=120)
def test_killed_again_and_again_it_costs_no_recovery_and_comes_back(node: DemoNode) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "web")
    address = f"127.0.0.1:{free_port()}"
    with DemoKubelet(node.pod_list) as kubelet, DemoApiServer() as apiserver:
        settings = {
            "kubelet.url": kubelet.url,
            "apiserver.url": apiserver.url,
            "web.listen_address": address,
        }
        with DaemonProcess(node, settings=settings) as daemon:
            daemon.wait_for(lambda d: d["pods_known"] and d["totals"]["verdicts"]["healthy"] == 2)
            asked, last = len(kubelet.requests), 0
            for _ in range(4):
                last = the_front(last)
                os.kill(last, signal.SIGKILL)
                source.kill()
                source.restart()
                container.wait_until_readable("/data/hello", DEADLINE)
            document = daemon.wait_until_watching(2)
            assert {bind["pod"]["name"] for bind in document["binds"]} == {"web"}
            assert metric(address, "fusewatchd_front_ends_total") == 4
            daemon.wait_for(lambda d: not gaps(d))
            wait_until(lambda: len(kubelet.requests) > asked, daemon.log, DEADLINE)
            # What was to be said while there was nobody to say it is said.
            wait_until(
                lambda: {"FuseMountStale", "FuseMountRecovered"} <= set(apiserver.reasons()),
                daemon.log,
                DEADLINE,
            )
            assert "can see again: front" in daemon.log()


@in_lab(timeout=60)
def test_while_there_is_none_it_is_a_gap_and_clients_wait(node: DemoNode) -> None:
    pod_with_container(node, node.add_source("one"), "web")
    address = f"127.0.0.1:{free_port()}"
    with DaemonProcess(node, settings={"web.listen_address": address}) as daemon:
        last = 0
        for _ in range(4):  # so that the rest before the next one is long
            last = the_front(last)
            os.kill(last, signal.SIGKILL)
            seen = daemon.wait_for(lambda d: gaps(d) == ["front"])
        assert "no process talks with others: it ended" in str(seen["gaps"])
        assert page(address, "/healthz").startswith("last cycle ")
        daemon.wait_for(lambda d: not gaps(d))


@in_lab(timeout=60)
def test_tokens_and_authorities_that_change_are_handed_over_again(node: DemoNode) -> None:
    pod_with_container(node, node.add_source("one"), "web")
    directory = Path(node.lab)
    for name in ("one", "other"):
        (directory / name).mkdir()
        authority = make_authority(directory / name)
        make_certificate(authority, "server", "server", "IP:127.0.0.1")
    token, ca = directory / "token", directory / "ca.crt"

    def trust(name: str, secret: str) -> None:
        for path, text in ((ca, (directory / name / "ca.crt").read_text()), (token, secret)):
            fresh = path.with_suffix(".new")
            fresh.write_text(text)
            fresh.chmod(0o600)
            fresh.rename(path)

    trust("one", "first")
    certificate = str(directory / "one" / "server.pem")
    with DemoKubelet(node.pod_list, token="first", certificate=certificate) as kubelet:
        settings = {
            "kubelet.url": kubelet.url,
            "kubelet.server_name": "127.0.0.1",
            "kubelet.token_file": str(token),
            "kubelet.ca_file": str(ca),
            "kubelet.refresh_seconds": "0.3",
        }
        with DaemonProcess(node, settings=settings) as daemon:
            daemon.wait_for(lambda d: d["pods_known"] and not gaps(d))
            kubelet.token = "second"
            daemon.wait_for(lambda d: "401" in str(d["gaps"]))
            trust("one", "second")
            daemon.wait_for(lambda d: not gaps(d))
            trust("other", "second")
            daemon.wait_for(lambda d: "certificate" in str(d["gaps"]))
            trust("one", "second")
            daemon.wait_for(lambda d: not gaps(d))
            # Who may read a file is looked at by root, and the file is named as root knows it.
            token.chmod(0o644)
            fresh = token.with_suffix(".new")
            fresh.write_text("third")
            fresh.chmod(0o644)
            fresh.rename(token)
            daemon.wait_for(lambda d: f"{token}: others can read it" in str(d["gaps"]))
            assert not {"first", "second", "third"} & set(daemon.log().split())
            ca.write_text("none")
            token.chmod(0o600)
            daemon.wait_for(lambda d: f"{ca}: no usable certificates" in str(d["gaps"]))


@in_lab(timeout=60)
def test_a_web_configuration_that_becomes_wrong_outlives_a_front(node: DemoNode) -> None:
    pod_with_container(node, node.add_source("one"), "web")
    directory = Path(node.lab)
    authority = make_authority(directory)
    make_certificate(authority, "server", "server", "IP:127.0.0.1")
    (directory / "server.key").chmod(0o600)
    config = directory / "web.yml"
    good = "tls_server_config: {cert_file: server.crt, key_file: server.key}\n"
    config.write_text(good)
    config.chmod(0o600)
    address = f"127.0.0.1:{free_port()}"
    settings = {"web.listen_address": address, "web.config_file": str(config)}

    def speaks_tls() -> bool:
        try:
            return bool(page(address)) and False
        except (urllib.error.URLError, OSError) as exc:
            return "Remote end closed" in str(exc) or "reset" in str(exc)

    with DaemonProcess(node, settings=settings) as daemon:
        wait_until(speaks_tls, daemon.log, DEADLINE)
        config.write_text("tls_server_config: {cert_file: web.yml, key_file: server.key}\n")
        wait_until(lambda: speaks_tls() and "web_config" in daemon.log(), daemon.log, DEADLINE)
        assert f"{directory}/web.yml, {directory}/server.key: no usable" in daemon.log()
        os.kill(the_front(), signal.SIGKILL)
        daemon.wait_for(lambda d: not gaps(d))
        wait_until(speaks_tls, daemon.log, DEADLINE)
        assert "the web pages are not served" not in daemon.log()


@in_lab(timeout=60)
def test_a_reload_asks_the_other_kubelet_by_the_same_front(node: DemoNode) -> None:
    pod_with_container(node, node.add_source("one"), "web")
    config = Path(node.lab) / "fusewatchd.yaml"
    with DemoKubelet(node.pod_list) as one, DemoKubelet(node.pod_list) as other:
        config.write_text(f"kubelet: {{url: '{one.url}', refresh_seconds: 0.3}}\n")
        config.chmod(0o600)
        with DaemonProcess(node, config=str(config)) as daemon:
            daemon.wait_for(lambda d: d["pods_known"])
            front = the_front()
            config.write_text(f"kubelet: {{url: '{other.url}', refresh_seconds: 0.3}}\n")
            os.kill(daemon.pid, signal.SIGHUP)
            wait_until(lambda: bool(other.requests), daemon.log, DEADLINE)
            asked = len(one.requests)
            daemon.wait_for(lambda d: d["pods_known"] and not gaps(d))
            time.sleep(1.0)
            assert len(one.requests) == asked
            assert the_front() == front


@in_lab(timeout=60)
def test_what_waits_is_said_before_the_daemon_ends(node: DemoNode) -> None:
    source = node.add_source("one")
    pod_with_container(node, source, "web")
    with DemoKubelet(node.pod_list) as kubelet, DemoApiServer() as apiserver:
        settings = {"kubelet.url": kubelet.url, "apiserver.url": apiserver.url}
        with DaemonProcess(node, settings=settings) as daemon:
            daemon.wait_for(lambda d: d["pods_known"] and d["totals"]["verdicts"]["healthy"] == 2)
            source.kill()
            wait_until(lambda: "event=stale" in daemon.log(), daemon.log, DEADLINE)
            began = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - began < patient(8)
            assert "FuseMountStale" in apiserver.reasons()
            assert not fronts()
