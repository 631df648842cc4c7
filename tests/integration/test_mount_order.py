"""What lineage relies on: the table has the mounts in the order in which they were attached.

Before Linux 6.8 it is a list to which what is attached is appended; since then it is sorted by the
64-bit ids, which are given out when a mount is made.  A copied namespace has an order of its own.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from fusewatchd.demo.node.world import PrivateWorld
from fusewatchd.linux import syscalls
from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model.mount_table import parse_mount_table
from tests.features import Feature, needs
from tests.lab import run_in_world

pytestmark = pytest.mark.kernel


def order(lab: str) -> list[str]:
    """The mounts below the lab, as the kernel lists them."""
    with open("/proc/self/mountinfo", "rb") as file:
        table = parse_mount_table(file.read())
    return [m.mount_point[len(lab) + 1 :] for m in table if m.mount_point.startswith(f"{lab}/")]


def directory(lab: str, name: str) -> str:
    path = os.path.join(lab, name)
    os.makedirs(path, exist_ok=True)
    return path


def new(lab: str, name: str) -> str:
    path = directory(lab, name)
    syscalls.mount("new", path, "tmpfs", 0, "size=64k")
    return path


def bind(lab: str, source: str, name: str) -> str:
    path = directory(lab, name)
    syscalls.mount(source, path, None, syscalls.MS_BIND)
    return path


def clone(lab: str, source: str, name: str) -> str:
    """As mount(8) does since 2.39, and this daemon."""
    path = directory(lab, name)
    flags = syscalls.OPEN_TREE_CLONE
    with (
        closing_fd(syscalls.open_tree(syscalls.AT_FDCWD, source, flags)) as copy,
        closing_fd(os.open(path, os.O_PATH)) as target,
    ):
        syscalls.move_mount(copy, target)
    return path


def unmount(path: str) -> None:
    syscalls.umount2(path, syscalls.MNT_DETACH)


def run(body: Callable[[str], None]) -> None:
    """Give it a shared directory; what it leaves mounted there is unmounted."""

    def with_lab(world: PrivateWorld) -> None:
        try:
            body(world.lab)
        finally:
            while names := order(world.lab):
                unmount(os.path.join(world.lab, names[-1]))

    run_in_world(with_lab)


def test_what_is_attached_later_is_listed_later() -> None:
    def body(lab: str) -> None:
        before = order(lab)
        chance = random.Random(5)
        names: list[str] = []
        for number in range(60):
            name = f"m{number}"
            source = os.path.join(lab, chance.choice(names)) if names else ""
            if not source or chance.random() < 0.3:
                new(lab, name)
            else:
                chance.choice((bind, clone))(lab, source, name)
            names.append(name)
            if chance.random() < 0.3:
                unmount(os.path.join(lab, names.pop(chance.randrange(len(names)))))
            assert order(lab) == before + names

    run(body)


def test_what_propagation_brings_comes_after_what_it_is_a_copy_of() -> None:
    def body(lab: str) -> None:
        tree = new(lab, "tree")
        syscalls.mount(None, tree, None, syscalls.MS_SHARED)
        bind(lab, tree, "twin")
        new(lab, "tree/source")
        bind(lab, f"{tree}/source", "tree/bind")
        found = order(lab)
        for earlier, later in (
            ("tree/source", "tree/bind"),
            ("twin/source", "twin/bind"),
            ("tree/source", "twin/bind"),
            ("twin/source", "tree/bind"),
        ):
            assert found.index(earlier) < found.index(later), found

    run(body)


def test_one_that_is_moved_keeps_its_place() -> None:
    def body(lab: str) -> None:
        syscalls.mount(None, lab, None, syscalls.MS_PRIVATE)
        source = new(lab, "source")
        bind(lab, source, "bind")
        syscalls.mount(source, directory(lab, "moved"), None, syscalls.MS_MOVE)
        assert order(lab)[-2:] == ["moved", "bind"]

    run(body)


@needs(Feature.BENEATH)
def test_one_that_is_attached_beneath_is_the_last() -> None:
    def body(lab: str) -> None:
        old, other = new(lab, "old"), new(lab, "other")
        with (
            closing_fd(syscalls.open_tree(syscalls.AT_FDCWD, other, syscalls.OPEN_TREE_CLONE)) as c,
            closing_fd(os.open(old, os.O_PATH)) as target,
        ):
            syscalls.mount_setattr(c, propagation=syscalls.MS_PRIVATE)
            syscalls.move_mount(c, target, syscalls.MOVE_MOUNT_BENEATH)
        assert order(lab)[-3:] == ["old", "other", "old"]

    run(body)


def test_a_copied_namespace_has_another_order() -> None:
    """A mount inside an old one comes before all that was attached beside it, however late."""

    def body(lab: str) -> None:
        early = new(lab, "early")
        source = new(lab, "source")
        bind(lab, source, "early/late")
        assert order(lab)[-3:] == ["early", "source", "early/late"]
        syscalls.unshare(syscalls.CLONE_NEWNS)
        assert order(lab)[-3:] == ["early", "early/late", "source"]
        assert os.path.ismount(early)

    run(body)
