"""How a server ended, as far as a stranger can tell: for lack of memory, or not, and by what."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fusewatchd.demo.cluster.apiserver import DemoApiServer
from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodMount, PodVolume
from fusewatchd.demo.timeouts import patient
from fusewatchd.linux.procfs import process_start_time
from fusewatchd.model.mounts import Device
from fusewatchd.model.servers import FuseServer, MemoryCgroup, OomKill, ServerEnd
from fusewatchd.observe.servers.exits import ServerEnds
from fusewatchd.observe.servers.oom_kills import Hierarchy, KillCounters, find_hierarchies
from fusewatchd.observe.servers.pidfd import ServerWatch
from tests.features import Feature, lacking
from tests.lab import in_lab, pod_with_container
from tests.memorycgroups import begin_in, memory_cgroup, remove, run_out_of_memory

pytestmark = pytest.mark.kernel

DEVICE = Device(0, 77)
CID = "c" * 64
POD = "/kubepods/pod50a97417-eded-45b5-9699-867eb25c5bb8"
BINDFS = ("bindfs", "-f", "{backing}", "{mount}")


def server_of(document: Any) -> Any:
    (server,) = document["servers"]
    return server


def wait_until_known(daemon: DaemonProcess, *, is_old: bool = False) -> None:
    """Wait until the only server is watched; where it is not told which one it is, for a while."""
    if is_old or Feature.FUSE_FDINFO in lacking():
        time.sleep(patient(1.0))
    else:
        daemon.wait_for(lambda d: server_of(d)["processes"])


def by_source(document: Any) -> dict[str, Any]:
    return {server["source"]: server for server in document["servers"]}


def is_over(document: Any) -> bool:
    return bool(server_of(document)["restarts"])


# ------------------------------------------------------------- under the real daemon


@in_lab(timeout=90)
def test_a_server_killed_for_lack_of_memory_is_told_as_that(node: DemoNode) -> None:
    """In the status, the log and the Event; the server is a pod's, as those of many drivers."""
    fuse = node.add_pod("juicefs-0", namespace="kube-system")
    with memory_cgroup(below=f"kubepods/pod{fuse.uid}/{CID}") as cgroup:
        source = node.add_source("one", command=begin_in(cgroup, *BINDFS))
        pod_with_container(node, source, "web")
        Path(f"/proc/{source.server.pid}/oom_score_adj").write_text("1000")
        with DemoKubelet(node.pod_list) as kubelet, DemoApiServer() as apiserver:
            settings = {"kubelet.url": kubelet.url, "apiserver.url": apiserver.url}
            with DaemonProcess(node, settings=settings) as daemon:
                daemon.wait_until_watching(2)
                daemon.wait_for(lambda d: d["pods_known"])
                wait_until_known(daemon)
                pid = source.server.pid
                run_out_of_memory(cgroup)
                assert source.server.exit_status() == -signal.SIGKILL
                document = daemon.wait_for(lambda d: d["incidents"])
                end = document["incidents"][0]["server_end"]
                process = end["process"]
                assert (process["pid"], process["name"]) == (pid, "bindfs")
                assert (process["pod"]["name"], process["container"]) == ("juicefs-0", CID)
                assert end["oom_kill"] == "yes"
                source.restart()
                server = server_of(daemon.wait_for(is_over))
                log = daemon.log()
            posted = apiserver.events()
        source.kill()
    assert (server["outages"], server["restarts"], server["oom_kills"]) == (1, 1, 1)
    assert server["last_outage_ms"] > 0
    (line,) = [x for x in log.splitlines() if "event=server_gone" in x]
    assert f"bindfs (pid {pid}), killed by the OOM killer" in line
    assert "server_pod=kube-system/juicefs-0" in line
    (stale,) = [e for e in posted if e["reason"] == "FuseMountStale" and "pod" in e["note"]]
    assert stale["note"].endswith("(OOM kill).")
    assert stale["related"]["name"] == "juicefs-0"


@pytest.mark.parametrize("is_old", [False, True], ids=["kernel", "old-kernel"])
@in_lab(timeout=90)
def test_a_server_that_somebody_killed_is_no_lack_of_memory(node: DemoNode, is_old: bool) -> None:
    """Also where the kernel does not tell which connection a server serves."""
    with memory_cgroup() as cgroup:
        source = node.add_source("one", command=begin_in(cgroup, *BINDFS))
        node.add_pod("p", [PodVolume("v", source)], [PodMount("v", "/data")])
        with DaemonProcess(node, as_old_kernel=is_old) as daemon:
            daemon.wait_until_watching(1)
            wait_until_known(daemon, is_old=is_old)
            source.kill()
            source.restart()
            end = server_of(daemon.wait_for(is_over))["last_end"]
            assert end["oom_kill"] == "no"
            assert end["oom_evidence"] == "no OOM kill in its cgroup"
            if end["wait_status"] is not None:  # since Linux 6.15
                assert end["wait_status"] == signal.SIGKILL
                assert end["how"] == "killed by SIGKILL"
        source.kill()


@in_lab(timeout=90)
def test_a_cgroup_that_is_gone_at_once_is_not_kept(node: DemoNode) -> None:
    with memory_cgroup() as cgroup:
        source = node.add_source("one", command=begin_in(cgroup, *BINDFS))
        node.add_pod("p", [PodVolume("v", source)], [])
        with DaemonProcess(node) as daemon:
            daemon.wait_until_watching(1)
            wait_until_known(daemon)
            os.kill(daemon.pid, signal.SIGSTOP)
            try:
                source.kill()
                remove(cgroup)
            finally:
                os.kill(daemon.pid, signal.SIGCONT)
            document = daemon.wait_for(lambda d: d["incidents"])
        # Others on this machine may run out of memory meanwhile.
        end = document["incidents"][0]["server_end"]
        known = {
            "no": "no OOM kill on this node",
            "unknown": "its cgroup was gone before it could be asked",
        }
        assert end["oom_evidence"] == known[end["oom_kill"]]


LISTENER = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print(flush=True)
held = listener.accept()
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def listening(path: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that says a line when its socket is there, and one when somebody is connected."""
    command = [sys.executable, "-c", LISTENER, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            read_line(process)
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    process.stdout.readline()


@in_lab(timeout=90)
def test_a_socket_makes_what_belongs_to_it_be_asked_and_nothing_else(node: DemoNode) -> None:
    one, other = node.add_source("one"), node.add_source("other")
    for source in (one, other):
        node.add_pod(source.name, [PodVolume("v", source)], [])
    path = os.path.join(node.lab, "one.sock")
    settings = {
        "sockets": f"[{{glob: {node.lab}/*.sock, source: {one.path}}}]",
        "probe.interval_seconds": "3600",
        "probe.deadline_seconds": "0.2",
    }
    with listening(path) as listener, DaemonProcess(node, settings=settings) as daemon:
        daemon.wait_until_watching(2)
        read_line(listener)
        for source in (one, other):
            source.pause()
        listener.kill()
        document = daemon.wait_for(lambda d: d["totals"]["verdicts"]["healthy"] == 1)
        verdicts = {bind["source"]["path"]: bind["verdict"] for bind in document["binds"]}
        # Its socket says that the server ended, and it is not dead: something may keep it.
        assert verdicts == {one.path: "held", other.path: "healthy"}
        for source in (one, other):
            source.resume()


@in_lab(timeout=90)
def test_a_socket_is_evidence_and_restarts_are_counted(node: DemoNode) -> None:
    one, other = node.add_source("one"), node.add_source("other")
    for source in (one, other):
        node.add_pod(source.name, [PodVolume("v", source)], [])
    path = os.path.join(node.lab, "one.sock")
    settings = {"sockets": f"[{{glob: {path}, source: {one.path}}}]"}
    with listening(path) as listener, DaemonProcess(node, settings=settings) as daemon:
        daemon.wait_until_watching(2)
        read_line(listener)
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            one.kill()
            listener.kill()
            listener.wait(patient(10))
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        document = daemon.wait_for(lambda d: d["incidents"] and d["incidents"][0]["server_end"])
        assert document["incidents"][0]["server_end"]["socket"] == path
        one.restart()
        daemon.wait_for(lambda d: by_source(d)[one.path]["restarts"] == 1)
        one.restart()
        document = daemon.wait_for(lambda d: by_source(d)[one.path]["restarts"] == 2)
        assert by_source(document)[other.path]["outages"] == 0


# -------------------------------------------------------------------------- in pieces


def watched(*command: str) -> tuple[subprocess.Popen[bytes], FuseServer]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    start_time = process_start_time(process.pid)
    assert start_time is not None
    return process, FuseServer(process.pid, start_time, (DEVICE,), name="x")


def test_an_end_between_two_looks_is_told_although_the_second_names_it_no_more() -> None:
    watch = ServerWatch()
    process, server = watched("sleep", "100")
    watch.update({DEVICE: (server,)})
    process.kill()
    process.wait()
    watch.update({})
    assert watch.exited() == [server]
    watch.close()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("exit 3", "exit status 3"),
        ("kill -TERM $$", "killed by SIGTERM"),
        ("kill -9 $$", "killed by SIGKILL"),
    ],
)
def test_the_exit_status_follows_once_the_parent_has_waited(code: str, text: str) -> None:
    ends = ServerEnds()
    process, server = watched("sh", "-c", f"read x; {code}")
    ends.update({DEVICE: (server,)}, 0.0)
    assert process.stdin is not None
    process.stdin.close()
    end = wait_for_end(ends)
    assert end.server == server
    assert end.status is None  # a zombie: nobody has waited for it yet
    process.wait()
    fuller = ends.completed(1.0)
    if not fuller:
        assert not has_exit_info()
        assert "only its parent can read it" in end.describe()
    else:
        assert fuller[end].describe() == text
    ends.close()


def has_exit_info() -> bool:
    major, minor = map(int, os.uname().release.split(".")[:2])
    return (major, minor) >= (6, 15)


def wait_for_end(ends: ServerEnds) -> ServerEnd:
    limit = time.monotonic() + patient(10)
    while time.monotonic() < limit:
        for end in ends.exited(0.0):
            return end
        time.sleep(0.005)
    raise TimeoutError


def test_not_killed_at_all_is_no_lack_of_memory() -> None:
    """A kill in its cgroup that was another's, and an end that was its own will."""
    with memory_cgroup() as cgroup:
        (memory,) = [
            MemoryCgroup(version, f"/{cgroup.name}")
            for version, found in find_hierarchies(
                Path("/proc/self/mountinfo").read_bytes()
            ).items()
            if cgroup.parent == Path(found.directory)
        ]
        ends = ServerEnds()
        process, server = watched(*begin_in(cgroup, "sh", "-c", "read x; exit 1"))
        while str(process.pid) not in (cgroup / "cgroup.procs").read_text().split():
            time.sleep(0.005)
        ends.update(
            {DEVICE: (FuseServer(server.pid, server.start_time, (DEVICE,), memory=memory),)}, 0.0
        )
        run_out_of_memory(cgroup)
        assert process.stdin is not None
        process.stdin.close()
        end = wait_for_end(ends)
        assert end.oom is OomKill.YES
        process.wait()
        for fuller in ends.completed(1.0).values():
            assert (fuller.oom, fuller.why) == (OomKill.NO, "it was not ended by SIGKILL")
        ends.close()


@pytest.fixture
def unified(tmp_path: Path) -> Path:
    """What looks like a v2 hierarchy with a container in a pod."""
    for path in (POD, f"{POD}/{CID}"):
        (tmp_path / path[1:]).mkdir(parents=True, exist_ok=True)
        write_kills(tmp_path, path, 2)
    return tmp_path


def write_kills(root: Path, path: str, count: int | None) -> None:
    text = "" if count is None else f"low 0\nmax 9\noom 9\noom_kill {count}\noom_group_kill 0\n"
    (root / path[1:] / "memory.events").write_text(text)


def counters(root: Path, path: str = f"{POD}/{CID}") -> KillCounters:
    return KillCounters(MemoryCgroup(2, path), {2: Hierarchy(str(root))})


@pytest.mark.parametrize(
    ("own", "pod", "expected"),
    [
        (3, 3, (OomKill.YES, "an OOM kill in its cgroup")),
        (2, 3, (OomKill.NO, "no OOM kill in its cgroup")),
        (None, 3, (OomKill.YES, "an OOM kill in the cgroup of its pod")),
        (None, 2, (OomKill.NO, "no OOM kill in the cgroup of its pod")),
        (None, None, (OomKill.UNKNOWN, "its cgroup was gone before it could be asked")),
    ],
)
def test_the_pod_still_counts_when_its_container_is_gone(
    unified: Path, own: int | None, pod: int | None, expected: tuple[OomKill, str]
) -> None:
    one = counters(unified)
    write_kills(unified, f"{POD}/{CID}", own)
    write_kills(unified, POD, pod)
    assert one.compare(lambda: False) == expected
    one.close()


def test_an_old_kill_is_forgotten_at_the_second_refresh_and_a_new_one_at_none(
    unified: Path,
) -> None:
    one = counters(unified)
    write_kills(unified, f"{POD}/{CID}", 3)
    one.refresh()  # between the kill and the end of the process
    assert one.compare(lambda: False)[0] is OomKill.YES
    one.refresh()
    assert one.compare(lambda: False)[0] is OomKill.NO
    one.close()


def test_nobody_killed_on_the_machine_is_nobody_killed_here(unified: Path) -> None:
    for one in (counters(unified, "/nowhere"), counters(unified, "/../up"), KillCounters(None, {})):
        assert one.compare(lambda: True)[0] is OomKill.NO
        assert one.compare(lambda: False)[0] is OomKill.UNKNOWN
        one.close()


@pytest.mark.parametrize(
    ("hierarchy", "path", "expected"),
    [
        (Hierarchy("/cg"), "/a/b", "/cg/a/b"),
        (Hierarchy("/cg", "/docker/x"), "/docker/x/a", "/cg/a"),
        (Hierarchy("/cg", "/docker/x"), "/docker/xy", None),
        (Hierarchy("/cg"), "/../a", None),
    ],
)
def test_where_a_cgroup_is_mounted(hierarchy: Hierarchy, path: str, expected: str | None) -> None:
    assert hierarchy.directory_of(path) == expected


def test_a_carriage_return_ends_no_line() -> None:
    """The kernel escapes a line feed and nothing else that Python takes for the end of a line."""
    line = b"21 1 0:8 / /sys/fs/c\rgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
    assert find_hierarchies(line) == {2: Hierarchy("/sys/fs/c\rgroup")}
