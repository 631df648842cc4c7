from __future__ import annotations

from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount, MountNamespace, NamespaceKind
from fusewatchd.model.namespace_tables import NamespaceTables
from fusewatchd.model.pods import Pod, VolumeMount
from fusewatchd.model.quota import FOREIGN, Owner, Resource
from fusewatchd.model.quota import pod as pod_owner
from fusewatchd.observe.connections.places import Asked, Places
from fusewatchd.observe.connections.questions import Question, Way

D = Device(0, 40)
ALL = Asked()
ROOT = (1, 0, "/", "ext4")
TARGET = "/var/lib/kubelet/pods/p/volumes/v/mount"
Row = tuple[int, int, str, str] | tuple[int, int, str, str, str]
"""Id, parent, mount point, type, super options."""


def mounts(*rows: Row) -> tuple[Mount, ...]:
    """FUSE ones are of device ``D`` unless the type says ``fuse.other``."""
    return tuple(
        Mount(
            row[0], row[1],
            D if row[3] == "fuse" else Device(8, row[0]),
            "/", row[2], "rw", 0, 0, row[3], "x",
            row[4] if len(row) > 4 else "rw,allow_other",
        )
        for row in rows
    )  # fmt: skip


def namespace(*rows: Row, pid: int = 7) -> MountNamespace:
    return MountNamespace(pid, pid, 1, NamespaceKind.CONTAINER, "uid", "id", mounts(*rows))


def best(
    *rows: Row, inside: Collection[MountNamespace] = (), ignored: Collection[str] = ()
) -> Question:
    return places_of(mounts(ROOT, *rows), inside, Asked(ignored)).shown()[D].question


def places_of(
    made: Collection[Mount], inside: Collection[MountNamespace] = (), asked: Asked = ALL
) -> Places:
    return Places(MountTable.of(made), inside, asked, NamespaceTables())


SOURCE = (10, 1, "/mnt/disk/source", "fuse")
BIND = (11, 1, TARGET, "fuse")


@pytest.mark.parametrize(
    ("rows", "path"),
    [
        ((SOURCE, BIND), "/mnt/disk/source"),
        ((SOURCE, (12, 1, "/mnt/disk", "tmpfs"), BIND), TARGET),
        ((SOURCE, (12, 1, "/mnt", "tmpfs"), BIND), TARGET),
        ((SOURCE, (12, 10, "/mnt/disk/source", "tmpfs"), BIND), TARGET),
        ((SOURCE, (12, 1, "/mnt/disk/source2", "tmpfs"), BIND), "/mnt/disk/source"),
        (((9, 1, "/mnt/disk", "fuse.other"), (10, 9, "/mnt/disk/source", "fuse"), BIND), TARGET),
        (((9, 1, "/mnt/disk", "nfs4"), (10, 9, "/mnt/disk/source", "fuse"), BIND), TARGET),
        (((9, 1, "/mnt/disk", "autofs"), (10, 9, "/mnt/disk/source", "fuse"), BIND), TARGET),
        (((9, 1, "/mnt", "autofs"), (10, 9, "/mnt", "fuse"), BIND), TARGET),
        (((9, 1, "/mnt", "ext4"), (10, 9, "/mnt/source", "fuse"), BIND), "/mnt/source"),
        # A disk is mounted on the mount over which the path leads, so all below it is hidden.
        (
            ((8, 1, "/mnt", "ext4"), (10, 8, "/mnt/source", "fuse"), (9, 8, "/mnt", "ext4"), BIND),
            TARGET,
        ),
        # What lies below at the same path is not passed: nothing is looked up in it.
        (((9, 1, "/source", "fuse.other"), (10, 9, "/source", "fuse"), BIND), "/source"),
        (((10, 1, "/gone//deleted", "fuse"), BIND), TARGET),
        (((2, 1, "/", "tmpfs"), SOURCE, BIND), "/mnt/disk/source"),
    ],
)
def test_it_is_asked_where_the_path_leads_to_it_over_plain_file_systems(
    rows: Collection[Row], path: str
) -> None:
    assert best(*rows).path == path


def test_a_container_is_asked_rather_than_another_fuse_file_system_or_an_automount() -> None:
    inside = [namespace((1, 0, "/", "overlay"), (2, 1, "/data", "fuse"))]
    for above in ("fuse.other", "nfs", "autofs"):
        question = best(
            (9, 1, "/mnt", above), (10, 9, "/mnt/source", "fuse"), inside=inside
        )  # fmt: skip
        assert (question.path, question.pid) == ("/data", 7)
    assert best(SOURCE, inside=inside).pid == 0


def test_the_way_inside_a_container_counts_as_well() -> None:
    over = namespace(
        (1, 0, "/", "overlay"), (2, 1, "/data", "fuse.other"), (3, 2, "/data/in", "fuse"), pid=7
    )
    plain = namespace((1, 0, "/", "overlay"), (2, 1, "/data", "fuse"), pid=8)
    on_fuse = namespace((1, 0, "/", "fuse.rootfs"), (2, 1, "/data", "fuse"), pid=9)
    assert best(inside=[over, on_fuse, plain]).pid == 8
    assert best(inside=[over]).way is Way.FUSE


def test_what_has_no_other_way_is_asked_on_the_best_there_is() -> None:
    fuse = ((8, 1, "/a", "fuse.other"), (10, 8, "/a/source", "fuse"))
    automount = ((9, 1, "/b", "autofs", "rw,timeout=300,indirect"), (11, 9, "/b/source", "fuse"))
    hidden = ((12, 1, "/c/source", "fuse"), (13, 1, "/c", "tmpfs"))
    assert best(*hidden, *automount, *fuse).path == "/a/source"
    assert best(*hidden, *automount).path == "/b/source"
    assert best(*hidden) == Question(D, "/c/source", is_covered=True, way=Way.HIDDEN)


@pytest.mark.parametrize(
    ("options", "rest"),
    [
        ("rw,fd=7,pgrp=1,timeout=300,minproto=5,maxproto=5,indirect", 600.0),
        ("rw,timeout=0,direct", 0.0),
        ("rw,direct", 0.0),
        ("rw,timeout=-1", 0.0),
        ("rw,timeout=99999999999999999999999", 0.0),
    ],
)
def test_behind_an_automount_it_rests_until_that_had_time_to_expire(
    options: str, rest: float
) -> None:
    question = best((9, 1, "/net", "autofs", options), (10, 9, "/net/one", "fuse"))
    assert (question.way, question.rest_seconds) == (Way.AUTOMOUNT, rest)


def test_other_places_are_named_until_there_is_none() -> None:
    inside = [namespace((1, 0, "/", "overlay"), (2, 1, "/data", "fuse"))]
    places, tried = places_of(mounts(ROOT, SOURCE, BIND), inside), list[Question]()
    while question := places.other_than(tried, D):
        tried.append(question)
    assert [(q.path, q.pid) for q in tried] == [(SOURCE[2], 0), (TARGET, 0), ("/data", 7)]


def test_ids_are_of_all_that_show_it_and_ignored_types_are_not_asked() -> None:
    inside = [namespace((1, 0, "/", "overlay"), (2, 1, "/data", "fuse"))]
    made = mounts(ROOT, SOURCE, BIND, (12, 1, "/o", "fuse.other"))
    places = places_of(made, inside, Asked(("fuse.other",)))
    shown = places.shown()
    assert list(shown) == [D]
    assert (shown[D].on_host, shown[D].elsewhere) == (frozenset({10, 11}), frozenset({2}))


# ------------------------------------------------------------------- how many are asked

USERS = "rw,user_id=1000,group_id=1000,allow_other"


def of_users(count: int, point: str = "/home/u") -> tuple[Mount, ...]:
    rows = [(1000 + n, 1, f"{point}/{n}", "fuse.other", USERS) for n in range(count)]
    return mounts(*rows)


def in_pod(uid: str, first: int, count: int, *, is_own: bool = True) -> MountNamespace:
    rows = [(first + n, 1, f"/m/{n}", "fuse.other") for n in range(count)]
    kind = NamespaceKind.CONTAINER if uid else NamespaceKind.FOREIGN
    return MountNamespace(first, first, 1, kind, uid, uid, mounts(*rows), is_own=is_own)


def refused(places: Places) -> dict[Owner, tuple[Resource, float, float]]:
    return {one.owner: (one.resource, one.limit, one.wanted) for one in places.refused_owners}


def test_of_what_users_mounted_a_sample_is_asked_and_all_that_root_mounted() -> None:
    roots = mounts(*[(n, 1, f"/srv/{n}", "fuse.other", "rw,user_id=0") for n in range(20, 300)])
    places = places_of([*mounts(ROOT, SOURCE), *of_users(5000), *roots])
    shown = places.shown()
    assert {m.device for m in (*mounts(SOURCE), *roots)} <= shown.keys()
    assert len(shown) == 1 + 280 + 64
    assert refused(places) == {FOREIGN: (Resource.QUESTIONS, 64, 5000)}
    assert "/home/u/64" in places.refused_owners[0].example


def test_a_volume_is_asked_whoever_mounted_it() -> None:
    bind = mounts((9999, 1, TARGET, "fuse.other", USERS))
    asked = Asked(pods_prefix="/var/lib/kubelet/pods/")
    shown = places_of([*mounts(ROOT), *of_users(200), *bind], (), asked).shown()
    assert bind[0].device in shown


def test_foreign_namespaces_and_users_of_the_host_share_one_sample() -> None:
    places = places_of([*mounts(ROOT), *of_users(60)], [in_pod("", 5000, 3000)])
    assert len(places.shown()) == 64
    assert refused(places) == {FOREIGN: (Resource.QUESTIONS, 64, 3060)}


def test_each_pod_has_a_quota_of_devices_that_the_host_does_not_show() -> None:
    crowd, other = in_pod("uid-a", 5000, 3000), in_pod("uid-b", 20_000, 3)
    on_host = mounts(ROOT, *[(n, 1, f"/srv/{n}", "fuse.other") for n in range(5000, 5100)])
    places = places_of(on_host, [crowd, other])
    shown = places.shown()
    assert {mount.device for mount in other.mounts} <= shown.keys()
    assert len(shown) == 100 + 64 + 3
    assert refused(places) == {pod_owner("uid-a"): (Resource.QUESTIONS, 64, 2900)}
    assert len(shown[Device(8, 5000)].elsewhere) == 1


def test_a_containers_own_mounts_come_before_those_that_a_process_made() -> None:
    own = in_pod("uid-a", 20_000, 5)
    places = places_of(mounts(ROOT), [in_pod("uid-a", 5000, 3000, is_own=False), own])
    assert {mount.device for mount in own.mounts} <= places.shown().keys()


def test_a_spec_that_needs_more_gets_more() -> None:
    entries = tuple(VolumeMount("app", str(n), f"/m/{n}", False, "None") for n in range(100))
    pods = {"uid-a": Pod("uid-a", "uid-a", "n", "p", "Running", False, volume_mounts=entries)}
    places = places_of(mounts(ROOT), [in_pod("uid-a", 5000, 3000)], Asked(pods=pods))
    assert len(places.shown()) == 200


# --------------------------------------------------------------------- any table at all

NAMES = st.lists(st.sampled_from("ab"), max_size=4).map(lambda parts: "/" + "/".join(parts))


@st.composite
def grown_tables(draw: st.DrawFn) -> list[Mount]:
    """Mounts made one after the other, each where its path leads at that moment."""
    made = list(mounts(ROOT))
    for number in range(2, draw(st.integers(2, 12))):
        path = draw(NAMES.filter(lambda path: path != "/"))
        fs_type = draw(st.sampled_from(["ext4", "fuse", "fuse.other", "autofs", "nfs"]))
        made += mounts((number, walked(made, path)[-1].mount_id, path, fs_type))
    return made


def walked(made: list[Mount], path: str) -> list[Mount]:
    """Walk as the kernel does: on at each directory with whatever is mounted there last."""
    at, passed = made[0], [made[0]]
    parts = path.strip("/").split("/")
    for count in range(1, len(parts) + 1):
        here = "/" + "/".join(parts[:count])
        while upon := [m for m in made if m.parent_id == at.mount_id and m.mount_point == here]:
            at = upon[-1]
            passed.append(at)
    return passed


@given(grown_tables())
def test_the_way_is_what_a_walk_finds(made: list[Mount]) -> None:
    if not any(mount.device == D for mount in made):
        return
    places = places_of(made)
    question = places.shown()[D].question
    ways = []
    for mount in made:
        passed = walked(made, mount.mount_point)
        if mount.device == D and passed[-1] is mount:
            ways.append(max(map(way_over, passed, [*passed[1:], mount]), default=Way.PLAIN))
    assert question.way is min(ways, default=Way.HIDDEN)
    if ways:
        assert walked(made, question.path)[-1].device == D


def way_over(above: Mount, mount: Mount) -> Way:
    if above is mount:
        return Way.PLAIN
    if above.fs_type == "autofs":
        return Way.AUTOMOUNT
    if above.mount_point == mount.mount_point:
        return Way.PLAIN
    return Way.FUSE if above.is_fuse else Way.NETWORK if above.fs_type == "nfs" else Way.PLAIN
