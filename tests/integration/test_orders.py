"""``pause``, ``resume`` and ``recover``: orders of root to the running daemon."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import time
from pathlib import Path

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodMount, PodVolume
from tests.lab import in_lab, pod_with_container, run_fusewatchd

pytestmark = pytest.mark.kernel

DEADLINE = 10.0


def order(daemon: DaemonProcess, *words: str) -> tuple[int, str, str]:
    done = run_fusewatchd(*words, "--set", f"runtime_dir={daemon.runtime_dir}")
    return done.returncode, done.stdout, done.stderr


@in_lab(timeout=120)
def test_a_pause_changes_nothing_survives_a_restart_and_ends(node: DemoNode) -> None:
    source = node.add_source("one")
    pod, container = pod_with_container(node, source, "web")
    daemon = DaemonProcess(node)
    with daemon:
        daemon.wait_until_watching(2)
        status, said, _ = order(daemon, "pause", "1h")
        assert (status, said.count("\n")) == (0, 1)
        until = re.search(r"paused until (\S+):", said)
        assert until is not None
        source.kill()
        source.restart()
        paused = {"publish": "paused", "container": "paused"}
        document = daemon.wait_for(
            lambda d: {b["kind"]: b["refusal"] for b in d["binds"]} == paused, DEADLINE
        )
        assert document["mode"] == "paused"
        assert document["paused_until"] == until[1]
        text = order(daemon, "status")[1]
        assert f"Paused until {until[1]}" in text
        assert "fusewatchd resume" in text
        status, said, _ = order(daemon, "recover", pod.uid)
        assert status == 1
        assert "refused for 2 mounts: paused" in said
    assert daemon.log().count("recovery is paused until") == 1
    with daemon:
        document = daemon.wait_for(lambda d: d["paused_until"] == until[1], DEADLINE)
        assert document["mode"] == "paused"
        assert daemon.log().count("recovery is paused until") == 2
        with pytest.raises(OSError):
            container.read("/data/hello")
        assert order(daemon, "resume") == (0, "recovery is resumed\n", "")
        container.wait_until_readable("/data/hello", DEADLINE)
        assert order(daemon, "resume") == (0, "it was not paused\n", "")
        assert daemon.status()["paused_until"] is None
    with daemon:
        assert daemon.wait_until_watching(2)["paused_until"] is None


@in_lab(timeout=90)
def test_a_pause_that_nobody_ends_is_over_in_time(node: DemoNode) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "web")
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(2)
        assert order(daemon, "pause", "2s")[0] == 0
        source.kill()
        source.restart()
        # No mount, server or file wakes the daemon at the end: only its own clock.
        container.wait_until_readable("/data/hello", DEADLINE)
        assert "recovery is resumed: the pause is over" in daemon.log()
        assert not os.path.exists(os.path.join(daemon.values["state_dir"], "pause.json"))


@in_lab(timeout=90)
def test_recover_tries_now_what_waits_for_a_retry(node: DemoNode) -> None:
    source = node.add_source("one", files={"hello": "one", "part/hello": "part"})
    pod = node.add_pod("web", [PodVolume("v", source)], [PodMount("v", "/data", sub_path="part")])
    part, kept = Path(source.backing, "part"), Path(source.backing, "kept")
    settings = {
        "recovery.back_off_initial_seconds": "3600",
        "recovery.back_off_max_seconds": "3600",
    }
    with DaemonProcess(node, settings=settings) as daemon:
        daemon.wait_until_watching(2)
        assert order(daemon, "recover", pod.uid)[:2] == (
            0,
            "2 mounts already healthy\n",
        )
        source.kill()
        part.rename(kept)
        source.restart()
        daemon.wait_for(
            lambda d: any(b["refusal"] == "subpath_missing" for b in d["binds"]), DEADLINE
        )
        # It is tried at once, and fails for the same reason.
        status, said, _ = order(daemon, "recover", pod.uid)
        assert status == 1
        assert "subpath_missing" in said
        kept.rename(part)
        status, said, _ = order(daemon, "recover", pod.uid)
        assert (status, said.splitlines()[0]) == (0, "tried now: 1 of 1 recovered")
        daemon.wait_until_watching(2)


@in_lab(timeout=60)
def test_orders_that_cannot_be_carried_out(node: DemoNode) -> None:
    daemon = DaemonProcess(node)
    with daemon:
        daemon.status()
        status, _, said = order(daemon, "recover", "shop/none")
        assert status == 2
        assert said == "fusewatchd watches no mount of this name: see 'fusewatchd status'\n"
        for duration in ("x", "0s", "8d", "1", "1h-"):
            status, _, said = order(daemon, "pause", duration)
            assert status == 2
            assert said.startswith("pause: expected a duration")
    status, _, said = order(daemon, "pause", "1h")
    assert status == 2
    assert said.startswith("no fusewatchd is running")


@in_lab(timeout=60)
def test_only_root_is_obeyed_and_no_client_holds_up_another(node: DemoNode) -> None:
    with DaemonProcess(node) as daemon:
        daemon.status()
        path = os.path.join(daemon.runtime_dir, "control.sock")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        # Even where the mode was changed.
        os.chmod(path, 0o666)
        os.chmod(daemon.runtime_dir, 0o755)
        assert said_by_nobody(path) == b""
        assert daemon.status()["paused_until"] is None
        with connected(path) as idle, connected(path):
            end = time.monotonic() + DEADLINE
            assert order(daemon, "resume")[0] == 0
            assert time.monotonic() < end
            idle.settimeout(DEADLINE)
            assert idle.recv(10) == b""
        for odd in (b"{", b"[" * 50_000, b'"x"', b'{"order": "pause", "seconds": true}', b"\xff"):
            with connected(path) as client:
                client.send(odd)
                assert json.loads(client.recv(1 << 16))["ok"] is False
        for seconds in ("1e999", "NaN", "-1", "0"):
            with connected(path) as client:
                client.send(f'{{"order": "pause", "seconds": {seconds}}}'.encode())
                assert json.loads(client.recv(1 << 16))["ok"] is False
        assert daemon.status()["paused_until"] is None


def connected(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.settimeout(DEADLINE)
    client.connect(path)
    return client


def said_by_nobody(path: str) -> bytes:
    """Return what the daemon answers to another user who orders a pause."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with connected(path) as client:
                try:
                    client.send(b'{"order": "pause", "seconds": 3600}')
                    os.write(writer, client.recv(1 << 16))
                except (BrokenPipeError, ConnectionResetError):
                    pass
        except OSError as exc:
            os.write(writer, repr(exc).encode())
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = file.read()
    os.waitpid(child, 0)
    return answer
