"""A pod that binds its volume very often: what counts as ours, and what a cycle of it costs."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import FrameType

import pytest

from fusewatchd.model.mounts import MountNamespace, NamespaceKind
from fusewatchd.model.pods import Volume
from fusewatchd.model.quota import LEAST_BINDS, LEAST_BINDS_OF_POD, Resource, pod
from tests.unit.scenes import (
    NAMESPACE,
    OTHER_UID,
    SOURCE,
    UID,
    Scene,
    container_id,
    entry,
    publish_path,
    replacements,
    spec,
)

N = 120


def crowded(binds: int, *, is_own: bool = True, at_depth: int = 1) -> Scene:
    """A pod whose container shows its volume at /data and at as many more places.

    ``at_depth``: so many of them are each inside the one before.
    """
    scene = Scene()
    scene.mount(SOURCE)
    scene.mount(publish_path(), peer_group=6)
    scene.mount(publish_path(OTHER_UID), peer_group=7)
    scene.container(scene.inside())
    inside = []
    for number in range(binds // at_depth):
        point, parent = f"/tmp/{number}", 900
        for _ in range(at_depth):
            inside.append(scene.inside(point, parent=parent))
            point, parent = f"{point}/in", inside[-1].mount_id
    if is_own:
        own = scene.namespaces[0]
        scene.namespaces[0] = replace(own, mounts=(*own.mounts, *inside))
    else:
        made = MountNamespace(
            NAMESPACE + 1, 4001, 2, NamespaceKind.CONTAINER, UID, container_id(UID),
            tuple(inside), is_own=False,
        )  # fmt: skip
        scene.namespaces.insert(0, made)
    scene.container(scene.inside(), uid=OTHER_UID)
    return scene


@pytest.mark.parametrize("is_own", [True, False])
def test_a_pod_has_no_more_binds_than_its_quota_and_others_have_all_of_theirs(
    is_own: bool,
) -> None:
    scene = crowded(6 * LEAST_BINDS, is_own=is_own)
    diagnosis = scene.look()
    keys = [f.bind.key for f in diagnosis.findings if f.bind.path.pod_uid == UID]
    inside = [key for key in keys if not key.is_host]
    assert len(inside) == LEAST_BINDS
    assert (NAMESPACE, "/data") in {(key.namespace, key.mount_point) for key in inside}
    others = [f for f in diagnosis.findings if f.bind.path.pod_uid == OTHER_UID]
    assert len(others) == 2
    (refused,) = diagnosis.refused_owners
    assert (refused.owner, refused.resource) == (pod(UID), Resource.BINDS)
    assert (refused.limit, refused.wanted) == (LEAST_BINDS, 6 * LEAST_BINDS + 1)


def test_what_is_above_the_quota_is_not_called_nobodys() -> None:
    diagnosis = crowded(6 * LEAST_BINDS).look()
    assert (diagnosis.unclaimed, diagnosis.unproven, diagnosis.foreign_stale) == ((), (), 0)


def test_the_binds_that_were_known_stay_whatever_comes_later() -> None:
    scene = crowded(10)
    before = {f.bind.key for f in scene.look().findings}
    more = [replace(scene.inside(f"/more/{n}"), unique_id=1 + n) for n in range(500)]
    own = scene.namespaces[0]
    scene.namespaces[0] = replace(own, mounts=(*more, *own.mounts))
    diagnosis = scene.look()
    assert before <= {f.bind.key for f in diagnosis.findings}
    assert diagnosis.refused_owners


def test_what_the_spec_names_has_its_place_before_all_that_a_process_made() -> None:
    scene = crowded(500)
    scene.pods = spec(
        Volume("v", "csi"), *(entry(mount_path=f"/tmp/{number}") for number in range(400, 440))
    )
    diagnosis = scene.look()
    inside = {f.bind.key.mount_point for f in diagnosis.findings if f.bind.namespace is not None}
    assert {f"/tmp/{number}" for number in range(400, 440)} <= inside
    assert diagnosis.refused_owners[0].limit == 80


def test_a_pod_with_many_containers_has_a_quota_of_its_own() -> None:
    scene = crowded(0)
    for number in range(20):
        mounts = tuple(scene.inside(f"/{number}/{n}") for n in range(LEAST_BINDS))
        made = MountNamespace(
            NAMESPACE + 10 + number, 4000, 2, NamespaceKind.CONTAINER, UID,
            f"{number:064x}", mounts,
        )  # fmt: skip
        scene.namespaces.append(made)
    diagnosis = scene.look()
    inside = [f for f in diagnosis.findings if f.bind.namespace and f.bind.path.pod_uid == UID]
    assert len(inside) == LEAST_BINDS_OF_POD
    assert [one.limit for one in diagnosis.refused_owners] == [LEAST_BINDS_OF_POD]


def steps_of_a_crash(binds: int, at_depth: int) -> int:
    """Count the lines that a look and the plan after a crash run, each turn of a loop again.

    The spec has room for all the binds.
    """
    scene = crowded(binds, at_depth=at_depth)
    mounts = (entry(mount_path=f"/elsewhere/{number}") for number in range(binds))
    scene.pods = spec(Volume("v", "csi"), *mounts)
    scene.look()
    scene.crash_and_restart(scene.mounts[0])
    steps = 0

    def seen(_frame: FrameType, event: str, _argument: object) -> object:
        nonlocal steps
        steps += event == "line"
        return seen

    before = sys.gettrace()
    sys.settrace(seen)
    try:
        _, todo = scene.plan()
    finally:
        sys.settrace(before)
    assert len(todo.actions) + len(todo.refused) >= binds
    assert at_depth > 1 or len(replacements(todo)) >= binds
    return steps


@pytest.mark.parametrize("at_depth", [1, 40])
def test_a_cycle_costs_no_more_than_in_proportion_to_the_mounts_of_a_namespace(
    at_depth: int,
) -> None:
    assert steps_of_a_crash(4 * N, at_depth) < 4.5 * steps_of_a_crash(N, at_depth)
