"""Every FUSE mount that is seen is in exactly one class."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.diagnose.accounts import Accountant
from fusewatchd.model.accounts import Account, MountClass, account_of
from fusewatchd.model.findings import Gap
from fusewatchd.model.mounts import Device, Mount, NamespaceKind
from fusewatchd.model.pods import Volume
from fusewatchd.model.servers import Answer, FuseServer
from tests.unit.scenes import (
    NEW,
    OLD,
    OTHER_UID,
    ROOT,
    SOURCE,
    THIRD,
    UID,
    Scene,
    entry,
    pod,
    publish_path,
    spec,
    usual,
)

IGNORED = frozenset({"fuse.lxcfs"})
K = MountClass


def accountant(scene: Scene, over_quota: frozenset[str] = frozenset()) -> Accountant:
    findings = scene.look().findings
    return Accountant(scene.snapshot(), findings, scene.ledger, IGNORED, over_quota)


def accounts(scene: Scene, over_quota: frozenset[str] = frozenset()) -> list[Account]:
    found = accountant(scene, over_quota)
    every = list(found.of_host())
    for namespace in scene.snapshot().namespaces:
        every += found.of_namespace(namespace)
    return every


def class_of(scene: Scene, mount: Mount, over_quota: frozenset[str] = frozenset()) -> MountClass:
    (one,) = (one for one in accounts(scene, over_quota) if one.mount.mount_id == mount.mount_id)
    return one.kind


def changed(scene: Scene, number: int = -1, **fields: object) -> None:
    scene.namespaces[number] = replace(scene.namespaces[number], **fields)  # type: ignore[arg-type]


# ------------------------------------------------------------------------- one by one


def test_volumes_and_their_source() -> None:
    scene, source, bind = usual()
    (inside,) = scene.namespaces[0].mounts
    kinds = [class_of(scene, mount) for mount in (source, bind, inside)]
    assert kinds == [K.SOURCE, K.BIND_HOST, K.BIND_CONTAINER]


def test_places_of_the_host() -> None:
    scene, _source, _bind = usual()
    copy = scene.mount("/copy")
    alone = scene.mount("/mnt/alone", THIRD)
    lxcfs = scene.mount("/var/lib/lxcfs", Device(0, 80), fs_type="fuse.lxcfs")
    layer = scene.mount("/run/snapshotter/snapshots/12/fs", Device(0, 81))
    within = scene.mount(f"{publish_path()}/in", Device(0, 82))
    odd = scene.mount(f"{ROOT}/pods/{UID}/volumes/kubernetes.io~glusterfs/v", Device(0, 83))
    second = publish_path().replace(ROOT, "/data/kubelet")
    twin = scene.mount(second)
    other = scene.mount(second.replace(UID, OTHER_UID), Device(0, 84))
    assert class_of(scene, copy) is K.COPY
    assert class_of(scene, alone) is K.SOURCE
    assert class_of(scene, lxcfs) is K.EXCEPTION
    assert class_of(scene, layer) is K.EXCEPTION
    assert class_of(scene, within) is K.COPY
    assert class_of(scene, odd) is K.NOT_UNDERSTOOD
    assert class_of(scene, twin) is K.COPY
    assert class_of(scene, other) is K.NOT_UNDERSTOOD
    scene.answers[Device(0, 84)] = Answer.DISCONNECTED
    assert class_of(scene, other) is K.STILL_DEAD
    users = replace(other, super_options="rw,user_id=1000")
    scene.mounts[scene.mounts.index(other)] = users
    assert class_of(scene, users) is K.SOURCE, "anybody can make directories of such names"


def given_to_a_container(scene: Scene) -> Mount:
    """A part of the volume, in the container's own namespace."""
    part = scene.inside("/part", root="/part")
    changed(scene, mounts=(*scene.namespaces[-1].mounts, part))
    return part


def test_what_a_container_was_given_is_understood_or_loud() -> None:
    scene, source, _ = usual()
    part = given_to_a_container(scene)
    assert class_of(scene, part) is K.NOT_UNDERSTOOD
    scene.crash_and_restart(source)
    assert class_of(scene, part) is K.STILL_DEAD
    scene.pods = {UID: pod(is_deleting=True)}
    assert class_of(scene, part) is K.COPY, "its pod is on its way out"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"is_agent": True}, K.OWN),
        ({"own_user_namespace": True}, K.OWN),
        ({"is_own": False}, K.OWN),
        ({"kind": NamespaceKind.FOREIGN}, K.OTHER_CONTAINER),
        ({"kind": NamespaceKind.FOREIGN, "container_id": "", "is_agent": True}, K.AGENT_COPY),
        ({"kind": NamespaceKind.FOREIGN, "container_id": ""}, K.OWN),
    ],
)
@pytest.mark.parametrize("is_dead", [False, True])
def test_what_others_made_is_never_loud(
    change: dict[str, object], kind: MountClass, is_dead: bool
) -> None:
    scene, source, _ = usual()
    part = given_to_a_container(scene)
    changed(scene, **change)
    if is_dead:
        scene.crash_and_restart(source)
    assert class_of(scene, part) is kind


def test_what_its_pod_serves_is_its_own_also_when_the_server_has_ended() -> None:
    scene, _source, _ = usual()
    own = scene.inside("/mine", THIRD)
    scene.container(own)
    scene.servers[THIRD] = (FuseServer(9, 1, (THIRD,), pod_uid=UID),)
    assert class_of(scene, own) is K.OWN


def test_a_dead_volume_that_only_the_spec_tells_of() -> None:
    """A daemon that was started after the volume was unmounted on the host."""
    scene = Scene()
    data = scene.inside("/data")
    scene.container(data)
    changed(scene, container_name="app", is_agent=True)
    scene.pods = spec(Volume("v", "persistentVolumeClaim"), entry())
    scene.answers[OLD] = Answer.DISCONNECTED
    assert class_of(scene, data) is K.STILL_DEAD
    scene.pods = spec(Volume("v", "hostPath", "/mnt"), entry())
    assert class_of(scene, data) is K.OWN


def test_a_copy_of_the_hosts_tree_is_an_agents() -> None:
    scene, source, _ = usual()
    scene.mount("/", Device(8, 1), fs_type="ext4")
    tree = scene.inside("/host", Device(8, 1), root="/", fs_type="ext4")
    copy = scene.inside("/host/mnt/source", parent=tree.mount_id)
    volume = scene.inside(f"/host{publish_path()}", parent=tree.mount_id)
    scene.container(tree, copy, volume, uid=OTHER_UID)
    scene.crash_and_restart(source)
    assert class_of(scene, copy) is K.AGENT_COPY
    assert class_of(scene, volume) is K.AGENT_COPY


def test_a_pod_above_its_quota() -> None:
    scene, _, _ = usual()
    part = given_to_a_container(scene)
    assert class_of(scene, part, frozenset({UID})) is K.NOT_READ


def test_a_container_of_which_nothing_says_whose_it_is() -> None:
    scene, _, _ = usual()
    part = given_to_a_container(scene)
    changed(scene, kind=NamespaceKind.FOREIGN, pod_uid="")
    scene.gaps = (Gap("containers", "1 container"),)
    assert class_of(scene, part) is K.NOT_UNDERSTOOD


def test_pods_volumes_in_another_namespace_of_root_alone() -> None:
    scene, _, _ = usual()
    volume = scene.inside(publish_path(OTHER_UID), THIRD)
    scene.container(volume, kind=NamespaceKind.FOREIGN)
    changed(scene, container_id="", is_agent=True)
    assert class_of(scene, volume) is K.NOT_UNDERSTOOD
    scene.mount(publish_path(OTHER_UID), THIRD)
    assert class_of(scene, volume) is K.AGENT_COPY


# ------------------------------------------------------------------------- all of them

DEVICES = (OLD, NEW, THIRD, Device(0, 80))
POINTS = (
    SOURCE, "/copy", publish_path(), publish_path(OTHER_UID), f"{publish_path()}/in",
    f"/data/kubelet/pods/{UID}/volumes/kubernetes.io~csi/pv/mount", "/data", "/data/in", "/",
    f"{ROOT}/pods/{UID}/volumes/odd", "/run/snapshots/3/fs", f"/host{publish_path()}",
)  # fmt: skip


def node(pick: random.Random) -> Scene:
    """Make mounts of all kinds in namespaces of all kinds, stacked or one in the other."""
    scene = Scene()
    for _ in range(pick.randrange(6)):
        _mount(scene, pick, on_host=True)
    for _ in range(pick.randrange(4)):
        mounts: list[Mount] = []
        for _ in range(pick.randrange(1, 5)):
            parent = pick.choice(mounts).mount_id if mounts and pick.random() < 0.5 else 900
            mounts.append(_mount(scene, pick, on_host=False, parent=parent))
        scene.container(
            *mounts, uid=pick.choice((UID, OTHER_UID)), kind=pick.choice([*NamespaceKind])
        )
        ids = "" if pick.random() < 0.3 else "c" * 64
        changed(
            scene, is_own=pick.random() < 0.7, is_agent=pick.random() < 0.3, container_id=ids,
            own_user_namespace=pick.random() < 0.2, pid=pick.choice((0, 4000)),
        )  # fmt: skip
    if pick.random() < 0.5:
        scene.pods = spec(Volume("v", pick.choice(("hostPath", "persistentVolumeClaim"))), entry())
        scene.pods_are_current = pick.random() < 0.5
    if pick.random() < 0.3:
        scene.gaps = (Gap("containers", ""),)
    return scene


def _mount(scene: Scene, pick: random.Random, **more: object) -> Mount:
    fs_type = pick.choice(("fuse.demofs", "fuse.demofs", "fuse.lxcfs", "ext4"))
    return scene.mount(
        pick.choice(POINTS), pick.choice(DEVICES), root=pick.choice(("/", "/", "/sub")),
        fs_type=fs_type, peer_group=pick.choice((0, 5)), master=pick.choice((0, 5)), **more,  # type: ignore[arg-type]
    )  # fmt: skip


def later(scene: Scene, pick: random.Random) -> None:
    """Change the node a little, as time does."""
    scene.answers[pick.choice(DEVICES)] = pick.choice((Answer.ANSWERED, Answer.DISCONNECTED))
    if scene.mounts and pick.random() < 0.5:
        scene.unmount(pick.choice(scene.mounts))
    if pick.random() < 0.5:
        _mount(scene, pick, on_host=True)


@given(st.integers(0, 10**9))
def test_no_mount_is_counted_twice_or_never(seed: int) -> None:
    pick = random.Random(seed)
    scene = node(pick)
    for _ in range(3):
        every = accounts(scene)
        seen = [(0, m.mount_id) for m in scene.mounts if m.is_fuse]
        seen += [(n.inode, m.mount_id) for n in scene.namespaces for m in n.mounts if m.is_fuse]
        assert sorted(seen) == sorted((one.namespace, one.mount.mount_id) for one in every)
        made = account_of(every)
        assert made.mounts == len(seen)
        assert sum(one.dead for one in made.sums.values()) == sum(one.is_dead for one in every)
        later(scene, pick)


@given(st.integers(0, 10**9))
def test_what_is_managed_is_no_class_but_a_volume_and_what_is_loud_is_not_managed(
    seed: int,
) -> None:
    pick = random.Random(seed)
    scene = node(pick)
    for _ in range(3):
        managed = {f.bind.key for f in scene.look().findings if f.bind.mount is not None}
        for one in accounts(scene):
            key = (one.namespace, one.mount.mount_point)
            is_managed = key in {(k.namespace, k.mount_point) for k in managed}
            assert is_managed == (one.kind in (K.BIND_HOST, K.BIND_CONTAINER))
        later(scene, pick)


@given(st.integers(0, 10**9))
def test_an_equal_signature_means_equal_classes(seed: int) -> None:
    """What is kept of a namespace is what would be found again."""
    pick = random.Random(seed)
    scene = node(pick)
    known: dict[int, tuple[object, object, object]] = {}
    for _ in range(4):
        found = accountant(scene)
        for namespace in scene.snapshot().namespaces:
            made = account_of(found.of_namespace(namespace))
            signature = found.signature(namespace)
            before = known.get(namespace.inode)
            if before is not None and before[:2] == (namespace.mounts, signature):
                assert made == before[2]
            known[namespace.inode] = namespace.mounts, signature, made
        later(scene, pick)
