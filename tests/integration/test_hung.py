"""Servers that hang or are slow, on the real kernel: nobody is harmed, and nothing is leaked."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodVolume
from fusewatchd.demo.node.sources import ServerOptions, Source
from fusewatchd.linux import fusectl, syscalls
from tests.integration.test_cluster import Cluster, cluster
from tests.lab import in_lab, pod_with_container

pytestmark = pytest.mark.kernel

DEADLINE = 15.0
STOP_SECONDS = 5.0
QUICK = {
    "probe.interval_seconds": "0.2",
    "probe.deadline_seconds": "0.3",
    "hung.after_seconds": "0.6",
}
ABORT = {**QUICK, "hung.abort": "true", "hung.abort_confirmations": "2"}
LONG_ENOUGH = 0.6 + 3 * 0.3 + 1.0 + 1.0
"""Hung, three confirmations, the last look, and a second more."""


def wait_until(condition: Callable[[], object], what: str, timeout: float = DEADLINE) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def fuse_lines() -> list[str]:
    with open("/proc/self/mountinfo") as file:
        return [line for line in file if " - fuse." in line]


def connection_of(source: Source) -> int:
    (line,) = [line for line in fuse_lines() if line.split()[4] == source.path]
    return int(line.split()[2].partition(":")[2])


def waiting(connection: int) -> int:
    with open(f"{fusectl.CONNECTIONS}/{connection}/waiting") as file:
        return int(file.read())


def probe_children() -> dict[int, str]:
    return workers("fusewatchd-prob")


def workers(command_name: str) -> dict[int, str]:
    """Return the state letter of every such process in this world that has not ended."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    command, _, rest = file.read().partition("(")[2].rpartition(")")
            except (FileNotFoundError, ProcessLookupError):
                continue
            state = rest.split()[0]
            if command == command_name and state != "Z":
                found[int(name)] = state
    return found


def verdicts(document: dict[str, object]) -> dict[str, int]:
    return document["totals"]["verdicts"]  # type: ignore[index,no-any-return]


def crash(source: Source) -> None:
    source.kill()
    source.restart()


def stop_in_time(daemon: DaemonProcess) -> None:
    assert daemon.stop(timeout=STOP_SECONDS) == 0


# ------------------------------------------------------------------- slow and hung servers


READ = pytest.mark.parametrize(
    "has_read",
    [pytest.param(False, id="before", marks=pytest.mark.slow), pytest.param(True, id="after")],
)
"""Whether the server has read the request that it does not answer."""


@READ
@in_lab(timeout=90)
def test_stopped_before_or_after_it_read_the_request(node: DemoNode, has_read: bool) -> None:
    hung, other = node.add_source("hung"), node.add_source("other")
    pod_with_container(node, hung, "p1")
    _, container = pod_with_container(node, other, "p2")
    number, before = connection_of(hung), [line for line in fuse_lines() if "/hung" in line]
    with DaemonProcess(node, settings=QUICK) as daemon:
        daemon.wait_until_watching(4)
        if has_read:
            hung.hold()
            wait_until(lambda: waiting(number), "no request")
        hung.pause()
        document = daemon.wait_for(lambda d: verdicts(d)["hung"] == 2)
        assert {b["refusal"] for b in document["binds"]} == {None}
        assert waiting(number) == 1
        for _ in range(2):
            crash(other)
            container.wait_until_readable("/data/hello", DEADLINE)
        assert waiting(number) == 1
        stop_in_time(daemon)
        if has_read:
            # It has been told to end, and cannot before the server answers.
            assert list(probe_children().values()) == ["D"]
        else:
            wait_until(lambda: not probe_children(), "a probe child is left")
        daemon.start()
        daemon.wait_for(lambda d: verdicts(d)["hung"] == 2)
        hung.resume()
        if has_read:
            hung.release()
        daemon.wait_until_watching(4)
        assert [line for line in fuse_lines() if "/hung" in line] == before
        stop_in_time(daemon)
        wait_until(lambda: not probe_children(), "a probe child is left")


@in_lab(timeout=110)
def test_more_hung_ones_than_probe_children(node: DemoNode) -> None:
    """Half of them have read the request, so that nothing can end the children that ask."""
    hang_and_recover(node, hung=8, most=2, settings=QUICK)


@pytest.mark.slow
@in_lab(timeout=400)
def test_two_hundred_hung_mounts(node: DemoNode) -> None:
    settings = {"probe.interval_seconds": "2", "probe.deadline_seconds": "1"}
    hang_and_recover(node, hung=200, most=16, settings={**settings, "hung.after_seconds": "4"})


def hang_and_recover(node: DemoNode, hung: int, most: int, settings: dict[str, str]) -> None:
    sources = [node.add_source(f"hung{number}", starts=False) for number in range(hung)]
    for start in range(0, hung, 10):
        for source in sources[start : start + 10]:
            source.launch()
        for source in sources[start : start + 10]:
            source.wait_ready(60)
    for number, source in enumerate(sources):
        node.add_pod(f"p{number}", [PodVolume("v", source)], [])
    other = node.add_source("other")
    _, container = pod_with_container(node, other, "other")
    numbers = [connection_of(source) for source in sources]
    mine = [line for line in fuse_lines() if "/hung" in line]
    settings = {**settings, "probe.max_children": str(most)}
    with DaemonProcess(node, settings=settings) as daemon:
        daemon.wait_until_watching(hung + 2, 60)
        for source in sources[::2]:
            source.hold()
        for source in sources[1::2]:
            source.pause()
        daemon.wait_for(lambda d: verdicts(d)["hung"] >= most, 60)
        # Nobody who was not asked is called slow or hung, and that some were not is told.
        document = daemon.wait_for(lambda d: any(g["source"] == "probes" for g in d["gaps"]), 60)
        assert verdicts(document)["hung"] + verdicts(document)["slow"] <= 2 * most
        assert "cannot see: probes" in daemon.log()
        for _ in range(3):
            crash(other)
            container.wait_until_readable("/data/hello", DEADLINE)
            assert len(probe_children()) <= 2 * most
            assert all(waiting(number) <= 1 for number in numbers)
        cycle, at = daemon.status()["cycle"], time.monotonic()
        time.sleep(1.0)
        rate = (daemon.status()["cycle"] - cycle) / (time.monotonic() - at)
        assert rate < 100, "it spins"
        stop_in_time(daemon)
        for source in sources[::2]:
            source.release()
        wait_until(lambda: not probe_children(), "a probe child is left")
        daemon.start()
        for source in sources[1::2]:
            source.resume()
        daemon.wait_until_watching(hung + 2, 60)
        assert [line for line in fuse_lines() if "/hung" in line] == mine


@pytest.mark.slow
@in_lab(timeout=150)
def test_a_server_that_answers_after_forty_seconds(node: DemoNode) -> None:
    """With every time as it is by default, and with aborting switched on."""
    source = node.add_source("slow", options=ServerOptions(answer_delay=40.0))
    node.add_pod("p", [PodVolume("v", source)], [])
    before = fuse_lines()
    with DaemonProcess(node, settings={"hung.abort": "true"}) as daemon:
        for verdict in ("slow", "hung", "healthy"):
            daemon.wait_for(lambda d, verdict=verdict: verdicts(d)[verdict] == 1, 60)
        assert fuse_lines() == before
        assert source.server.is_running
        assert "abort" not in daemon.log()


@pytest.mark.slow
@in_lab(timeout=90)
def test_a_look_through_proc_that_hangs_is_given_up(node: DemoNode) -> None:
    with DaemonProcess(node, settings={"look_seconds": "0.5"}) as daemon:
        daemon.wait_for(lambda d: bool(workers("fusewatchd-scan")))
        (scanner,) = workers("fusewatchd-scan")
        os.kill(scanner, signal.SIGSTOP)
        wait_until(lambda: "can see again: namespaces" in daemon.log(), daemon.log(), 30)
        assert "cannot see: namespaces" in daemon.log()
        assert scanner not in workers("fusewatchd-scan")


# ------------------------------------------------------------------------------- aborting


@contextmanager
def world_of(node: DemoNode, **settings: str) -> Iterator[tuple[DaemonProcess, Cluster]]:
    with cluster(node) as world:
        values = {**world.settings(), **ABORT, **settings}
        with DaemonProcess(node, settings=values) as daemon:
            daemon.wait_for(lambda d: d["pods_known"])
            yield daemon, world


def refused_to_abort(world: Cluster) -> float:
    """Count refusals; there is a series once there was one."""
    series = 'fusewatchd_aborts_total{outcome="refused",reason="report_only"}'
    return world.metric(series) if series in world.metrics() else 0.0


def aborts(world: Cluster, outcome: str, reason: str = "none") -> float:
    return world.metric(f'fusewatchd_aborts_total{{outcome="{outcome}",reason="{reason}"}}')


@READ
@in_lab(timeout=90)
def test_a_hung_connection_is_aborted_once_and_recovers(node: DemoNode, has_read: bool) -> None:
    hung, other = node.add_source("hung"), node.add_source("other")
    _, one = pod_with_container(node, hung, "one")
    _, two = pod_with_container(node, hung, "two")
    _, bystander = pod_with_container(node, other, "other")
    with world_of(node) as (daemon, world):
        daemon.wait_until_watching(6)
        assert aborts(world, "aborted") == 0
        if has_read:
            hung.hold()
        else:
            hung.pause()
        blocked = one.begin("read", path="/data/hello")
        daemon.wait_for(lambda d: verdicts(d)["hung"] == 4)
        document = daemon.wait_for(lambda d: verdicts(d)["stale"] == 4)
        assert {
            b["evidence"].partition(";")[0] for b in document["binds"] if b["verdict"] == "stale"
        } == {"Transport endpoint is not connected"}
        with pytest.raises(OSError) as error:
            one.finish(blocked)
        assert error.value.errno in (errno.ECONNABORTED, errno.ENOTCONN)
        assert bystander.read("/data/hello") == "other"
        assert aborts(world, "aborted") == 1
        hung.restart()
        for container in (one, two):
            container.wait_until_readable("/data/hello", DEADLINE)
        daemon.wait_until_watching(6)
        assert aborts(world, "aborted") == 1
        expected = [
            "FuseMountHung", "FuseMountAborting", "FuseMountAborted", "FuseMountRecovered",
        ]  # fmt: skip
        for pod in ("one", "two"):
            wait_until(
                lambda pod=pod: said_of(world, pod) == expected, str(world.apiserver.events())
            )
        assert said_of(world, "other") == []
        log = daemon.log()
        assert log.count("aborting a hung FUSE connection") == 1
        assert log.count("hung FUSE connection aborted") == 1
        assert log.count("the aborted connection is dead") == 1
        stop_in_time(daemon)
        wait_until(lambda: not probe_children(), "a probe child is left")


def said_of(world: Cluster, pod: str) -> list[str]:
    events = [e for e in world.apiserver.events() if e["regarding"]["name"] == pod]
    return [event["reason"] for event in events]


@pytest.mark.slow
@in_lab(timeout=90)
def test_one_that_answers_now_and_then_is_never_aborted(node: DemoNode) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "p")
    with DaemonProcess(node, settings={**ABORT, "hung.abort_confirmations": "3"}) as daemon:
        daemon.wait_until_watching(2)
        before = fuse_lines()
        for _ in range(3):
            source.hold()
            daemon.wait_for(lambda d: any("confirmed" in b["evidence"] for b in d["binds"]))
            source.release()
            daemon.wait_until_watching(2)
        assert fuse_lines() == before
        assert container.read("/data/hello") == "one"
        assert "aborted" not in daemon.log().replace("not aborted", "")


@pytest.mark.slow
@in_lab(timeout=90)
def test_one_that_serves_others_but_not_statfs_is_never_aborted(node: DemoNode) -> None:
    """The queue never gets empty, but it moves."""
    options = ServerOptions(holds_only="STATFS", attr_timeout=0.0)
    source = node.add_source("one", options=options)
    _, container = pod_with_container(node, source, "p")
    with DaemonProcess(node, settings={**ABORT, "hung.abort_confirmations": "1"}) as daemon:
        daemon.wait_until_watching(2)
        source.hold()
        container.start_open_loop("/data/hello")
        daemon.wait_for(lambda d: verdicts(d)["hung"] == 2)
        time.sleep(3 * LONG_ENOUGH)
        assert "hung FUSE connection aborted" not in daemon.log()
        report = container.stop_open_loop("/data/hello")
        assert [t.errno for t in report.transitions] == [0]
        source.release()
        daemon.wait_until_watching(2)


def asking(path: str) -> int:
    """Start a process that waits for an answer of the file system at this path."""
    pid = os.fork()
    if pid == 0:
        try:
            os.statvfs(path)
        finally:
            os._exit(0)
    return pid


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"recovery.mode": "report"}, "report_only"),
        ({"hung.abort": "false"}, None),
        ({"hung.abort_confirmations": "1000"}, "unconfirmed"),
    ],
    ids=["report", "off", "unconfirmed"],
)
@in_lab(timeout=90)
def test_what_must_not_be_aborted(
    node: DemoNode, settings: dict[str, str], refusal: str | None
) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "p")
    with world_of(node, **settings) as (daemon, world):
        daemon.wait_until_watching(2)
        source.pause()
        daemon.wait_for(lambda d: verdicts(d)["hung"] == 2)
        time.sleep(LONG_ENOUGH)
        document = daemon.status()
        assert verdicts(document)["hung"] == 2
        assert {b["refusal"] for b in document["binds"]} == {refusal}
        assert refused_to_abort(world) == (refusal == "report_only")
        is_told = "hung connection not aborted" in daemon.log()
        assert is_told == (refusal == "report_only")
        source.resume()
        daemon.wait_until_watching(2)
        assert container.read("/data/hello") == "one"


@pytest.mark.slow
@in_lab(timeout=90)
def test_without_fusectl_nothing_is_aborted_and_that_is_said(node: DemoNode) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "p")
    syscalls.umount2(fusectl.CONNECTIONS, syscalls.MNT_DETACH)
    with world_of(node) as (daemon, world):
        daemon.wait_until_watching(2)
        source.pause()
        document = daemon.wait_for(
            lambda d: {b["refusal"] for b in d["binds"]} == {"no_fusectl"}, DEADLINE
        )
        assert "fusectl" in {gap["source"] for gap in document["gaps"]}
        time.sleep(LONG_ENOUGH)
        assert aborts(world, "refused", "no_fusectl") == 1
        assert "hung connection not aborted" in daemon.log()
        source.resume()
        daemon.wait_until_watching(2)
        assert container.read("/data/hello") == "one"


@pytest.mark.slow
@in_lab(timeout=90)
def test_an_ignored_file_system_is_neither_asked_nor_aborted(node: DemoNode) -> None:
    ignored = node.add_source("ignored", options=ServerOptions(fs_type="fuse.portal"))
    other = node.add_source("other")
    pod = node.add_pod("p1", [PodVolume("v", ignored)], [])
    node.add_pod("p2", [PodVolume("v", other)], [])
    number = connection_of(ignored)
    ignored.pause()
    caller = asking(pod.volume_path("v"))
    with DaemonProcess(node, settings=ABORT) as daemon:
        daemon.wait_until_watching(1)
        wait_until(lambda: waiting(number) == 1, "no caller")
        time.sleep(LONG_ENOUGH)
        assert len(daemon.status()["binds"]) == 1
        assert waiting(number) == 1
        ignored.resume()
        assert os.waitpid(caller, 0)[1] == 0
