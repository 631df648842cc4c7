"""Orders that no plan may give: a mount worker refuses them, and nothing changes."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest

from fusewatchd.act.last_word import ContainersPod, LastWord
from fusewatchd.act.layer_journal import LayerJournal
from fusewatchd.act.mount_worker import MountWorker, mount_worker
from fusewatchd.act.stand_in_journal import StandInJournal
from fusewatchd.act.worker_pages import Pages
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode, ForeignKind
from fusewatchd.demo.node.pods import DemoPod
from fusewatchd.demo.node.sources import Source
from fusewatchd.demo.timeouts import patient
from fusewatchd.linux import syscalls
from fusewatchd.model.actions import (
    AbortConnection,
    Action,
    ChildMount,
    DetachDeadSource,
    DetachOrphan,
    DetachOwnLayer,
    DropLayers,
    Expect,
    NamespaceRef,
    Outcome,
    OutcomeStatus,
    Propagation,
    ReplaceMount,
)
from fusewatchd.model.mount_table import parse_mount_table
from fusewatchd.model.mounts import Mount, TargetKey
from fusewatchd.model.verdicts import Reason
from fusewatchd.observe.namespaces.proven import COUNT, ProvenContainers
from fusewatchd.observe.namespaces.scanner import NamespaceScanner, serve_scans
from fusewatchd.workers.fork_server import ForkServer, WorkerKind
from fusewatchd.workers.privileges import PRIVILEGES, Kind
from tests.features import best_way
from tests.lab import in_lab, pod_with_container

pytestmark = pytest.mark.kernel

SECONDS = 20.0
HOST = "/proc/self/mountinfo"


class Orders:
    """A mount worker as the daemon has it, which is given orders by hand."""

    def __init__(self, forks: ForkServer, pages: Pages, kind: Kind) -> None:
        self._worker = MountWorker(lambda: forks.spawn(kind.value), pages)

    def give(self, action: Action) -> Outcome:
        self._worker.send([action], may_ask=True)
        while not (outcomes := self._worker.receive()):
            assert not self._worker.is_dead
            assert select.select([self._worker], [], [], patient(SECONDS))[0], action
        return outcomes[0]

    def require_refusal(self, action: Action, *watched: str) -> None:
        """Give an order and make sure that it is refused and changes none of these tables."""
        tables = [read(path) for path in (HOST, *watched)]
        outcome = self.give(action)
        assert (outcome.status, outcome.reason) == (OutcomeStatus.REFUSED, Reason.FORBIDDEN)
        assert outcome.detail
        assert [read(path) for path in (HOST, *watched)] == tables


@contextmanager
def orders(
    node: DemoNode,
    root: str | None = None,
    pod_of: ContainersPod | None = None,
    kind: Kind = Kind.MOUNT,
) -> Iterator[Orders]:
    pages, proven = Pages(), ProvenContainers()
    pods = node.pods_directory if root is None else root
    main = mount_worker(
        best_way(),
        pages,
        mounts_on_detached=False,
        journal=partial(LayerJournal, node.lab, "boot"),
        stand_in_journal=partial(StandInJournal, node.lab, "boot"),
        last_word=lambda: LastWord(pods, pod_of or proven.pod_of, aborts=kind is Kind.ABORT),
    )
    forks = ForkServer.start({kind.value: WorkerKind(main, PRIVILEGES[kind])})
    try:
        yield Orders(forks, pages, kind)
    finally:
        forks.close()


def read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def mount_at(path: str, table: str = HOST) -> Mount:
    with open(table, "rb") as file:
        return parse_mount_table(file.read()).stack_at(path)[-1]


def table_of(container: Container) -> str:
    return f"/proc/{container.pid}/mountinfo"


def namespace_of(pid: int) -> NamespaceRef:
    start_time = int(read(f"/proc/{pid}/stat").rpartition(")")[2].split()[19])
    return NamespaceRef(os.stat(f"/proc/{pid}/ns/mnt").st_ino, pid, start_time)


def replacement(old: Mount, origin: Mount, namespace: NamespaceRef | None = None) -> ReplaceMount:
    inode = 0 if namespace is None else namespace.inode
    return ReplaceMount(
        TargetKey(inode, old.mount_point), Expect.of(old), Expect.of(origin),
        Propagation.PRIVATE, namespace=namespace, stale_devices=(old.device,),
    )  # fmt: skip


def crashed(node: DemoNode, name: str) -> tuple[Source, DemoPod, Container]:
    """Return a source that is back, and a pod that shows the dead one."""
    source = node.add_source(name)
    pod, container = pod_with_container(node, source, f"pod-{name}")
    source.kill()
    source.restart()
    return source, pod, container


@in_lab()
def test_what_a_plan_orders_is_done(node: DemoNode) -> None:
    source, pod, container = crashed(node, "one")
    with orders(node) as worker:
        point = pod.volume_path("v")
        host = worker.give(replacement(mount_at(point), mount_at(source.path)))
        assert (host.status, host.detail) == (OutcomeStatus.RECOVERED, "")
        order = replacement(
            mount_at("/data", table_of(container)), mount_at(point), namespace_of(container.pid)
        )
        inside = worker.give(order)
        assert (inside.status, inside.detail) == (OutcomeStatus.RECOVERED, "")


@in_lab()
def test_no_place_of_the_host_but_the_binds_of_pods(node: DemoNode) -> None:
    source, pod, _ = crashed(node, "one")
    bind, live = mount_at(pod.volume_path("v")), mount_at(source.path)
    places = [
        f"{node.lab}/elsewhere",
        f"{node.kubelet_root}/plugins/kubernetes.io/csi/x/globalmount",
        f"{os.path.dirname(bind.mount_point)}/other",
        f"{node.kubelet_root}/pods/of-nobody/volumes/mount",
    ]
    with orders(node) as worker, orders(node, kind=Kind.ABORT) as aborter:
        for place in places:
            os.makedirs(place, exist_ok=True)
            syscalls.mount(bind.mount_point, place, None, syscalls.MS_BIND)
            old = mount_at(place)
            assert old.device == bind.device
            key, expect = TargetKey(0, place), Expect.of(old)
            worker.require_refusal(replacement(old, live))
            worker.require_refusal(DropLayers(key, expect, (old.device,)))
            worker.require_refusal(DetachOwnLayer(key, expect, old.peer_group))
            worker.require_refusal(DetachOrphan(key, expect))
            aborter.require_refusal(AbortConnection(key, expect, 3))
            syscalls.umount2(place, syscalls.MNT_DETACH)
        # A path that leads there by way of the pods.
        around = f"{node.kubelet_root}/pods/../plugins"
        expect = replace(Expect.of(bind), mount_point=around)
        worker.require_refusal(DetachOrphan(TargetKey(0, around), expect))


@in_lab()
def test_without_a_kubelets_directory_nothing_of_the_host(node: DemoNode) -> None:
    source, pod, _ = crashed(node, "one")
    with orders(node, root="") as worker:
        worker.require_refusal(replacement(mount_at(pod.volume_path("v")), mount_at(source.path)))


@in_lab()
def test_no_namespace_that_is_no_containers(node: DemoNode) -> None:
    source, pod, _ = crashed(node, "one")
    unit = node.add_foreign(ForeignKind.SYSTEM_UNIT)
    old = mount_at(pod.volume_path("v"), table_of(unit))
    order = replacement(old, mount_at(source.path), namespace_of(unit.pid))
    with orders(node) as worker, orders(node, kind=Kind.ABORT) as aborter:
        worker.require_refusal(order, table_of(unit))
        abort = AbortConnection(order.key, order.expect, 3, order.namespace)
        aborter.require_refusal(abort, table_of(unit))


@in_lab()
def test_who_mounts_aborts_nothing_and_who_aborts_mounts_nothing(node: DemoNode) -> None:
    source, pod, _ = crashed(node, "one")
    bind = mount_at(pod.volume_path("v"))
    order = replacement(bind, mount_at(source.path))
    with orders(node) as worker, orders(node, kind=Kind.ABORT) as aborter:
        worker.require_refusal(AbortConnection(order.key, order.expect, 3))
        aborter.require_refusal(order)
        aborter.require_refusal(DetachOrphan(order.key, order.expect))


@in_lab()
def test_nothing_of_another_pod(node: DemoNode) -> None:
    _, pod, container = crashed(node, "one")
    other = node.add_source("other")
    others, _ = pod_with_container(node, other, "pod-other")
    theirs = mount_at(others.volume_path("v"))
    old, table = mount_at("/data", table_of(container)), table_of(container)
    with orders(node) as worker:
        worker.require_refusal(replacement(old, theirs, namespace_of(container.pid)), table)
        worker.require_refusal(replacement(mount_at(pod.volume_path("v")), theirs))
        child = ChildMount(
            Expect.of(old), "inner", Expect("/", mount_at("/").device), theirs.mount_point[1:]
        )
        order = replacement(old, mount_at(other.path), namespace_of(container.pid))
        worker.require_refusal(replace(order, children=(child,)), table)


@in_lab()
def test_no_file_system_of_the_host_in_the_place_of_a_volume(node: DemoNode) -> None:
    _, pod, container = crashed(node, "one")
    for origin in ("/", "/proc"):
        for table, point, namespace in (
            (HOST, pod.volume_path("v"), None),
            (table_of(container), "/data", namespace_of(container.pid)),
        ):
            order = replacement(mount_at(point, table), mount_at(origin), namespace)
            worker_tables = [read(HOST), read(table)]
            with orders(node) as worker:
                outcome = worker.give(order)
            assert (outcome.status, outcome.reason) == (OutcomeStatus.REFUSED, Reason.SOURCE_TYPE)
            assert [read(HOST), read(table)] == worker_tables


@in_lab()
def test_only_a_dead_source_is_detached_and_no_pods_mount(node: DemoNode) -> None:
    source, pod, _ = crashed(node, "one")
    bind, live = mount_at(pod.volume_path("v")), mount_at(source.path)
    with orders(node) as worker:
        dead = DetachDeadSource(TargetKey(0, bind.mount_point), Expect.of(bind))
        worker.require_refusal(dead)
        before = read(HOST)
        outcome = worker.give(DetachDeadSource(TargetKey(0, source.path), Expect.of(live)))
        assert (outcome.status, outcome.reason) == (OutcomeStatus.REFUSED, Reason.ANSWERING)
        assert read(HOST) == before


@in_lab()
def test_no_layer_whose_server_answers(node: DemoNode) -> None:
    _, pod, _ = crashed(node, "one")
    other = node.add_source("other")
    others, _ = pod_with_container(node, other, "pod-other")
    dead, live = (mount_at(each.volume_path("v")) for each in (pod, others))
    with orders(node) as worker:
        before = read(HOST)
        outcome = worker.give(DetachOrphan(TargetKey(0, live.mount_point), Expect.of(live)))
        assert (outcome.status, outcome.reason) == (OutcomeStatus.REFUSED, Reason.ANSWERING)
        assert read(HOST) == before
        outcome = worker.give(DetachOrphan(TargetKey(0, dead.mount_point), Expect.of(dead)))
        assert outcome.status is OutcomeStatus.DETACHED


@in_lab()
def test_what_cannot_be_found_out_is_not_done(node: DemoNode) -> None:
    _, pod, container = crashed(node, "one")
    old, origin = mount_at("/data", table_of(container)), mount_at(pod.volume_path("v"))
    order = replacement(old, origin, namespace_of(container.pid))
    assert order.namespace is not None
    later = replace(order.namespace, start_time=order.namespace.start_time + 1)
    with orders(node) as worker:
        before = read(HOST), read(table_of(container))
        outcome = worker.give(replace(order, namespace=later))
        assert (outcome.status, outcome.reason) == (OutcomeStatus.SKIPPED, Reason.NAMESPACE_GONE)
        assert (read(HOST), read(table_of(container))) == before
        container.stop()
        outcome = worker.give(order)
        assert (outcome.status, outcome.reason) == (OutcomeStatus.SKIPPED, Reason.NAMESPACE_GONE)


@in_lab()
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_where_the_check_fails_nothing_is_tried(node: DemoNode, number: int) -> None:
    _, pod, container = crashed(node, "one")
    origin = mount_at(pod.volume_path("v"))

    def fail(namespace: NamespaceRef) -> str | None:
        raise OSError(number, os.strerror(number), "cgroup")

    order = replacement(mount_at("/data", table_of(container)), origin, namespace_of(container.pid))
    before = read(table_of(container))
    with orders(node, pod_of=fail) as worker:
        outcome = worker.give(order)
    assert (outcome.status, outcome.errno) == (OutcomeStatus.FAILED, number)
    assert read(table_of(container)) == before


class Unlooking(ProvenContainers):
    """Knows no more than what a scan has noted."""

    def _look(self, namespace: NamespaceRef) -> str | None:
        return None


@in_lab()
def test_what_a_scan_has_proven_is_not_looked_at_again(node: DemoNode) -> None:
    source = node.add_source("one")
    pod, container = pod_with_container(node, source, "p")
    unit = node.add_foreign(ForeignKind.SYSTEM_UNIT)
    proven = Unlooking()
    main = partial(serve_scans, proven=proven)
    forks = ForkServer.start({Kind.SCAN.value: WorkerKind(main, PRIVILEGES[Kind.SCAN])})
    scanner = NamespaceScanner(lambda: forks.spawn(Kind.SCAN.value))
    try:
        scanner.request(time.monotonic())
        while scanner.collect(time.monotonic()) is None:
            assert select.select([scanner], [], [], patient(SECONDS))[0]
        ours, theirs = namespace_of(container.pid), namespace_of(unit.pid)
        assert proven.pod_of(ours) == pod.uid
        for other in (
            theirs,
            replace(ours, start_time=ours.start_time + 1),
            replace(ours, pid=ours.pid + 1),
            replace(ours, inode=ours.inode + COUNT),
        ):
            assert proven.pod_of(other) is None
    finally:
        scanner.close()
        forks.close()
