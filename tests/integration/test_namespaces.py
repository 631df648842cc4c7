"""The walk through /proc: whose mounts, whose servers, and nothing that can stop it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from fusewatchd.demo.node.node import DemoNode, ForeignKind
from fusewatchd.demo.node.pods import PodMount, PodVolume, VolumeKind
from fusewatchd.demo.node.world import PrivateWorld
from fusewatchd.json_values import encode
from fusewatchd.linux import procfs, syscalls
from fusewatchd.model import quota
from fusewatchd.model.mounts import Device, MountNamespace, NamespaceKind
from fusewatchd.model.quota import FOREIGN, OwnerKind, RefusedOwner, Resource
from fusewatchd.observe.namespaces import own_namespaces
from fusewatchd.observe.namespaces.cgroupfs import Membership
from fusewatchd.observe.namespaces.descriptors import DescriptorLooks
from fusewatchd.observe.namespaces.proven import ProvenContainers
from fusewatchd.observe.namespaces.scanner import (
    DEADLINE_SECONDS,
    NamespaceScanner,
    ScanResult,
    serve_scans,
)
from fusewatchd.observe.namespaces.walk import Walker
from fusewatchd.observe.namespaces.watch import NamespaceWatch
from fusewatchd.parse.fdinfo import connection_of
from fusewatchd.workers.channel import Channel
from fusewatchd.workers.fork_server import ForkServer, Worker, WorkerKind
from fusewatchd.workers.privileges import PRIVILEGES, Kind
from tests.intruder import intruder
from tests.lab import in_lab, pod_with_container, run_in_world

SECONDS = 20.0


def never_answer(channel: Channel) -> None:
    channel.serve(lambda _: None)


FIRST, LATE = (
    MountNamespace(inode, inode, 1, NamespaceKind.CONTAINER, "uid", "id", ()) for inode in (7, 8)
)


def hang_in_the_second_walk(channel: Channel) -> None:
    """Tell all of a first walk, and of the second one a container more, but no end."""
    told = {"end": True, "servers": [], "refused": 0, "malformed": 0, "unseen": 0, "over": []}
    told |= {"unchanged": [], "kept": []}

    def walk(_: object) -> None:
        if walks:
            channel.send({"namespaces": [encode(replace(FIRST, pid=9)), encode(LATE)]})
            return
        walks.append(1)
        channel.send({"namespaces": [encode(FIRST)]})
        channel.send(told)

    walks: list[int] = []
    channel.serve(walk)


class Scans:
    """A scanner with its worker, for the length of a ``with`` block."""

    def __init__(self, *first_kinds: str) -> None:
        self.kinds = list(first_kinds)
        self.server = ForkServer.start(
            {
                "scan": WorkerKind(
                    partial(serve_scans, proven=ProvenContainers()), PRIVILEGES[Kind.SCAN]
                ),
                "mute": WorkerKind(never_answer, PRIVILEGES[Kind.SCAN]),
                "half": WorkerKind(hang_in_the_second_walk, PRIVILEGES[Kind.SCAN]),
            }
        )
        self.workers: list[Worker] = []
        self.scanner = NamespaceScanner(self._spawn)

    def _spawn(self) -> Worker:
        self.workers.append(self.server.spawn(self.kinds.pop(0) if self.kinds else "scan"))
        return self.workers[-1]

    def __enter__(self) -> Scans:
        return self

    def __exit__(self, *_: object) -> None:
        self.scanner.close()
        self.server.close()

    def scan(self) -> ScanResult:
        self.scanner.request(time.monotonic())
        return self.wait()

    def wait(self) -> ScanResult:
        poll = select.poll()
        poll.register(self.scanner.fileno(), select.POLLIN)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            poll.poll(SECONDS * 1000)
            result = self.scanner.collect(time.monotonic())
            if result is not None:
                return result
        raise AssertionError("no result")


def device_at(path: str) -> Device:
    fd = os.open(path, os.O_PATH)
    try:
        return Device(*syscalls.device_of(fd))
    finally:
        os.close(fd)


def namespace_of(result: ScanResult, inode: int) -> MountNamespace:
    (found,) = [namespace for namespace in result.namespaces if namespace.inode == inode]
    return found


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.001)


# ---------------------------------------------------------------------------- the node


@pytest.mark.kernel
@in_lab()
def test_containers_and_their_mounts(node: DemoNode) -> None:
    source = node.add_source("one", files={"hello": "one", "cache/.keep": ""})
    volumes = [PodVolume("v", source), PodVolume("e", kind=VolumeKind.EMPTY_DIR)]
    pod = node.add_pod("app", volumes, [PodMount("v", "/data"), PodMount("e", "/data/cache")])
    container = node.start_container(pod)
    plain = node.start_container(node.add_pod("plain"))
    with Scans() as scans:
        result = scans.scan()
        found = namespace_of(result, container.mount_namespace)
        assert found.kind is NamespaceKind.CONTAINER
        assert found.pod_uid == pod.uid
        assert found.container_id
        assert found.start_time == procfs.process_start_time(found.pid)
        assert procfs.ns_inode(found.pid, "mnt") == container.mount_namespace
        (volume,) = [mount for mount in found.mounts if mount.is_fuse]
        assert (volume.mount_point, volume.device) == ("/data", device_at(source.path))
        (inside,) = [mount for mount in found.mounts if mount.mount_point == "/data/cache"]
        assert inside.parent_id == volume.mount_id
        assert volume.parent_id in {mount.mount_id for mount in found.mounts}
        assert len(found.mounts) == 3
        # Nothing of ours is a namespace, neither is one without any FUSE mount.
        inodes = {namespace.inode for namespace in result.namespaces}
        assert procfs.ns_inode(os.getpid(), "mnt") not in inodes
        assert plain.mount_namespace not in inodes
        assert result.gaps == ()


@pytest.mark.kernel
@in_lab()
def test_the_own_namespace_of_a_container_is_that_of_its_oldest_process(node: DemoNode) -> None:
    source = node.add_source("one", files={"hello": "one"})
    pod, container = pod_with_container(node, source, "app")
    directory = container._cgroup_directory or pytest.skip("no cgroups here")
    with Scans() as scans, intruder(directory, {}, mount_namespace=container.pid) as process:
        made = procfs.ns_inode(process.pid, "mnt") or 0
        for _ in range(2):
            result = scans.scan()
            own, other = (namespace_of(result, i) for i in (container.mount_namespace, made))
            assert (own.pod_uid, other.pod_uid) == (pod.uid, pod.uid)
            assert (own.is_own, other.is_own) == (True, False)
            assert own.users is None
            assert other.users is not None
            assert other.users.pid == container.pid
        # In a group of its own inside the container, as those of a systemd in there.
        os.mkdir(f"{directory}/init.scope")
        move(f"{directory}/init.scope", container.pid)
        with Scans() as anew:
            assert namespace_of(anew.scan(), container.mount_namespace).is_own
        move(directory, container.pid)
        os.rmdir(f"{directory}/init.scope")


def move(directory: str, pid: int) -> None:
    with open(f"{directory}/cgroup.procs", "w") as file:
        file.write(str(pid))


def place(anchor: str, container: str, container_id: str = "c") -> Membership:
    return Membership("", container_id, f"{anchor}/kubepods/{container}", anchor)


@pytest.mark.parametrize(
    ("places", "genuine"),
    [
        ([place("/c", "a")], ["/c/kubepods/a"]),
        ([place("/c", "a"), place("/c", "a")], ["/c/kubepods/a"]),
        ([place("/c", "a"), place("/c/docker/x", "a")], ["/c/kubepods/a"]),
        ([place("/c/docker/x", "a"), place("/c", "a")], ["/c/kubepods/a"]),
        ([place("/c/docker/x", "a"), place("/c/docker/y", "a")], []),
        ([place("/c", "a"), place("/c", "b")], []),
        ([place("/c", "a"), place("/cx", "a")], []),
        ([place("/c", "a", ""), place("/d", "b", "")], ["/c/kubepods/a", "/d/kubepods/b"]),
    ],
)
def test_of_several_cgroups_with_one_id_the_kubelets_own_counts(
    places: list[Membership], genuine: list[str]
) -> None:
    assert own_namespaces._genuine(places) == set(genuine)


@pytest.mark.kernel
@in_lab()
def test_foreign_namespaces_are_known_as_such(node: DemoNode) -> None:
    node.add_source("one")
    foreign = node.add_foreign(ForeignKind.SYSTEM_UNIT)
    with Scans() as scans:
        found = namespace_of(scans.scan(), foreign.mount_namespace)
        assert found.kind is NamespaceKind.FOREIGN
        assert found.pod_uid == found.container_id == ""


@pytest.mark.kernel
@in_lab()
def test_servers_and_what_they_serve(node: DemoNode) -> None:
    one, two = node.add_source("one"), node.add_source("two")
    with Scans() as scans:
        result = scans.scan()
        if result.anonymous:
            # Before Linux 6.16: who serves is seen, what is not.
            assert {s.pid for s in result.anonymous} == {one.server.pid, two.server.pid}
            assert all("fusewatchd.demo.fuse.server" in s.command for s in result.anonymous)
            return
        for source in (one, two):
            (server,) = result.servers[device_at(source.path)]
            assert server.pid == source.server.pid
            assert server.start_time == procfs.process_start_time(server.pid)
            assert server.name.startswith("python")
            assert server.command == ""
            assert server.pod_uid == ""
        one.kill()
        assert list(scans.scan().servers) == [device_at(two.path)]


@pytest.mark.kernel
@in_lab()
def test_what_did_not_change_is_not_sent_again(node: DemoNode) -> None:
    source = node.add_source("one")
    mounts = [PodMount("v", "/data")]
    first = node.start_container(node.add_pod("first", [PodVolume("v", source)], mounts))
    second = node.start_container(node.add_pod("second", [PodVolume("v", source)], mounts))
    with Scans() as scans:
        before = scans.scan()
        again = scans.scan()
        assert again.namespaces == before.namespaces
        for namespace in before.namespaces:
            assert namespace_of(again, namespace.inode) is namespace
        first.call("umount", path="/data")
        after = scans.scan()
        inodes = {namespace.inode for namespace in after.namespaces}
        assert first.mount_namespace not in inodes
        kept = namespace_of(before, second.mount_namespace)
        assert namespace_of(after, second.mount_namespace) is kept


@pytest.mark.kernel
@in_lab()
def test_processes_that_hang_in_a_mount_do_not_stop_the_walk(node: DemoNode) -> None:
    source = node.add_source("one")
    pod = node.add_pod("app", [PodVolume("v", source)], [PodMount("v", "/data")])
    container = node.start_container(pod)
    source.pause()
    pid = os.fork()
    if pid == 0:
        try:
            os.statvfs(source.path)
        finally:
            os._exit(0)
    # Killed while the server has the request: it stays, uninterruptible, until an answer.
    container.begin("statfs", path="/data")
    time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    with Scans() as scans:
        result = scans.scan()
        assert namespace_of(result, container.mount_namespace).pod_uid == pod.uid
        assert result.gaps == ()
    source.resume()
    os.waitpid(pid, 0)


# --------------------------------------------------------------- processes of all kinds


def in_child(work: Callable[[], Any]) -> tuple[int, Any]:
    """Fork a child that tells what ``work`` returns and waits to be killed."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            theirs.sendall(json.dumps(work()).encode() + b"\n")
            theirs.close()
            signal.pause()
        finally:
            os._exit(1)
    theirs.close()
    ours.settimeout(SECONDS)
    with ours, ours.makefile("rb") as file:
        return pid, json.loads(file.readline())


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.kernel
@in_lab()
def test_a_process_that_sees_the_whole_table_stands_for_its_namespace(node: DemoNode) -> None:
    source = node.add_source("one")

    def enter_and_chroot() -> Any:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        inner, _ = in_child(lambda: None)
        os.chroot(node.lab)
        return inner

    pid, inner = in_child(enter_and_chroot)
    try:
        assert inner > pid  # so the walk meets the one with the smaller view first
        inode = procfs.ns_inode(pid, "mnt")
        assert inode is not None
        with Scans() as scans:
            found = namespace_of(scans.scan(), inode)
            assert found.pid == inner
            assert source.path in {mount.mount_point for mount in found.mounts}
            os.kill(inner, signal.SIGKILL)
            wait_for(lambda: procfs.ns_inode(inner, "mnt") is None, "the child lives on")
            found = namespace_of(scans.scan(), inode)
            assert found.pid == pid
            shown = {mount.mount_point for mount in found.mounts if mount.is_fuse}
            assert shown == {source.path.removeprefix(node.lab)}
    finally:
        end(pid)


@pytest.mark.kernel
def test_ended_processes_are_no_gap() -> None:
    def body(world: PrivateWorld) -> None:
        zombies = []
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            zombies.append(pid)
        with Scans() as scans:
            wait_for(
                lambda: all(b") Z " in read(f"/proc/{pid}/stat") for pid in zombies), "no zombie"
            )
            assert scans.scan().gaps == ()
        for pid in zombies:
            os.waitpid(pid, 0)

    run_in_world(body)


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@pytest.mark.kernel
def test_processes_that_may_not_be_looked_at_are_a_gap() -> None:
    def body(world: PrivateWorld) -> None:
        os.setgroups([])
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
        with pytest.raises(PermissionError):
            procfs.ns_inode(1, "mnt")
        told: list[dict[str, Any]] = []
        Walker().walk(told.append)
        assert told[-1]["refused"] >= 1

    run_in_world(body)


def test_refused_processes_and_bad_tables_are_named() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    scanner = NamespaceScanner(lambda: Worker(NoServer(), 1, 0, Channel(ours)))
    scanner.request(0.0)
    over = [encode(RefusedOwner(FOREIGN, Resource.TABLE, 5000))]
    counts = {"refused": 2, "malformed": 1, "unseen": 0}
    none: dict[str, list[int]] = {"servers": [], "unchanged": [], "kept": []}
    Channel(theirs).send({"end": True, **none, **counts, "over": over})
    result = scanner.collect(0.5)
    assert result is not None
    assert [gap.source for gap in result.gaps] == ["namespaces", "namespaces"]
    assert "2 processes" in result.gaps[0].reason
    assert (result.started_at, result.elapsed) == (0.0, 0.5)
    assert result.refused_owners == (RefusedOwner(FOREIGN, Resource.TABLE, 5000),)
    scanner.close()
    theirs.close()


# --------------------------------------------------------------------------- the daemon


class NoServer(ForkServer):
    """For workers that are sockets only."""

    def __init__(self) -> None:
        pass

    def kill(self, number: int) -> None:
        pass


def in_world(body: Callable[[], None]) -> None:
    run_in_world(lambda world: body())


@pytest.mark.kernel
def test_requests_during_a_walk_make_one_more() -> None:
    def body() -> None:
        with Scans() as scans:
            for now in (1.0, 2.0, 3.0):
                scans.scanner.request(now)
            assert scans.wait().started_at == 1.0
            assert scans.wait().started_at > 3.0
            assert not scans.scanner.is_running
            assert scans.scanner.collect(time.monotonic()) is None

    in_world(body)


@pytest.mark.kernel
def test_a_walk_that_does_not_end_is_given_up() -> None:
    def body() -> None:
        with Scans("mute") as scans:
            fd = scans.scanner.fileno()
            scans.scanner.request(100.0)
            scans.scanner.request(101.0)
            assert scans.scanner.next_deadline() == 100.0 + DEADLINE_SECONDS
            assert scans.scanner.collect(100.0 + DEADLINE_SECONDS - 0.1) is None
            with pytest.raises(TimeoutError):
                scans.scanner.collect(100.0 + DEADLINE_SECONDS)
            assert scans.scanner.fileno() == fd
            # What was asked for meanwhile is done by the new worker.
            assert scans.wait().started_at == 100.0 + DEADLINE_SECONDS
            assert scans.scanner.next_deadline() is None

    in_world(body)


@pytest.mark.kernel
def test_a_container_that_is_first_seen_in_a_walk_that_does_not_end_is_known() -> None:
    """What was known before stays as it was: when that was seen is known."""

    def body() -> None:
        with Scans("half", "mute") as scans:
            watch = NamespaceWatch(scans.scanner)
            poll = select.poll()
            poll.register(scans.scanner.fileno(), select.POLLIN)
            watch.look_if_due(time.monotonic())
            wait_for(lambda: bool(watch.collect((), time.monotonic())), "no first walk")
            looked_at = watch.looked_at
            watch.want_now()
            watch.look_if_due(time.monotonic())
            assert poll.poll(SECONDS * 1000)
            assert watch.collect((), time.monotonic()) is None
            assert watch.all == (FIRST,)
            assert watch.collect((), time.monotonic() + DEADLINE_SECONDS) is None
            assert watch.all == (FIRST, LATE)
            assert [gap.source for gap in watch.gaps] == ["namespaces"]
            assert watch.looked_at == looked_at

    in_world(body)


@pytest.mark.kernel
def test_a_worker_that_ends_is_replaced_whether_it_works_or_not() -> None:
    def body() -> None:
        with Scans("mute", "mute") as scans:
            poll = select.poll()
            poll.register(scans.scanner.fileno(), select.POLLIN)
            os.kill(scans.workers[0].pid, signal.SIGKILL)
            assert poll.poll(SECONDS * 1000)
            assert scans.scanner.collect(1.0) is None
            assert not poll.poll(0), "the loop outside would spin"
            scans.scanner.request(2.0)
            os.kill(scans.workers[1].pid, signal.SIGKILL)
            assert poll.poll(SECONDS * 1000)
            with pytest.raises(TimeoutError):
                scans.scanner.collect(3.0)
            assert not poll.poll(0)
            assert scans.scan().gaps == ()
            assert len(scans.workers) == 3

    in_world(body)


@pytest.mark.kernel
@in_lab()
def test_a_new_worker_tells_everything_again(node: DemoNode) -> None:
    source = node.add_source("one")
    pod = node.add_pod("app", [PodVolume("v", source)], [PodMount("v", "/data")])
    node.start_container(pod)
    with Scans() as scans:
        before = scans.scan()
        os.kill(scans.workers[0].pid, signal.SIGKILL)
        poll = select.poll()
        poll.register(scans.scanner.fileno(), select.POLLIN)
        assert poll.poll(SECONDS * 1000)
        assert scans.scanner.collect(time.monotonic()) is None
        assert scans.scan().namespaces == before.namespaces


# ------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("fdinfo", "device"),
    [
        (b"pos:\t0\nflags:\t02100002\nmnt_id:\t30\nino:\t5\n", None),
        (b"pos:\t0\nflags:\t02100002\nino:\t5\nfuse_connection:\t62\n", Device(0, 62)),
        (b"fuse_connection:\t8388625\n", Device(8, 17)),  # fuseblk: the disk's number
        (b"", None),
    ],
    ids=["before 6.16", "fuse", "fuseblk", "closed"],
)
def test_connection_of_a_descriptor(fdinfo: bytes, device: Device | None) -> None:
    assert connection_of(fdinfo) == device


def test_our_own_process() -> None:
    pid = os.getpid()
    assert pid in procfs.list_pids()
    assert procfs.ns_inode(pid, "mnt") == os.stat("/proc/self/ns/mnt").st_ino
    assert procfs.ns_inode(pid, "user") == os.stat("/proc/self/ns/user").st_ino
    with procfs.open_process(pid) as process:
        assert process.cgroup() == os.fsdecode(read("/proc/self/cgroup"))
        assert process.root() == os.readlink("/proc/self/root")
        with process.descriptors() as fds:
            assert {"0", "1", "2"} <= set(os.listdir(fds))


@pytest.mark.parametrize(
    "read_it",
    [procfs.process_start_time, lambda pid: procfs.ns_inode(pid, "mnt")],
    ids=["start time", "namespace"],
)
def test_no_process_is_no_error(read_it: Callable[[int], object]) -> None:
    assert read_it(1 << 23) is None  # beyond any pid_max, proc_sys_kernel(5)


def fake_process(directory: Any, name: bytes, state: bytes, cmdline: bytes) -> None:
    process = directory / "7"
    process.mkdir()
    fields = b" ".join(b"%d" % number for number in range(4, 53))
    process.joinpath("stat").write_bytes(b"7 (" + name + b") " + state + b" " + fields + b"\n")
    process.joinpath("cmdline").write_bytes(cmdline)


@pytest.mark.parametrize("name", [b"plain", b"with space", b"a) S (b", b"\xff\n"])
def test_names_may_hold_anything(tmp_path: Any, name: bytes) -> None:
    fake_process(tmp_path, name, b"S", b"")
    with procfs.open_process(7, str(tmp_path)) as process:
        assert process.stat()[0] == os.fsdecode(name)
    assert procfs.process_start_time(7, str(tmp_path)) == 22


@pytest.mark.parametrize(
    ("state", "cmdline", "command"),
    [
        (b"S", b"s3fs\0bucket\0/mnt\0", "s3fs bucket /mnt"),
        (b"S", b"x" * 5000, "x" * 256),
        (b"S", b"\xff\0", "\udcff"),
        (b"S", b"", "name"),
        (b"D", b"s3fs\0", "name"),
    ],
    ids=["words", "long", "bytes", "kernel thread", "waits uninterruptibly"],
)
def test_command(tmp_path: Any, state: bytes, cmdline: bytes, command: str) -> None:
    fake_process(tmp_path, b"name", state, cmdline)
    with procfs.open_process(7, str(tmp_path)) as process:
        assert process.command() == command


def test_a_descriptor_never_passes_on_to_another_process() -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    with procfs.open_process(pid) as process:
        assert process.stat()[2] == procfs.process_start_time(pid)
        end(pid)
        with pytest.raises((ProcessLookupError, FileNotFoundError)):
            process.stat()


@pytest.mark.kernel
def test_a_process_with_many_descriptors_is_looked_through_in_several_looks() -> None:
    """What was found stays found until the whole of it was looked at once more."""

    def body(world: PrivateWorld) -> None:
        null = os.open("/dev/null", os.O_RDONLY)
        many = [os.dup(null) for _ in range(900)]
        fuse = os.open("/dev/fuse", os.O_RDWR)
        looks = DescriptorLooks(reads_connections=True)

        def look() -> bool:
            with procfs.open_process(os.getpid()) as process:
                return looks.look(process, 256)[0].is_server

        assert [look() for _ in range(4)] == [False, False, False, True]
        assert [look() for _ in range(8)] == [True] * 8
        os.close(fuse)
        assert [look() for _ in range(8)][-1] is False
        for fd in many:
            os.close(fd)
        assert look() is False
        assert looks._turns == {}

    run_in_world(body)


@pytest.mark.kernel
def test_the_worker_that_reads_what_others_write_is_the_first_to_go() -> None:
    def body() -> None:
        with Scans() as scans:
            scans.scan()
            pid = scans.workers[0].pid
            assert int(read(f"/proc/{pid}/oom_score_adj")) == 500
            (line,) = (one for one in read(f"/proc/{pid}/limits").splitlines() if b"address" in one)
            assert line.split()[3:5] == [b"268435456", b"268435456"]

    in_world(body)


@pytest.mark.kernel
@in_lab()
def test_a_namespace_is_seen_by_another_process_when_the_first_one_ends(node: DemoNode) -> None:
    node.add_source("one")
    told_pid, tell_pid = os.pipe()
    first = os.fork()
    if first == 0:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        second = os.fork()
        if second:
            os.write(tell_pid, str(second).encode())
        signal.pause()
        os._exit(1)
    second = int(os.read(told_pid, 16))
    inode = procfs.ns_inode(second, "mnt")

    class Walk(Walker):
        def _tell_namespaces(self, *arguments: Any) -> None:
            os.kill(first, signal.SIGKILL)
            os.waitpid(first, 0)
            super()._tell_namespaces(*arguments)

    told: list[dict[str, Any]] = []
    try:
        Walk().walk(told.append)
        rows = [row for message in told for row in message.get("namespaces", ())]
        assert [row["pid"] for row in rows if row["inode"] == inode] == [second]
    finally:
        os.kill(second, signal.SIGKILL)


@pytest.mark.kernel
def test_who_has_no_time_left_goes_on_in_the_next_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process in each walk, and what was found before is not lost."""
    short = replace(quota.OF_FOREIGN, walk_seconds=1e-9)
    monkeypatch.setitem(quota._LIMITS, OwnerKind.FOREIGN, short)

    def body(world: PrivateWorld) -> None:
        users = []
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                os.open("/dev/fuse", os.O_RDWR)
                os.setresuid(1000, 1000, 1000)
                signal.pause()
            users.append(pid)
        wait_for(lambda: all(os.stat(f"/proc/{pid}").st_uid == 1000 for pid in users), "no users")
        walker, found = Walker(), []
        for _ in range(4):
            told: list[dict[str, Any]] = []
            walker.walk(told.append)
            found.append({server["pid"] for server in told[-1]["servers"]} & {*users})
            over = [(one["owner"]["kind"], one["resource"]) for one in told[-1]["over"]]
            assert over == [("foreign", "walk")]
        assert [len(pids) for pids in found] == [1, 2, 3, 3]
        for pid in users:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    run_in_world(body)
