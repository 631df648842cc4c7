"""The daemon between a kubelet and an API server that mean harm: recoveries go on, secrets stay."""

from __future__ import annotations

import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from fusewatchd.demo.cluster.loopback import free_port
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from tests.lab import in_lab, pod_with_container
from tests.rawserver import RawServer, Script, answer, later, sends, sends_once

pytestmark = pytest.mark.kernel

DEADLINE = 20.0
KUBELET_TOKEN = "token-of-the-kubelet"
API_TOKEN = "token-of-the-api-server"
MEMORY_KIB = 400 << 10
"""The daemon and what one answer of the largest kind takes, twice."""
HEAD = b"HTTP/1.1 200 OK\r\n"


def repeating(status: str, *fields: str) -> Callable[[RawServer], Script]:
    """A server that puts what it was sent, secrets included, wherever it can."""

    def script_of(server: RawServer) -> Script:
        def script(client: socket.socket) -> None:
            (secret,) = (
                line.partition(b":")[2].strip().decode()
                for line in server.received[-1].split(b"\r\n")
                if line.lower().startswith(b"authorization:")
            )
            body = json.dumps({"kind": "Status", "message": f"not this one: {secret}"})
            client.sendall(answer(body.encode(), *fields, status=f"{status} {secret}"))

        return script

    return script_of


def always(script: Script) -> Callable[[RawServer], Script]:
    return lambda server: script


BODY = b"[" + b" " * ((1 << 20) - 2) + b"]"
CASES: dict[str, tuple[Callable[[RawServer], Script], str]] = {
    "no end": (always(sends(HEAD + b"\r\n", BODY)), "2xx"),
    "many values": (
        always(later(lambda: sends_once(answer(b"[" + b"{}," * 5_000_000 + b"{}]")))),
        "2xx",
    ),
    "deep": (always(sends_once(answer(b"[" * 900_000))), "2xx"),
    "as much as may be": (
        always(later(lambda: sends_once(answer(b"[" + b'{"a":1},' * 499_000 + b"1]")))),
        "2xx",
    ),
    "compressed": (always(sends_once(answer(b"\x1f\x8b", "Content-Encoding: gzip"))), "2xx"),
    "wrong types": (always(sends_once(answer(b'{"kind": "PodList", "items": {"a": 1}}'))), "2xx"),
    "drip": (always(sends(HEAD + b"X: ", b"y", pause=0.01)), "error"),
    "fields": (always(sends(HEAD, b"X: y\r\n" * 1000)), "error"),
    "nonsense": (always(sends(os.urandom(1 << 16))), "error"),
    "not accepted": (repeating("401"), "4xx"),
    "not allowed": (repeating("403"), "4xx"),
    "too many": (repeating("429", "Retry-After: 99999999999"), "4xx"),
    "broken": (repeating("500", "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT"), "5xx"),
    "elsewhere": (repeating("302", "Location: http://127.0.0.1:1/"), "3xx"),
}

TAKEN = ("wrong types", "as much as may be")
"""As an answer to a post: whatever a server says with 200, it has taken the Event."""


def secret_file(node: DemoNode, name: str, secret: str) -> str:
    path = Path(node.lab, name)
    path.touch(mode=0o600)
    path.write_text(secret + "\n")
    return str(path)


def page(address: str, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=DEADLINE) as found:
            return str(found.read().decode())
    except urllib.error.HTTPError as exc:
        return exc.read().decode()


def everything_shown(daemon: DaemonProcess, address: str) -> str:
    """All that the daemon says or leaves where somebody could read it."""
    shown = [daemon.log(), json.dumps(daemon.status())]
    shown += [page(address, path) for path in ("/metrics", "/healthz", "/readyz", "/")]
    for name in ("cmdline", "environ", "comm"):
        shown.append(Path(f"/proc/{daemon.pid}/{name}").read_bytes().decode())
    for directory in (daemon.runtime_dir, daemon.values["state_dir"]):
        for file in Path(directory).iterdir():
            if file.is_file():
                shown.append(file.read_text())
    return "\n".join(shown)


def peak_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1])


def wait_for(condition: Callable[[], bool], daemon: DaemonProcess) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, daemon.log()
        time.sleep(0.05)


@pytest.mark.parametrize("how", CASES)
@pytest.mark.slow
@in_lab(timeout=120)
def test_recoveries_go_on_and_secrets_stay(node: DemoNode, how: str) -> None:
    script_of, code = CASES[how]
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "web")
    address = f"127.0.0.1:{free_port()}"
    with ExitStack() as servers:
        kubelet, apiserver = (
            servers.enter_context(RawServer(lambda client: None)) for _ in range(2)
        )
        pods = json.dumps(node.pod_list()).encode()
        kubelet.script, apiserver.script = sends_once(answer(pods)), script_of(apiserver)
        settings = {
            "kubelet.url": kubelet.url,
            "kubelet.token_file": secret_file(node, "kubelet.token", KUBELET_TOKEN),
            "kubelet.timeout_seconds": "1",
            "kubelet.refresh_seconds": "1",
            "apiserver.url": apiserver.url,
            "apiserver.token_file": secret_file(node, "api.token", API_TOKEN),
            "apiserver.timeout_seconds": "1",
            "web.listen_address": address,
            "log.level": "debug",
        }
        with DaemonProcess(node, settings=settings) as daemon:
            # Without a name no Event is posted, so there is one good answer.
            daemon.wait_for(lambda d: d["pods_known"] and d["totals"]["verdicts"]["healthy"] == 2)
            kubelet.script = script_of(kubelet)
            for _ in range(3):
                source.kill()
                source.restart()
                container.wait_until_readable("/data/hello", DEADLINE)
            before = 1.0 if code == "2xx" else 0.0  # the good one
            counted = f'fusewatchd_kubelet_requests_total{{code="{code}"}} {before}'
            wait_for(lambda: counted not in page(address, "/metrics").splitlines(), daemon)
            (gap,) = daemon.wait_for(lambda d: d["gaps"])["gaps"]
            assert gap["source"] == "kubelet"
            assert gap["reason"]
            wait_for(lambda: "cannot see: kubelet" in daemon.log(), daemon)
            wait_for(lambda: apiserver.received != [], daemon)
            if how not in TAKEN:
                wait_for(lambda: "events are not posted" in daemon.log(), daemon)
            assert f"Bearer {KUBELET_TOKEN}".encode() in kubelet.received[0]
            assert f"Bearer {API_TOKEN}".encode() in apiserver.received[0]
            state = Path(daemon.values["state_dir"], "state.json")
            wait_for(state.exists, daemon)
            shown = everything_shown(daemon, address)
            assert KUBELET_TOKEN not in shown
            assert API_TOKEN not in shown
            assert not any(KUBELET_TOKEN.encode() in post for post in apiserver.received)
            assert peak_kib(daemon.pid) < MEMORY_KIB
            daemon.wait_until_watching(2)
            assert daemon.stop() == 0
            assert KUBELET_TOKEN not in daemon.log()
            assert API_TOKEN not in daemon.log()
            daemon.start()
