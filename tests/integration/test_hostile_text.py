"""What a pod can write its name on, as it comes out of a real daemon everywhere."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fusewatchd.demo.cluster.apiserver import DemoApiServer
from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.cluster.loopback import free_port
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume
from fusewatchd.demo.node.world import PrivateWorld
from fusewatchd.linux import syscalls
from fusewatchd.log import JOURNAL_SOCKET, LINE_LIMIT
from tests.lab import fusewatchd_command, in_lab, run_fusewatchd

pytestmark = pytest.mark.kernel

DEADLINE = 15.0
FORGED = "MESSAGE=forged\nPRIORITY=0\n"
EVIL = (
    '"} 1\nfusewatchd_mounts{driver="x"} 99\r\n# HELP x\n'
    "\x1b]0;owned\x07\x1b[2J\u202e%n%s%%{}{0}\x00"
    f"{FORGED}level=error msg='x' time=0\t\\n\\"
)
NAME = EVIL.replace("/", "").replace("\x00", "")[:200]
"""As a file name."""
DRIVER = 'csi"} 1\n\x1b[31m%n\\'
MEGABYTE = "m" * (1 << 20)


def is_plain(text: str) -> bool:
    """Nothing in it moves a cursor, ends a line or hides what follows."""
    return text.isprintable()


class Stage:
    """A pod that has chosen every text that it may choose."""

    def __init__(self, node: DemoNode, kubelet: DemoKubelet, apiserver: DemoApiServer) -> None:
        self.node, self.kubelet, self.apiserver = node, kubelet, apiserver
        self.source = node.add_source("one", files={"hello": "one", f"{NAME}/hello": "sub"})
        volume = PodVolume("v", self.source, directory=NAME, driver=DRIVER, handle=EVIL)
        mounts = [PodMount("v", f"/{NAME}"), PodMount("v", f"/sub{NAME}", sub_path=NAME)]
        annotations = {"fusewatchd.io/x": EVIL, "fusewatchd.io/long": MEGABYTE}
        self.pod = node.add_pod("web", [volume], mounts, annotations=annotations)
        self.container = node.start_container(self.pod)
        self.address = f"127.0.0.1:{free_port()}"

    def settings(self, log_format: str) -> dict[str, str]:
        return {
            "kubelet.url": self.kubelet.url,
            "apiserver.url": self.apiserver.url,
            "web.listen_address": self.address,
            "log.format": log_format,
            "log.level": "debug",
        }

    def go_through_everything(self, daemon: DaemonProcess) -> None:
        """Be healthy, stale, refused and recovered, so that all there is to say is said."""
        daemon.wait_for(lambda d: d["pods_known"] and d["totals"]["verdicts"]["healthy"] == 4)
        hidden = os.path.join(self.source.backing, "hidden")
        path = os.path.join(self.source.backing, NAME)
        self.source.kill()
        os.rename(path, hidden)
        self.source.restart()
        daemon.wait_for(lambda d: any(b["refusal"] == "subpath_missing" for b in d["binds"]))
        os.rename(hidden, path)
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["healthy"] == 4, DEADLINE)

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=10) as page:
            text: str = page.read().decode()
        return text


@contextmanager
def stage(node: DemoNode) -> Iterator[Stage]:
    with DemoKubelet(node.pod_list) as kubelet, DemoApiServer() as apiserver:
        yield Stage(node, kubelet, apiserver)


# -------------------------------------------------------------------------------- logs


def check_text(lines: list[str]) -> None:
    for line in lines:
        # 18:45:02.280 LEVEL    words
        assert line[2] + line[5] + line[8] == "::.", line
        assert line[13:20].strip() in ("DEBUG", "INFO", "WARNING", "ERROR"), line


def check_logfmt(lines: list[str]) -> None:
    for line in lines:
        assert line.startswith("time=20"), line
        fields = _logfmt(line)
        assert fields["level"] in ("debug", "info", "warning", "error"), line
        assert fields["msg"], line


def _logfmt(line: str) -> dict[str, str]:
    """Read a line as Loki and others do; a key may stand only once."""
    found: dict[str, str] = {}
    rest = line
    while rest:
        key, _, rest = rest.partition("=")
        if rest.startswith('"'):
            end = 1
            while rest[end] != '"':
                end += 2 if rest[end] == "\\" else 1
            value, rest = rest[1:end], rest[end + 1 :].lstrip(" ")
        else:
            value, _, rest = rest.partition(" ")
        assert key.isidentifier(), line
        assert key not in found, line
        found[key] = value
    return found


def check_json(lines: list[str]) -> None:
    for line in lines:
        entry = json.loads(line)
        assert entry["level"] in ("debug", "info", "warning", "error")
        for value in entry.values():
            assert not isinstance(value, str) or (is_plain(value) and len(value) <= 256), line


FORMATS = {"text": check_text, "logfmt": check_logfmt, "json": check_json}


@pytest.mark.parametrize(
    "log_format",
    ["logfmt", *(pytest.param(x, marks=pytest.mark.slow) for x in ("text", "json", "journal"))],
)
@in_lab(timeout=90)
def test_logs_are_lines_of_printable_text(node: DemoNode, log_format: str) -> None:
    with stage(node) as it, journal(node.world) as datagrams:
        with DaemonProcess(node, settings=it.settings(log_format)) as daemon:
            it.go_through_everything(daemon)
        if log_format == "journal":
            check_journal(datagrams())
            return
        lines = daemon.log().split("\n")
        assert lines.pop() == ""
        assert any("subpath_missing" in line for line in lines)
        assert sum("owned" in line for line in lines) > 5, "nothing hostile in it"
        for line in lines:
            assert is_plain(line), line
            assert len(line.encode()) < LINE_LIMIT
        FORMATS[log_format](lines)


@contextmanager
def journal(world: PrivateWorld) -> Iterator[Any]:
    """Be journald: take datagrams where it would; yields what returns those that came."""
    directory = os.path.dirname(JOURNAL_SOCKET)
    os.makedirs(directory, exist_ok=True)
    place = os.path.join(world.lab, "journal")
    os.mkdir(place)
    syscalls.mount(place, directory, None, syscalls.MS_BIND)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as taken:
        taken.bind(JOURNAL_SOCKET)
        found: list[bytes] = []
        is_over = threading.Event()

        def take() -> None:
            while not is_over.is_set():
                if select.select([taken], [], [], 0.05)[0]:
                    found.append(taken.recv(1 << 20))

        thread = threading.Thread(target=take)
        thread.start()

        def ended() -> list[bytes]:
            time.sleep(0.2)
            return found

        try:
            yield ended
        finally:
            is_over.set()
            thread.join()
            syscalls.umount2(directory, syscalls.MNT_DETACH)


def check_journal(datagrams: list[bytes]) -> None:
    """Parse them as journald does (JOURNAL_NATIVE_PROTOCOL)."""
    assert sum(b"owned" in datagram for datagram in datagrams) > 5, "nothing hostile in it"
    for datagram in datagrams:
        text = datagram.decode("utf-8")
        assert text.endswith("\n")
        names = []
        for line in text[:-1].split("\n"):
            name, equals, value = line.partition("=")
            assert equals, line
            assert is_plain(value), line
            assert name == "MESSAGE" or len(value) <= 256
            names.append(name)
        assert len(names) == len(set(names)), text
        extra = [name for name in names if not name.startswith("FUSEWATCHD_")]
        assert [name for name in extra if name != "MESSAGE_ID"] == [
            "MESSAGE",
            "PRIORITY",
            "SYSLOG_IDENTIFIER",
        ]
        assert "PRIORITY=0" not in text.split("\n")


# ------------------------------------------------------------------------ everything else


@in_lab(timeout=90)
def test_status_metrics_and_events_are_plain(node: DemoNode) -> None:
    with stage(node) as it:
        long_named = add_pod_with_long_names(node)
        with DaemonProcess(node, settings=it.settings("text")) as daemon:
            it.go_through_everything(daemon)
            words = [w for key, value in daemon.values.items() for w in ("--set", f"{key}={value}")]
            table = run_fusewatchd("status", "--all", *words).stdout
            check_table(table)
            check_table(in_terminal(words))
            document = run_fusewatchd("status", "--json", *words).stdout
            assert is_plain(document.replace("\n", ""))
            check_document(json.loads(document))
            check_metrics(it.metrics())
            check_events(it.apiserver, it.pod)
            (complaint,) = [x for x in daemon.log().splitlines() if "list is left out" in x]
            assert "expected text of at most" in complaint
            assert len(daemon.log()) < 1 << 19
            names = {b["pod"]["name"] for b in json.loads(document)["binds"]}
            assert names == {"web"}
            del node.pods[long_named.uid]


def add_pod_with_long_names(node: DemoNode) -> DemoPod:
    """A pod in the kubelet's list that has no bind: a megabyte in each of its texts."""
    pod = DemoPod(
        namespace=MEGABYTE,
        name=MEGABYTE,
        uid="00000000-0000-4000-8000-000000000000",
        pods_directory=node.pods_directory,
        volumes=(PodVolume(MEGABYTE),),
        mounts=(PodMount(MEGABYTE, f"/{MEGABYTE}", sub_path=MEGABYTE, container=MEGABYTE),),
    )
    node.pods[pod.uid] = pod
    return pod


def in_terminal(words: list[str]) -> str:
    """Return what ``status`` writes to a terminal, without the colours that are its own."""
    ours, theirs = os.openpty()
    environment = {**python_environment(), "COLUMNS": "150"}
    with subprocess.Popen(
        fusewatchd_command("status", "--all", *words), stdout=theirs, cwd="/", env=environment
    ) as done:
        os.close(theirs)
        parts = []
        while True:
            try:
                parts.append(os.read(ours, 1 << 16))
            except OSError:  # EIO: nobody holds the other end any more
                break
    os.close(ours)
    assert done.returncode == 0
    text = b"".join(parts).decode().replace("\r\n", "\n")
    for colour in ("\x1b[0m", "\x1b[32m", "\x1b[33m", "\x1b[1;31m"):
        text = text.replace(colour, "")
    return text


def check_table(table: str) -> None:
    lines = table.split("\n")
    assert len(lines) < 20, table
    assert "\\x1b" in table, "nothing hostile in it"
    for line in lines:
        assert is_plain(line), line
        assert len(line) <= 150


def check_document(value: Any) -> None:
    if isinstance(value, dict):
        for item in value.values():
            check_document(item)
    elif isinstance(value, list):
        for item in value:
            check_document(item)
    elif isinstance(value, str):
        assert is_plain(value)
        assert len(value) <= 4 * 4096


def check_metrics(text: str) -> None:
    """Prometheus' own parser finds the families that are there and no others."""
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert all(name.startswith(("fusewatchd_", "python_", "process_")) for name in families)
    drivers = set()
    for family in families.values():
        for sample in family.samples:
            assert all(map(is_plain, sample.labels.values())), sample
            assert all(len(label) <= 63 for label in sample.labels.values())
            drivers.add(sample.labels.get("driver", ""))
    assert "x" not in drivers
    assert any("csi" in driver for driver in drivers), "nothing hostile in it"
    for hidden in ("owned", '"web', NAME[:8]):
        assert hidden not in text.replace('thread="web"', "")


def check_events(apiserver: DemoApiServer, pod: DemoPod) -> None:
    end = time.monotonic() + DEADLINE
    while "FuseMountRecovered" not in apiserver.reasons():
        assert time.monotonic() < end, apiserver.reasons()
        time.sleep(0.05)
    for event in apiserver.events():
        text = json.dumps(event, ensure_ascii=False)
        assert is_plain(text)
        assert len(text) < 2048
        assert "owned" not in text
        assert event["regarding"]["uid"] == pod.uid
