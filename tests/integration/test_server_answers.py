"""What a server answers, well or badly: whether it serves, and whether it is gone at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume
from fusewatchd.demo.node.sources import OldServer, Source
from fusewatchd.linux import fusectl, syscalls
from fusewatchd.model.mounts import Device
from tests.features import Feature, lacking
from tests.integration.test_cluster import cluster
from tests.lab import in_lab
from tests.waiting import wait_until

pytestmark = pytest.mark.kernel

DEADLINE = 20.0
QUICK = {"probe.interval_seconds": "0.3", "probe.deadline_seconds": "2"}
SEVERAL_PROBES = 1.5
OLD_AND_NEW = pytest.mark.parametrize("is_old", [False, True], ids=["newest", "as_old_kernel"])


@dataclass(slots=True)
class Faulty:
    """A volume whose server answers what the test says."""

    node: DemoNode
    source: Source
    pod: DemoPod
    container: Container

    @property
    def _file(self) -> str:
        return os.path.join(self.node.lab, "faults")

    def fail(self, **faults: int | str) -> None:
        """Answer requests of these kinds with an errno, or ``never``."""
        with open(f"{self._file}.new", "w") as file:
            file.writelines(f"{kind} {what}\n" for kind, what in faults.items())
        os.rename(f"{self._file}.new", self._file)

    def fail_all(self, number: int) -> None:
        with open(f"{self._file}.new", "w") as file:
            file.write(f"* {number}\n")
        os.rename(f"{self._file}.new", self._file)

    def be_well(self) -> None:
        os.unlink(self._file)

    def explain(self, daemon: DaemonProcess) -> str:
        """Return what ``explain`` says of the pod."""
        sets = [word for k, v in daemon.values.items() for word in ("--set", f"{k}={v}")]
        command = [sys.executable, "-m", "fusewatchd", "explain", self.pod.uid, *sets]
        done = subprocess.run(command, capture_output=True, text=True, env=python_environment())
        return done.stdout + done.stderr


def faulty(node: DemoNode) -> Faulty:
    server = (sys.executable, "-m", "fusewatchd.demo.fuse.server", "--faults")
    where = (os.path.join(node.lab, "faults"), "--mount", "{mount}", "--backing", "{backing}")
    source = node.add_source("one", command=(*server, *where))
    pod = node.add_pod("app", [PodVolume("v", source)], [PodMount("v", "/data")])
    return Faulty(node, source, pod, node.start_container(pod))


def verdicts(document: Any) -> set[str]:
    return {bind["verdict"] for bind in document["binds"]}


def evidence(document: Any) -> set[str]:
    return {bind["evidence"] for bind in document["binds"]}


def has_errno(container: Container, number: int) -> bool:
    try:
        container.read("/data/hello")
    except OSError as exc:
        return exc.errno == number
    return False


BROKEN = ("GETATTR", "LOOKUP", "OPENDIR", "READDIR", "OPEN")
"""All but STATFS, by which a server proves that it lives."""

# -------------------------------------------------------------- a new mount must serve


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOENT, errno.ENOTCONN])
@in_lab(timeout=60)
def test_a_new_server_that_does_not_serve_its_root_is_not_bound(
    node: DemoNode, number: int
) -> None:
    it, name = faulty(node), errno.errorcode[number]
    with (
        cluster(node) as world,
        DaemonProcess(node, settings={**QUICK, **world.settings()}) as daemon,
    ):
        daemon.wait_until_watching(2)
        it.fail(**dict.fromkeys(BROKEN, number))
        it.source.kill()
        it.source.restart()
        said = f"its root gives {name}"
        daemon.wait_for(lambda d: any(said in text for text in evidence(d)))
        time.sleep(SEVERAL_PROBES)
        document = daemon.status()
        assert verdicts(document) == {"stale"}
        assert {bind["refusal"] for bind in document["binds"]} == {"source_unproven"}
        assert said in it.explain(daemon)
        assert said in daemon.log()
        it.be_well()
        it.container.wait_until_readable("/data/hello", DEADLINE)
        daemon.wait_until_watching(2)
        told = f"answers with {name}"
        wait_until(lambda: any(told in e["note"] for e in world.apiserver.events()), daemon.log)


@in_lab(timeout=60)
def test_the_errno_of_a_new_server_that_answers_nothing_well_is_told(node: DemoNode) -> None:
    it = faulty(node)
    with DaemonProcess(node, settings=QUICK) as daemon:
        daemon.wait_until_watching(2)
        it.fail(**dict.fromkeys(("STATFS", *BROKEN), errno.EIO))
        it.source.kill()
        it.source.restart()
        daemon.wait_for(lambda d: any("answers with EIO" in text for text in evidence(d)))
        wait_until(lambda: "answers with EIO" in daemon.log(), daemon.log)
        assert "answers with EIO" in it.explain(daemon)
        it.be_well()
        it.container.wait_until_readable("/data/hello", DEADLINE)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOSYS])
@in_lab(timeout=60)
def test_a_root_that_others_may_not_look_at_is_served(node: DemoNode, number: int) -> None:
    it = faulty(node)
    with DaemonProcess(node, settings=QUICK) as daemon:
        daemon.wait_until_watching(2)
        it.fail(GETATTR=number)
        it.source.kill()
        it.source.restart()
        daemon.wait_until_watching(2)
        assert evidence(daemon.status()) == {"answers"}


@in_lab(timeout=60)
def test_a_root_that_is_only_slow_is_bound_after_a_deadline_and_told(node: DemoNode) -> None:
    it = faulty(node)
    with DaemonProcess(node, settings=QUICK) as daemon:
        daemon.wait_until_watching(2)
        it.fail(GETATTR="never")
        it.source.kill()
        it.source.restart()
        daemon.wait_for(lambda d: evidence(d) == {"answers, but its root is slow"})
        wait_until(lambda: "event=source_slow" in daemon.log(), daemon.log)
        time.sleep(SEVERAL_PROBES)
        assert verdicts(daemon.status()) == {"healthy"}
        assert "event=hung" not in daemon.log()


@in_lab(timeout=60)
def test_a_living_server_whose_root_fails_is_told_of_and_left_alone(node: DemoNode) -> None:
    """The daemon meets it like that: of one that worked it is told within a minute."""
    it = faulty(node)
    it.fail(**dict.fromkeys(BROKEN, errno.EIO))
    with DaemonProcess(node, settings={**QUICK, "hung.abort": "true"}) as daemon:
        daemon.wait_until_watching(2)
        assert evidence(daemon.status()) == {"answers, but its root gives EIO"}
        assert "It works" not in it.explain(daemon)
        time.sleep(SEVERAL_PROBES)
        it.be_well()
        daemon.wait_for(lambda d: evidence(d) == {"answers"})
        assert "event=replaced" not in daemon.log()


# ------------------------------------------------------------------ ENOTCONN is an answer


EAGER = {
    **QUICK,
    "dead_sources.detach": "true",
    "dead_sources.grace_seconds": "0.5",
    "dead_sources.confirmations": "1",
    "look_seconds": "0.5",
}


def calls(node: DemoNode) -> str:
    return os.path.join(node.lab, "calls")


def eager(node: DemoNode) -> dict[str, str]:
    """Return settings with which all that may be done about a dead server is done soon."""
    touch = {"driver": "*", "command": ["/usr/bin/touch", calls(node)], "grace_seconds": 0.2}
    return {**EAGER, "drivers.on_stale": json.dumps([touch])}


@OLD_AND_NEW
@pytest.mark.parametrize("answers", [("STATFS",), ("STATFS", *BROKEN)], ids=["statfs", "all"])
@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ECONNABORTED])
@pytest.mark.parametrize("is_late", [False, True], ids=["running", "late"])
@in_lab(timeout=60)
def test_what_a_living_server_passes_on_is_not_its_end(
    node: DemoNode, is_old: bool, answers: tuple[str, ...], number: int, is_late: bool
) -> None:
    it = faulty(node)
    if is_late:
        it.fail(**dict.fromkeys(answers, number))
    with DaemonProcess(node, settings=eager(node), as_old_kernel=is_old) as daemon:
        if not is_late:
            daemon.wait_until_watching(2)
            it.fail(**dict.fromkeys(answers, number))
        said = f"answers {errno.errorcode[number]}, its server lives"
        daemon.wait_for(lambda d: evidence(d) == {said})
        time.sleep(2 * SEVERAL_PROBES)
        document = daemon.status()
        assert verdicts(document) == {"unknown"}
        assert not document["incidents"]
        assert not document["dead_sources"]
        assert not os.path.exists(calls(node))
        assert "its server lives" in it.explain(daemon)
        for event in ("server_gone", "source_detached", "action_started", "event=stale"):
            assert event not in daemon.log()
        it.be_well()
        daemon.wait_until_watching(2)
        # And its true end is none the less noticed.
        it.source.kill()
        daemon.wait_for(lambda d: verdicts(d) == {"stale"})
        it.source.restart()
        it.container.wait_until_readable("/data/hello", DEADLINE)


@OLD_AND_NEW
@in_lab(timeout=60)
def test_a_server_that_refuses_everything_gives_way_to_a_new_one(
    node: DemoNode, is_old: bool
) -> None:
    it = faulty(node)
    with DaemonProcess(node, settings=QUICK, as_old_kernel=is_old) as daemon:
        daemon.wait_until_watching(2)
        it.fail(**dict.fromkeys(("STATFS", *BROKEN), errno.ENOTCONN))
        daemon.wait_for(lambda d: verdicts(d) == {"unknown"})
        # The old one goes on with its answers, the new one has none of them.
        it.source._command = (*it.source._command, "--faults", f"{node.lab}/none")
        it.source.restart(old=OldServer.DRAINING)
        it.container.wait_until_readable("/data/hello", DEADLINE)
        daemon.wait_until_watching(2)
        # It ended, if at all, because nothing showed its file system any more.
        assert "event=stale" not in daemon.log()


@OLD_AND_NEW
@in_lab(timeout=60)
def test_a_connection_that_was_cut_while_its_server_lives_is_dead(
    node: DemoNode, is_old: bool
) -> None:
    """``umount -f`` of any bind does it; a server that holds on to its descriptor runs on."""
    it = faulty(node)
    settings = {**QUICK, "dead_sources.detach": "true", "dead_sources.grace_seconds": "0.5"}
    with DaemonProcess(node, settings=settings, as_old_kernel=is_old) as daemon:
        daemon.wait_until_watching(2)
        it.source.pause()
        fd = os.open(it.source.path, os.O_PATH)
        with syscalls.closing_fd(fd):
            device = Device(*syscalls.device_of(fd))
        with syscalls.closing_fd(fusectl.open_abort(device)) as abort:
            os.write(abort, b"1")
        daemon.wait_for(lambda d: verdicts(d) == {"stale"})
        assert it.source.server.is_running
        daemon.wait_for(lambda d: "server_alive" in {b["refusal"] for b in d["binds"]})
        if not is_old and Feature.FUSE_FDINFO not in lacking():
            assert f"no end was seen of its server python (pid {it.source.server.pid})" in (
                daemon.log()
            )
            assert "event=server_gone" not in daemon.log()
            assert "no end was seen of its server" in it.explain(daemon)
        it.source.restart(old=OldServer.DRAINING)
        it.container.wait_until_readable("/data/hello", DEADLINE)
