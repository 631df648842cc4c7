"""Which mounts of containers another living server stands before."""

from __future__ import annotations

import pytest

from fusewatchd.model.mounts import Device, Mount, MountNamespace, NamespaceKind
from fusewatchd.plan.reach import Reach

DEAD = Device(0, 50)
LIVING = Device(0, 60)
LOCAL = Device(8, 1)


def mount(number: int, parent: int, point: str, device: Device, fs_type: str) -> Mount:
    return Mount(number, parent, device, "/", point, "rw", 0, 0, fs_type, "s", "rw")


def root(fs_type: str = "overlay", device: Device = LOCAL) -> Mount:
    return mount(1, 0, "/", device, fs_type)


def crosses(*mounts: Mount) -> bool:
    """Tell of the last one."""
    namespace = MountNamespace(7, 1, 1, NamespaceKind.CONTAINER, "u", "c", mounts)
    return Reach({DEAD}).crosses_living(mounts[-1], namespace)


VOLUME = mount(2, 1, "/data", DEAD, "fuse.x")


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ((root(), VOLUME), False),
        ((root("fuse.bridge", LIVING), VOLUME), True),
        ((root("nfs4", LIVING), VOLUME), True),
        ((root(), mount(2, 1, "/a", LIVING, "fuse.y"), mount(3, 2, "/a/b", DEAD, "fuse.x")), True),
        ((root(), VOLUME, mount(3, 2, "/data/b", DEAD, "fuse.x")), False),
        # A layer on another one is reached through the way to both.
        ((root(), mount(2, 1, "/a", LIVING, "fuse.y"), mount(3, 2, "/a", DEAD, "fuse.x")), False),
        (
            (
                root(),
                mount(2, 1, "/a", LIVING, "fuse.y"),
                mount(3, 2, "/a/b", LOCAL, "tmpfs"),
                mount(4, 3, "/a/b/c", DEAD, "fuse.x"),
            ),
            True,
        ),
        ((mount(9, 5, "/x", DEAD, "fuse.x"),), False),
    ],
    ids=["plain", "root", "nfs", "nested", "in a dead one", "stacked", "far above", "no parent"],
)
def test_what_has_to_be_asked_first(mounts: tuple[Mount, ...], expected: bool) -> None:
    assert crosses(*mounts) is expected


def test_all_of_one_namespace_can_be_asked_for_in_any_order() -> None:
    chain = [root(), mount(2, 1, "/a", LIVING, "fuse.y")]
    chain += [mount(n, n - 1, f"/a/{n}", DEAD, "fuse.x") for n in range(3, 3000)]
    namespace = MountNamespace(7, 1, 1, NamespaceKind.CONTAINER, "u", "c", tuple(chain))
    reach = Reach({DEAD})
    for one in (*chain[1000:2000], *reversed(chain)):
        assert reach.crosses_living(one, namespace) is (one.mount_id > 2)


def test_a_circle_ends() -> None:
    assert not crosses(mount(2, 3, "/a", DEAD, "fuse.x"), mount(3, 2, "/b", DEAD, "fuse.x"))
