"""A container's mount of a volume whose bind on the host was unmounted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusewatchd.model.ledger import Ledger
from fusewatchd.model.mounts import Mount, TargetKey
from fusewatchd.model.servers import Answer
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.reconcile.incidents import IncidentStep, follow
from tests.unit.scenes import (
    NAMESPACE,
    NEW,
    OLD,
    OTHER_UID,
    SOURCE,
    UID,
    Scene,
    pod,
    publish_path,
    reasons,
    replacements,
    subpath_path,
    usual,
)

INSIDE = TargetKey(NAMESPACE, "/data")


def unmounted(*, is_dead: bool = True) -> Scene:
    scene, source, bind = usual()
    scene.unmount(bind)
    if is_dead:
        scene.crash_and_restart(source)
    return scene


def incidents_of(scene: Scene) -> IncidentStep:
    diagnosis = scene.look()
    step = follow(scene.ledger.incidents, diagnosis.findings, (), {}, scene.snapshot(), scene.now)
    scene.ledger = replace(scene.ledger, incidents=step.open)
    return step


def test_while_it_works_it_is_healthy() -> None:
    scene = unmounted(is_dead=False)
    (finding,) = scene.look().findings
    assert (finding.bind.key, finding.verdict) == (INSIDE, Verdict.HEALTHY)
    scene.answers[OLD] = Answer.DISCONNECTED
    (finding,) = scene.look().findings
    assert (finding.verdict, finding.refusal) == (Verdict.STALE, Reason.UNMOUNTED_ON_HOST)


def test_it_stays_what_it_was_and_nothing_is_done_to_it() -> None:
    scene = unmounted()
    findings, planned = scene.plan()
    (finding,) = findings
    bind = finding.bind
    assert (bind.key, bind.path.pod_uid, bind.path.volume) == (INSIDE, UID, "pv")
    assert (bind.driver, bind.source.candidates[0].mount_point) == ("demofs", SOURCE)
    assert (finding.verdict, finding.refusal) == (Verdict.STALE, Reason.UNMOUNTED_ON_HOST)
    assert not planned.actions
    assert reasons(planned) == {Reason.UNMOUNTED_ON_HOST}
    assert scene.look().foreign_stale == 0


def test_its_outage_lasts_until_the_container_ends() -> None:
    scene = unmounted()
    assert [one.device for one in incidents_of(scene).opened] == [OLD]
    for _ in range(3):
        assert not incidents_of(scene).closed
    scene.namespaces.clear()
    assert [one.device for one in incidents_of(scene).closed] == [OLD]


def test_it_is_put_in_order_when_the_volume_is_published_again() -> None:
    scene = unmounted()
    scene.look()
    scene.mount(publish_path(), NEW)
    (action,) = replacements(scene.plan()[1])
    assert action.key == INSIDE


def test_it_does_not_follow_another_directory_after_a_restart() -> None:
    scene = unmounted()
    scene.look()
    scene.ledger = Ledger(containers=scene.ledger.containers)
    scene.mount(publish_path(), NEW, root="/elsewhere")
    findings, planned = scene.plan()
    (inside,) = (finding for finding in findings if finding.bind.key == INSIDE)
    assert (inside.verdict, inside.refusal) == (Verdict.STALE, Reason.SOURCE_ROOT)
    assert not replacements(planned)


def test_a_list_that_says_deleting_wins() -> None:
    scene = unmounted()
    scene.pods = {UID: pod(is_deleting=True)}
    (finding,) = scene.look().findings
    assert finding.refusal is Reason.POD_ENDING
    assert not incidents_of(scene).opened


def test_the_same_device_in_another_pod_or_under_another_root_is_not_it() -> None:
    scene = unmounted()
    scene.container(scene.inside("/data"), uid=OTHER_UID)
    scene.container(scene.inside("/part", root="/part"))
    assert {finding.bind.key for finding in scene.look().findings} == {INSIDE}


def test_another_mount_with_its_number_is_not_it() -> None:
    """The device number was freed and is a later file system's, mounted by the pod."""
    scene = unmounted()
    scene.look()
    scene.namespaces.clear()
    scene.look()
    scene.container(scene.inside("/data"))
    scene.seen_at[OLD] = scene.now
    assert scene.look().findings == ()


def test_a_container_that_began_just_before_is_known_by_what_the_bind_showed() -> None:
    scene, source, bind = usual()
    scene.namespaces.clear()
    scene.container(scene.inside("/other"))
    scene.unmount(bind)
    scene.crash_and_restart(source)
    (finding,) = scene.look().findings
    assert finding.bind.key == TargetKey(NAMESPACE, "/other")
    assert finding.refusal is Reason.UNMOUNTED_ON_HOST


@pytest.mark.parametrize("path", [publish_path(), subpath_path()])
def test_a_bind_that_is_merely_not_looked_at_was_not_unmounted(path: str) -> None:
    scene = Scene()
    source = scene.mount(SOURCE)
    bind: Mount = scene.mount(path, peer_group=6)
    scene.container(scene.inside())
    scene.look()
    scene.crash_and_restart(source)
    scene.mounts[scene.mounts.index(bind)] = replace(bind, fs_type="fuse.lxcfs")
    (finding,) = scene.look().findings
    assert (finding.bind.key, finding.refusal) == (INSIDE, Reason.HOST_BIND_STALE)


def test_a_bare_bind_has_its_driver_still() -> None:
    scene = unmounted()
    scene.pods, scene.pods_are_current = {UID: pod()}, True
    bare = next(f for f in scene.look().findings if f.verdict is Verdict.BARE)
    assert bare.bind.driver == "demofs"
