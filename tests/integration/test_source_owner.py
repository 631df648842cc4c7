"""Another user's server in the place of root's: taken where root alone could put it there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from fusewatchd.act.replace_mount import carry_out
from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.container_spec import UserNamespace
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume, VolumeKind
from fusewatchd.demo.node.sources import ServerOptions, Source, detach_all
from fusewatchd.linux import syscalls
from fusewatchd.linux.mount_place import problem_of_place
from fusewatchd.linux.statmount import mount_id_of_fd
from fusewatchd.model.actions import Expect, OutcomeStatus, Propagation, ReplaceMount
from fusewatchd.model.mount_table import parse_mount_table
from fusewatchd.model.mounts import Mount, TargetKey
from fusewatchd.model.verdicts import Reason
from tests.features import Feature, best_way, needs
from tests.lab import WAYS, in_lab, real_kernel, run_fusewatchd

pytestmark = pytest.mark.kernel

USER, THIRD = 100_000, 100_001
DEADLINE = 10.0
SEVERAL_CYCLES = 0.5


@dataclass(frozen=True)
class Place:
    """The directory above the source, and the one that its mount covers."""

    above: tuple[int, int] = (0, 0o755)
    """Owner and mode."""
    covered: tuple[int, int] = (0, 0o755)
    problem: str = ""
    """Empty: the new server is taken."""


PLACES = {
    "roots": Place(),
    "users-own-mount-point": Place(covered=(USER, 0o700)),
    "open": Place((0, 0o777), problem="others can write {above} (mode 0777)"),
    "sticky": Place((0, 0o1777), problem="others can write {above} (mode 1777)"),
    "groups": Place((0, 0o775), problem="others can write {above} (mode 0775)"),
    "theirs": Place((USER, 0o755), problem="{above} belongs to uid 100000"),
    "open-mount-point": Place(covered=(0, 0o777), problem="others can write {path} (mode 0777)"),
    "thirds-mount-point": Place(covered=(THIRD, 0o755), problem="{path} belongs to uid 100001"),
}
REFUSED = {name: place for name, place in PLACES.items() if place.problem}
TAKEN = PLACES.keys() - REFUSED.keys()


class Subject:
    """One source at a place, and a pod that uses it."""

    def __init__(
        self,
        node: DemoNode,
        name: str,
        user_namespace: UserNamespace | None = None,
        kind: VolumeKind = VolumeKind.CSI,
    ) -> None:
        self.place = PLACES[name]
        self.above = f"{node.lab}/places/{name}"
        path = f"{self.above}/source"
        os.makedirs(path)
        for directory, (owner, mode) in (
            (path, self.place.covered),
            (self.above, self.place.above),
        ):
            os.chown(directory, owner, owner)
            os.chmod(directory, mode)
        options = ServerOptions(allows_idmap=user_namespace is not None)
        self.source = node.add_source(name, path=path, files={"hello": "root's"}, options=options)
        volume = PodVolume("v", self.source)
        if kind is VolumeKind.HOST_PATH:
            volume = PodVolume("v", kind=kind, host_path=path)
        mount = PodMount("v", "/data")
        self.pod: DemoPod = node.add_pod(name, [volume], [mount])
        self.container: Container = node.start_container(self.pod, user_namespace=user_namespace)
        self.reads: set[str] = set()

    def read(self) -> str:
        try:
            self.reads.add(self.container.read("/data/hello"))
        except OSError:
            return ""
        return self.container.read("/data/hello")

    def become(self, user: int, content: str) -> None:
        self.source.stop()
        self.source.put("hello", content)
        self.source.options = replace(self.source.options, user_id=user)
        self.source.start()

    def attempts(self, document: Any) -> list[tuple[str, str]]:
        binds = [b for b in document["binds"] if b["pod"]["uid"] == self.pod.uid]
        last = [b["last_attempt"] for b in binds if b["last_attempt"]]
        return [(attempt["reason"], attempt["detail"]) for attempt in last]

    def is_refused(self, document: Any) -> bool:
        return "source_owner" in (reason for reason, _ in self.attempts(document))

    def expected(self) -> str:
        return self.place.problem.format(above=self.above, path=self.source.path)


def check_refused(daemon: DaemonProcess, subjects: list[Subject]) -> None:
    for subject in subjects:
        document = daemon.wait_for(subject.is_refused, DEADLINE)
        (detail,) = [d for reason, d in subject.attempts(document) if reason == "source_owner"]
        assert detail == f"the new server is user {USER}'s, and {subject.expected()}"
    time.sleep(SEVERAL_CYCLES)
    for subject in subjects:
        assert subject.read() == ""


@WAYS
@in_lab(timeout=120)
def test_a_user_who_can_mount_at_a_source_of_roots_is_not_shown_to_its_pods(
    node: DemoNode, way: str
) -> None:
    subjects = {name: Subject(node, name) for name in PLACES}
    refused = [subjects[name] for name in REFUSED]
    with DaemonProcess(node, way=way) as daemon:
        daemon.wait_until_watching(2 * len(subjects))
        for subject in subjects.values():
            subject.become(USER, "the user's")
        for name in TAKEN:
            subjects[name].container.wait_until_readable("/data/hello", DEADLINE)
        check_refused(daemon, refused)
        assert 'event=narrower detail="user_id 0 → 100000, ' in daemon.log()
    # Nothing of this is remembered by the daemon: whose the old one was is in the mount table.
    with DaemonProcess(node, way=way) as daemon:
        check_refused(daemon, refused)
        for subject in refused:
            subject.become(0, "root's again")
        for subject in refused:
            subject.container.wait_until_readable("/data/hello", DEADLINE)
            subject.read()
            assert subject.reads == {"root's again"}


@in_lab(timeout=60)
def test_what_a_user_mounts_over_a_source_that_lives_is_never_shown(node: DemoNode) -> None:
    """FUSE tells what it likes of its root: a user may mount on one that anybody can write."""
    subject = Subject(node, "roots")
    with DaemonProcess(node, settings={"recovery.superseded": "rebind"}) as daemon:
        daemon.wait_until_watching(2)
        above = Source(
            "above", subject.source.path, f"{node.lab}/above", ServerOptions(user_id=USER)
        )
        os.mkdir(above.backing)
        above.put("hello", "the user's")
        above.start()
        document = daemon.wait_for(subject.is_refused, DEADLINE)
        covers = f"it covers another mount at {subject.source.path}"
        assert (
            "source_owner",
            f"the new server is user {USER}'s, and {covers}",
        ) in subject.attempts(document)
        subject.source.server.kill()
        time.sleep(SEVERAL_CYCLES)
        assert subject.read() == ""
        above.close()
        detach_all(above.path)
        subject.source.start()
        subject.container.wait_until_readable("/data/hello", DEADLINE)
        assert subject.read() == "root's"


@needs(Feature.FUSE_IDMAP)
@in_lab(timeout=60)
def test_nor_to_a_pod_with_a_user_namespace(node: DemoNode) -> None:
    subjects = [Subject(node, name, UserNamespace(USER)) for name in ("open", "roots")]
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(4)
        for subject in subjects:
            subject.become(USER, "the user's")
        subjects[1].container.wait_until_readable("/data/hello", DEADLINE)
        check_refused(daemon, subjects[:1])
        subjects[0].become(0, "root's again")
        subjects[0].container.wait_until_readable("/data/hello", DEADLINE)
        assert subjects[0].read() == "root's again"


@in_lab(timeout=60)
def test_nor_to_a_pod_that_has_the_sources_own_path(node: DemoNode) -> None:
    subjects = [Subject(node, name, kind=VolumeKind.HOST_PATH) for name in ("open", "roots")]
    with (
        DemoKubelet(node.pod_list) as kubelet,
        DaemonProcess(node, settings={"kubelet.url": kubelet.url}) as daemon,
    ):
        daemon.wait_until_watching(2)
        for subject in subjects:
            subject.become(USER, "the user's")
        subjects[1].container.wait_until_readable("/data/hello", DEADLINE)
        check_refused(daemon, subjects[:1])
        subjects[0].become(0, "root's again")
        subjects[0].container.wait_until_readable("/data/hello", DEADLINE)
        assert subjects[0].reads == set()


@in_lab()
def test_who_mounts_refuses_it_whatever_the_plan_says(node: DemoNode) -> None:
    subject = Subject(node, "roots")
    target = subject.pod.volume_path("v")
    subject.become(USER, "the user's")
    old, new = top_at(target), top_at(subject.source.path)
    action = ReplaceMount(
        TargetKey(0, target),
        Expect.of(old),
        Expect.of(new),
        Propagation.OWN_GROUP,
        stale_devices=(old.device,),
    )
    kernel = real_kernel(best_way())
    outcome = carry_out(kernel, action)
    assert (outcome.status, outcome.reason) == (OutcomeStatus.REFUSED, Reason.SOURCE_OWNER)
    assert top_at(target) == old
    allowed = replace(action, source_place=subject.source.path)
    assert carry_out(kernel, allowed).status is OutcomeStatus.RECOVERED


def top_at(path: str) -> Mount:
    with open("/proc/self/mountinfo", "rb") as file:
        top = parse_mount_table(file.read()).top_at(path)
    assert top is not None
    return top


# -------------------------------------------------------------------- the place by itself


def described(fd: int) -> Mount:
    with open("/proc/self/mountinfo", "rb") as file:
        mount = parse_mount_table(file.read()).by_id(mount_id_of_fd(fd))
    assert mount is not None
    return mount


def in_fuse(node: DemoNode) -> str:
    source = node.add_source("outer")
    os.makedirs(f"{source.path}/inner/mount")
    return f"{source.path}/inner/mount"


def behind_a_link(node: DemoNode) -> str:
    os.makedirs(f"{node.lab}/real/mount")
    os.symlink("real", f"{node.lab}/link")
    return f"{node.lab}/link/mount"


def idmapped(node: DemoNode) -> str:
    """What is another user's on the disk looks like root's in there."""
    os.makedirs(f"{node.lab}/mapped/mount")
    container = node.start_container(
        node.add_pod("p", [PodVolume("v", node.add_source("one"))], []),
        user_namespace=UserNamespace(USER),
    )
    os.chown(f"{node.lab}/mapped", 0, 0)
    flags = syscalls.OPEN_TREE_CLONE
    with syscalls.closing_fd(
        syscalls.open_tree(syscalls.AT_FDCWD, f"{node.lab}/mapped", flags)
    ) as fd:
        with open(f"/proc/{container.pid}/ns/user") as users:
            syscalls.mount_setattr(fd, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns_fd=users.fileno())
        os.mkdir(f"{node.lab}/seen")
        with syscalls.closing_fd(os.open(f"{node.lab}/seen", os.O_PATH)) as place:
            syscalls.move_mount(fd, place)
    return f"{node.lab}/seen/mount"


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (in_fuse, "{path} is in a FUSE file system"),
        pytest.param(idmapped, "belongs to uid", marks=needs(Feature.FUSE_IDMAP)),
    ],
)
@in_lab()
def test_a_directory_whose_owner_is_only_a_word(
    node: DemoNode, make: Callable[[DemoNode], str], problem: str
) -> None:
    path = make(node)
    above = os.path.dirname(path if make is idmapped else os.path.dirname(path))
    found = problem_of_place(path, 0, described)
    assert problem.format(path=above) in found, found


@in_lab()
def test_a_link_on_the_way_is_no_mount_point(node: DemoNode) -> None:
    with pytest.raises(OSError):
        problem_of_place(behind_a_link(node), 0, described)


@in_lab()
def test_doctor_names_the_sources_at_which_others_can_mount(node: DemoNode) -> None:
    subjects = {name: Subject(node, name) for name in PLACES}
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(2 * len(subjects))
        words = [word for k, v in daemon.values.items() for word in ("--set", f"{k}={v}")]
        result = run_fusewatchd("doctor", "--json", *words)
        named = [f["text"] for f in json.loads(result.stdout)["findings"] if f["check"] == "source"]
        refused = [subjects[name] for name in REFUSED]
        expected = [f"{subject.source.path}: {subject.expected()}" for subject in refused]
        own = subjects["users-own-mount-point"].source.path
        assert sorted(named) == sorted([*expected, f"{own}: {own} belongs to uid 100000"])
