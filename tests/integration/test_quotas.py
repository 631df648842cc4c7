"""A pod or a user multiplies what he can: it costs him, and nobody else anything to speak of."""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.node import cgroups
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.sources import Source
from fusewatchd.demo.timeouts import patient
from fusewatchd.doctor.quota_checks import quota_findings
from fusewatchd.linux import syscalls
from tests.intruder import intruder
from tests.lab import in_lab, pod_with_container

pytestmark = pytest.mark.kernel

DEADLINE = 20.0
TIMES = 3
"""An unrelated pod may wait so many times as long as without the attack."""
FLOOR_SECONDS = 0.4
"""The machine is shared with other tests: what is shorter than this proves nothing."""
WATCHDOG_SECONDS = 4.0

FEW = float(os.environ.get("FUSEWATCHD_ATTACK_SCALE", "1"))
"""Attacks of other sizes, for figures."""
Attack = Callable[[], str]


def scaled(count: int) -> int:
    return int(count * FEW)


DEVICE: list[str] = []
"""A copy of /dev/fuse that everybody may open, as the one of most nodes."""


# ------------------------------------------------------------------------------ attacks


def mount_fuse() -> str:
    """Mount FUSE file systems without a server, as any user may in a user namespace of his own."""
    syscalls.mount("here", "/tmp", "tmpfs", 0)
    for number in range(scaled(1500)):
        fd = os.open(DEVICE[0], os.O_RDWR)
        path = f"/tmp/{number}"
        os.mkdir(path)
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        syscalls.mount("x", path, "fuse", 0, options)
    return "done"


def bind(what: str, count: int) -> str:
    syscalls.mount("here", "/tmp", "tmpfs", 0)
    for number in range(scaled(count)):
        os.mkdir(f"/tmp/{number}")
        syscalls.mount(what, f"/tmp/{number}", None, syscalls.MS_BIND)
    return "done"


def bind_often() -> str:
    """Bind the pod's own volume again and again."""
    return bind("/data", 3000)


def mount_often() -> str:
    """Fill a table that has one FUSE mount with others."""
    return bind("/tmp", 8000)


def name_badly() -> str:
    """Bind a directory whose path is long, each byte of which the kernel shows as four."""
    syscalls.mount("here", "/tmp", "tmpfs", 0)
    os.chdir("/tmp")
    for _ in range(200):
        os.mkdir("\n" * 255)
        os.chdir("\n" * 255)
    what = "/data" if os.path.exists("/data") else "/tmp"
    for number in range(scaled(300)):
        os.mkdir(str(number))
        syscalls.mount(what, str(number), None, syscalls.MS_BIND)
    return "done"


def open_much() -> str:
    """Have very many descriptors in very many processes, by fork."""
    fd = os.open("/dev/null", os.O_RDONLY)
    most = min(19_500, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most + 500, most + 500))
    for _ in range(most):
        os.dup(fd)
    for _ in range(scaled(40)):
        if os.fork() == 0:
            signal.pause()
    return "done"


# ---------------------------------------------------------------------------- the stage


class Watchdog:
    """Takes what is sent to systemd as it comes: the kernel keeps ten messages."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self.pinged_at: list[float] = []
        self.is_ready = False
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            message = self._socket.recv(4096)
            if b"WATCHDOG=1" in message:
                self.pinged_at.append(time.monotonic())
            self.is_ready = self.is_ready or b"READY=1" in message

    def longest_silence(self, since: float) -> float:
        times = [since, *(at for at in self.pinged_at if at > since), time.monotonic()]
        return max(later - before for before, later in pairwise(times))


class Stage:
    """A node with the attacked volume, an unrelated one, and the daemon."""

    def __init__(self, node: DemoNode) -> None:
        self.node = node
        self.shared = node.add_source("shared", files={"hello": "shared"})
        self.unrelated = node.add_source("unrelated", files={"hello": "unrelated"})
        self.pod, self.his = pod_with_container(node, self.shared, "attacker")
        _, self.neighbour = pod_with_container(node, self.shared, "neighbour")
        _, self.other = pod_with_container(node, self.unrelated, "other")
        DEVICE[:] = [os.path.join(node.lab, "fuse")]
        os.mknod(DEVICE[0], stat.S_IFCHR | 0o666, os.stat("/dev/fuse").st_rdev)
        os.chmod(DEVICE[0], 0o666)
        self.watchdog = Watchdog(os.path.join(node.lab, "notify"))
        environment = {
            **python_environment(),
            "NOTIFY_SOCKET": os.path.join(node.lab, "notify"),
            "WATCHDOG_USEC": str(int(WATCHDOG_SECONDS * 1e6)),
        }
        settings = {"look_seconds": "1"}
        self.daemon = DaemonProcess(node, settings=settings, environment=environment)

    def recovery(self, source: Source, container: Container) -> float:
        """Return the seconds from the new server's mount until a pod reads again."""
        up_at = source.restart()
        container.wait_until_readable("/data/hello", DEADLINE)
        return time.monotonic() - up_at

    def median(self) -> float:
        return sorted(self.recovery(self.unrelated, self.other) for _ in range(3))[1]

    @contextmanager
    def attacker(self, attack: Attack, *, is_user: bool) -> Iterator[None]:
        directory = self.his._cgroup_directory or pytest.skip("no cgroups here")
        if is_user:
            path = f"/{self.node.world.cgroup}/user.slice/user@1000.service"
            directory = cgroups.create(path) or ""
        # The group of processes is his alone, so that all of them can be ended.
        seen = 0 if is_user else self.his.pid
        with intruder(directory, {"attack": grouped(attack)}, mount_namespace=seen) as process:
            try:
                assert process.order("attack") == "done"
                yield
            finally:
                os.killpg(process.pid, signal.SIGKILL)


def grouped(attack: Attack) -> Attack:
    def run() -> str:
        os.setsid()
        return attack()

    return run


def named(document: Any, is_user: bool, uid: str) -> list[Any]:
    return [
        one
        for one in document["refused_owners"]
        if (one["pod"] is None if is_user else one["pod"] and one["pod"]["uid"] == uid)
    ]


@pytest.mark.parametrize(
    ("attack", "is_user"),
    [
        pytest.param(mount_fuse, True, id="fuse mounts of a user"),
        pytest.param(bind_often, False, id="binds of a pod"),
        pytest.param(mount_often, False, id="mounts of a pod"),
        pytest.param(name_badly, False, id="names of a pod"),
        pytest.param(name_badly, True, id="names of a user"),
        pytest.param(open_much, False, id="descriptors of a pod"),
    ],
)
@pytest.mark.slow
@in_lab(timeout=150)
def test_what_one_multiplies_costs_others_nothing(
    node: DemoNode, attack: Attack, is_user: bool
) -> None:
    stage = Stage(node)
    with stage.daemon as daemon:
        daemon.wait_until_watching(6)
        baseline = stage.median()
        limit = max(TIMES * baseline, patient(FLOOR_SECONDS))
        with stage.attacker(attack, is_user=is_user):
            document = daemon.wait_for(lambda d: named(d, is_user, stage.pod.uid), timeout=30)
            began = time.monotonic()
            under_attack = stage.median()
            shared = stage.recovery(stage.shared, stage.neighbour)
            late_pod, late = pod_with_container(node, stage.unrelated, "late")
            daemon.wait_for(
                lambda d: any(
                    b["kind"] == "container" and b["directory_uid"] == late_pod.uid
                    for b in d["binds"]
                )
            )
            of_late = stage.recovery(stage.unrelated, late)
            time.sleep(max(0.0, began + 2 * WATCHDOG_SECONDS - time.monotonic()))
            silence = stage.watchdog.longest_silence(began)
            print(
                f"FIGURES {attack.__name__} user={is_user} x{FEW:g}: baseline"
                f" {baseline * 1e3:.0f} ms, under attack {under_attack * 1e3:.0f} ms, same source"
                f" {shared * 1e3:.0f} ms, late container {of_late * 1e3:.0f} ms,"
                f" silent for {silence:.1f} s,"
                f" {[(r['resource'], r['wanted']) for r in document['refused_owners']]}"
            )
            assert under_attack <= limit, daemon.log()
            assert shared <= patient(2.0)
            assert of_late <= patient(2.0)
            assert stage.watchdog.is_ready
            assert silence < WATCHDOG_SECONDS, "systemd would have killed it"
            document = daemon.status()
            assert named(document, is_user, stage.pod.uid)
            text = [finding.text for finding in quota_findings(document)]
            assert any(("local users" if is_user else stage.pod.uid) in line for line in text), text
            for one in named(document, is_user, stage.pod.uid):
                assert (
                    daemon.log().count(f"event=quota_met reason=quota resource={one['resource']}")
                    == 1
                )
            assert "namespaces" not in {gap["source"] for gap in document["gaps"]}
