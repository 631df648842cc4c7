from __future__ import annotations

from dataclasses import replace

import pytest

from fusewatchd import lineage, sources
from fusewatchd.drivers import drivers_for
from fusewatchd.model import (
    Answer,
    BindKind,
    BindPath,
    Connection,
    Device,
    Mount,
    Pod,
    Reason,
    SourcePath,
)
from fusewatchd.mountinfo import MountTable
from fusewatchd.snapshot import Snapshot

PODS = "/k/pods"
OLD, NEW, OTHER = Device(0, 40), Device(0, 41), Device(0, 42)
TARGET = f"{PODS}/50a97417-eded-45b5-9699-867eb25c5bb8/volumes/kubernetes.io~csi/a-b-c/mount"
PATH = BindPath(BindKind.PUBLISH, "50a97417-eded-45b5-9699-867eb25c5bb8", "a-b-c")


def mount(number: int, point: str, device: Device = OLD, root: str = "/") -> Mount:
    return Mount(number, 1, device, root, point, "rw", 0, 0, "fuse.x", "s", "rw", number + 1000)


BIND, SOURCE = mount(10, TARGET), mount(5, "/source")


def learned(
    *mounts: Mount, facts: lineage.Facts | None = None, bind: Mount = BIND
) -> lineage.Facts:
    return lineage.learn(facts or {}, MountTable.of((*mounts, bind)), [(PATH, bind)], PODS)


def snapshot(
    *mounts: Mount, answered: tuple[Device, ...] = (NEW, OTHER), pods: dict[str, Pod] | None = None
) -> Snapshot:
    connections = {d: Connection(d, Answer.ANSWERED) for d in answered}
    return Snapshot(0.0, MountTable.of(mounts), "/k", connections, pods=pods)


def test_a_healthy_bind_teaches_its_source() -> None:
    assert learned(SOURCE)[TARGET].candidates == (SourcePath("/source"),)


def test_it_is_remembered_when_the_source_is_gone() -> None:
    assert learned(facts=learned(SOURCE))[TARGET].candidates == (SourcePath("/source"),)


def test_another_mount_at_the_same_path_with_the_same_device_knows_nothing() -> None:
    impostor = replace(BIND, mount_id=11, unique_id=2222)
    assert learned(facts=learned(SOURCE), bind=impostor) == {}


def test_without_unique_ids_mount_id_and_device_decide() -> None:
    old = replace(BIND, unique_id=0)
    facts = learned(SOURCE, bind=old)
    assert TARGET in learned(facts=facts, bind=old)
    assert learned(facts=facts, bind=replace(old, device=OTHER)) == {}


def test_binds_of_other_pods_are_no_source() -> None:
    other = mount(6, TARGET.replace("50a9", "60a9"))
    assert learned(other) == {}


def test_the_servers_own_mount_comes_first_and_stays_first() -> None:
    late = mount(7, "/bind-of-it")
    facts = learned(late, SOURCE)
    assert facts[TARGET].candidates == (SourcePath("/source"), SourcePath("/bind-of-it"))
    assert learned(late, facts=facts)[TARGET].candidates[0] == SourcePath("/source")


def test_a_source_that_shows_another_directory_is_none() -> None:
    assert learned(mount(5, "/source", root="/elsewhere"), bind=replace(BIND, root="/sub")) == {}


def test_restored_only_for_the_very_mount() -> None:
    facts = learned(SOURCE)
    assert lineage.restore(facts.values(), MountTable.of([BIND])) == dict(facts)
    assert lineage.restore(facts.values(), MountTable.of([replace(BIND, unique_id=1)])) == {}


@pytest.mark.parametrize(
    ("now", "answered", "expected"),
    [
        ((), (NEW,), Reason.SOURCE_MISSING),
        ((SOURCE,), (NEW,), Reason.SOURCE_MISSING),
        ((mount(20, "/source", NEW),), (), Reason.SOURCE_UNPROVEN),
        ((mount(20, "/source", NEW),), (NEW,), Reason.NONE),
        ((replace(mount(20, "/source", NEW), fs_type="fuse.y"),), (NEW,), Reason.SOURCE_TYPE),
        ((mount(20, "/source", NEW, "/sub"),), (NEW,), Reason.SOURCE_TYPE),
        ((mount(20, "/other", NEW),), (NEW,), Reason.SOURCE_MISSING),
    ],
)
def test_what_counts_as_a_new_source(
    now: tuple[Mount, ...], answered: tuple[Device, ...], expected: Reason
) -> None:
    seen = snapshot(BIND, *now, answered=answered)
    found = lineage.answer(learned(SOURCE), BIND)
    assert found is not None
    assert sources.resolve(found, BIND, seen).refusal is expected


FLUID = drivers_for("/r")
FIRST, SECOND = (
    mount(20, "/r/juicefs/a/b-c/juicefs-fuse", NEW),
    mount(21, "/r/thin/a-b/c/thin-fuse", OTHER),
)


def pod(namespace: str) -> dict[str, Pod]:
    return {PATH.pod_uid: Pod(PATH.pod_uid, PATH.pod_uid, namespace, "p", "Running", False)}


@pytest.mark.parametrize(
    ("mounts", "pods", "expected"),
    [
        ((FIRST,), None, Reason.AMBIGUOUS_SOURCE),
        ((FIRST,), pod("a"), NEW),
        ((FIRST, SECOND), None, Reason.AMBIGUOUS_SOURCE),
        ((FIRST, SECOND), pod("a"), NEW),
        ((FIRST, SECOND), pod("a-b"), OTHER),
        ((FIRST,), pod("a-b"), Reason.NO_SOURCE),
    ],
)
def test_fluid_datasets_with_names_that_run_together(
    mounts: tuple[Mount, ...], pods: dict[str, Pod] | None, expected: Device | Reason
) -> None:
    seen = snapshot(BIND, *mounts, pods=pods)
    found = sources.resolve(sources.locate(PATH, BIND, seen, {}, FLUID), BIND, seen)
    assert (found.mount.device if found.mount else found.refusal) == expected


def test_a_driver_that_contradicts_lineage_is_refused() -> None:
    seen = snapshot(BIND, FIRST, mount(22, "/source", OTHER))
    answer = sources.locate(PATH, BIND, seen, learned(SOURCE), FLUID)
    assert sources.resolve(answer, BIND, seen).refusal is Reason.AMBIGUOUS_SOURCE


def test_narrower_superblocks_are_described() -> None:
    old = replace(BIND, super_options="rw,user_id=0,group_id=0,allow_other")
    assert sources.narrower(old, old) == ""
    new = replace(BIND, super_options="ro,user_id=5,group_id=0,default_permissions")
    assert (
        sources.narrower(old, new)
        == "without allow_other, without rw, with default_permissions, user_id 0 → 5"
    )
