"""What cgroupfs proves of what a cgroup's path claims."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusewatchd.demo.node import cgroups
from fusewatchd.demo.node.world import PrivateWorld
from fusewatchd.observe.namespaces.cgroupfs import NOBODY, CgroupTrees
from tests.lab import run_in_world

pytestmark = pytest.mark.kernel

UID = "50a97417-eded-45b5-9699-867eb25c5bb8"
SLICE = UID.replace("-", "_")
CID = "ab" * 32
USER = 100000
POD = f"kubepods/besteffort/pod{UID}"
PATH = f"{POD}/{CID}"
SYSTEMD = f"kubepods.slice/kubepods-pod{SLICE}.slice/cri-containerd-{CID}.scope"
IN_DOCKER = f"docker/{'1' * 64}"
Spoil = Callable[[str], None]


@contextmanager
def cgroup(world: PrivateWorld, path: str) -> Iterator[str]:
    """Make a cgroup of root's below the world's; gives the directory of the world's."""
    directory = cgroups.create(f"/{world.cgroup}/{path}")
    if directory is None:
        pytest.skip("no cgroups here")
    try:
        yield directory.removesuffix(f"/{path}")
    finally:
        while cgroups.remove(directory):
            directory = os.path.dirname(directory)


def belongs(world: PrivateWorld, path: str) -> tuple[str, str]:
    found = CgroupTrees().membership(lambda: f"12:pids:/\n0::/{world.cgroup}/{path}\n")
    return found.pod_uid, found.container_id


def given_to_a_user(part: str) -> Spoil:
    return lambda world: os.chown(f"{world}/{part}".rstrip("/"), USER, USER)


def for_a_group(part: str) -> Spoil:
    def spoil(world: str) -> None:
        os.chown(f"{world}/{part}", 0, USER)
        os.chmod(f"{world}/{part}", 0o775)

    return spoil


def for_everybody(part: str) -> Spoil:
    return lambda world: os.chmod(f"{world}/{part}", 0o757)


def nothing(_: str) -> None:
    pass


@pytest.mark.parametrize(
    "path",
    [PATH, SYSTEMD, f"{IN_DOCKER}/kubelet/{PATH}", f"{PATH}/init.scope", f"{PATH}/{PATH}"],
)
@pytest.mark.parametrize("spoil", [nothing, given_to_a_user])
def test_what_root_made_is_believed(path: str, spoil: Spoil) -> None:
    """Whoever the container's own cgroup was given to, as for a pod with users of its own."""

    def body(world: PrivateWorld) -> None:
        with cgroup(world, path) as directory:
            if spoil is given_to_a_user:
                before, _, after = path.partition(CID)
                given_to_a_user(f"{before}{CID}{after.partition('/')[0]}")(directory)
            assert belongs(world, path) == (UID, CID)
            # What a process has left: there is nothing to be seen any more.
            assert belongs(world, path.replace("ab", "cd")) == (UID, "cd" * 32)

    run_in_world(body)


@pytest.mark.parametrize(
    ("path", "spoil"),
    [
        (PATH, given_to_a_user(POD)),
        (PATH, given_to_a_user("kubepods/besteffort")),
        (PATH, given_to_a_user("kubepods")),
        (PATH, given_to_a_user("")),
        (f"a/b/{PATH}", given_to_a_user("a")),
        (PATH, for_a_group(POD)),
        (PATH, for_everybody("kubepods")),
        (f"x-kubepods/pod{UID}/{CID[:60]}", nothing),
        (f"kubepods.x/pod{UID}/{CID[:60]}", nothing),
        (f"kubepods/x/pod{UID}/{CID}", nothing),
    ],
)
def test_what_anybody_else_may_have_made_is_not(path: str, spoil: Spoil) -> None:
    def body(world: PrivateWorld) -> None:
        with cgroup(world, path) as directory:
            spoil(directory)
            assert CgroupTrees().membership(lambda: f"0::/{world.cgroup}/{path}") == NOBODY

    run_in_world(body)


def test_elsewhere_root_proves_the_id_only() -> None:
    def body(world: PrivateWorld) -> None:
        path = f"system.slice/cri-containerd-{CID}.scope"
        with cgroup(world, path) as directory:
            assert belongs(world, path) == ("", CID)
            given_to_a_user("system.slice")(directory)
            assert belongs(world, path) == ("", "")

    run_in_world(body)


def test_a_directory_that_changes_is_looked_at_again() -> None:
    def body(world: PrivateWorld) -> None:
        trees, text = CgroupTrees(), f"0::/{world.cgroup}/{PATH}"
        with cgroup(world, PATH) as directory:
            for owner, uid in ((0, UID), (0, UID), (USER, ""), (0, UID)):
                os.chown(f"{directory}/{POD}", owner, 0)
                trees.begin()
                assert trees.membership(lambda: text).pod_uid == uid
        trees.begin()
        read = iter([text, f"{text} (deleted)"])
        assert trees.membership(lambda: next(read)) == NOBODY
        assert trees.unseen == 0
        # The process is still in it: something covers what is to be seen.
        assert trees.membership(lambda: text) == NOBODY
        assert trees.unseen == 1

    run_in_world(body)


# --------------------------------------------------------------- what is mounted where


def mounted(tmp_path: Path, *lines: str) -> CgroupTrees:
    """Hierarchies that are directories here, as a mount table tells of them."""
    if os.geteuid():
        pytest.skip("needs root")
    table = tmp_path / "mountinfo"
    table.write_text("".join(f"{line.format(at=tmp_path)}\n" for line in lines))
    return CgroupTrees(str(table))


UNIFIED = "30 20 0:41 / {at}/unified rw - cgroup2 cgroup2 rw"
MEMORY = "31 20 0:42 / {at}/memory rw - cgroup cgroup rw,memory"
CPU = "32 20 0:43 / {at}/cpu rw - cgroup cgroup rw,cpu,cpuacct"
NAMED = "33 20 0:44 / {at}/systemd rw - cgroup cgroup rw,xattr,name=systemd"
NODE = "30 20 0:41 /docker/x {at}/unified rw - cgroup2 cgroup2 rw"
"""In a container that has no cgroup namespace of its own."""


@pytest.mark.parametrize(
    ("line", "place", "text"),
    [
        (UNIFIED, "unified", "0::/{path}"),
        (MEMORY, "memory", "4:memory:/{path}"),
        (CPU, "cpu", "2:cpu,cpuacct:/{path}"),
        (CPU, "cpu", "2:cpuacct,cpu:/{path}"),
        (NAMED, "systemd", "1:name=systemd:/{path}\n0::/system.slice/containerd.service"),
        (NODE, "unified", "0::/docker/x/{path}"),
    ],
)
def test_each_hierarchy_is_looked_at_where_it_is(
    tmp_path: Path, line: str, place: str, text: str
) -> None:
    trees = mounted(tmp_path, line)
    (tmp_path / place / PATH).mkdir(parents=True)
    text = text.format(path=PATH)
    assert trees.membership(lambda: text).pod_uid == UID
    os.chown(tmp_path / place / POD, USER, USER)
    trees.begin()
    assert trees.membership(lambda: text) == NOBODY
    assert trees.unseen == 0


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (MEMORY, f"0::/{PATH}"),
        (UNIFIED, f"4:memory:/{PATH}"),
        (CPU, f"4:memory:/{PATH}"),
        (NODE, f"0::/{PATH}"),
        (UNIFIED, f"0::/../../{PATH}"),
        (UNIFIED, f"4:memory:/docker/{CID}"),
    ],
)
def test_what_cannot_be_looked_at_is_counted(tmp_path: Path, line: str, text: str) -> None:
    trees = mounted(tmp_path, line)
    for place in ("unified", "memory", "cpu"):
        (tmp_path / place / PATH).mkdir(parents=True)
    assert trees.membership(lambda: text) == NOBODY
    assert trees.unseen == 1
    assert trees.membership(lambda: "0::/system.slice/sshd.service") == NOBODY
    assert trees.unseen == 1


def test_the_kubelets_root_is_the_root_of_all_if_it_has_one_there(tmp_path: Path) -> None:
    trees = mounted(tmp_path, UNIFIED)
    deeper = f"machine.slice/x.scope/{PATH}"
    (tmp_path / "unified" / deeper).mkdir(parents=True)
    assert trees.membership(lambda: f"0::/{deeper}").pod_uid == UID
    (tmp_path / "unified" / PATH).mkdir(parents=True)
    trees.begin()
    assert trees.membership(lambda: f"0::/{PATH}").pod_uid == UID
    found = trees.membership(lambda: f"0::/{deeper}")
    assert (found.pod_uid, found.container_id) == ("", CID)  # the list may know it
