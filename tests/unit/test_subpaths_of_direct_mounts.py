"""subPath binds of a volume whose server mounts straight into the pod."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from fusewatchd.config.settings import DriverSettings, TemplateSettings
from fusewatchd.diagnose import lineage, sources
from fusewatchd.drivers import drivers_for
from fusewatchd.model.actions import Outcome, OutcomeStatus, ReplaceMount
from fusewatchd.model.ledger import Ledger, TargetState
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Mount, TargetKey
from fusewatchd.model.outages import Phase
from fusewatchd.model.plan import Plan
from fusewatchd.model.pods import Volume, VolumeData
from fusewatchd.model.servers import Answer
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.parse.kubelet_paths import is_bound_from, parse_bind_path
from fusewatchd.plan.back_off import BackOff
from fusewatchd.reconcile.ledger_update import take_outcomes
from fusewatchd.state.document import document_of, ledger_from
from tests.unit.scenes import (
    NEW,
    OLD,
    OTHER_UID,
    ROOT,
    SOURCE,
    THIRD,
    UID,
    Scene,
    pod,
    publish_path,
    reasons,
    replacements,
    spec,
    subpath_path,
)

TARGET, SUBPATH = publish_path(), subpath_path()
FLEX = f"{ROOT}/pods/{UID}/volumes/lab~fuse/pv"


@dataclass
class Direct:
    """A pod's own mount of a volume, a subPath bind of it and a container that has that."""

    target: str = TARGET
    scene: Scene = field(default_factory=Scene)

    def __post_init__(self) -> None:
        self.volume = self.scene.mount(self.target)
        self.subpath = self.scene.mount(SUBPATH, root="/logs", peer_group=6)
        self.scene.container(self.scene.inside(root="/logs"))

    def crash(self) -> None:
        self.scene.answers[OLD] = Answer.DISCONNECTED
        self.scene.unmount(self.volume)

    def restart(self, **how: object) -> Mount:
        return self.scene.mount(self.target, NEW, **how)  # type: ignore[arg-type]

    def plan(self) -> Plan:
        return self.scene.plan()[1]


def origins(of: Plan) -> list[tuple[str, str, str]]:
    return [(a.key.mount_point, a.origin.mount_point, a.subpath) for a in replacements(of)]


FOLLOWS = [(SUBPATH, TARGET, "logs"), ("/data", SUBPATH, "")]


@pytest.mark.parametrize("target", [TARGET, FLEX])
def test_it_follows_the_pods_own_mount_and_its_containers_follow_it(target: str) -> None:
    node = Direct(target)
    node.scene.look()
    node.crash()
    waiting = node.plan()
    assert waiting.actions == ()
    assert reasons(waiting) == {Reason.SOURCE_MISSING}
    made = node.restart()
    todo = node.plan()
    assert origins(todo) == [(SUBPATH, target, "logs"), ("/data", SUBPATH, "")]
    assert replacements(todo)[0].origin.unique_id == made.unique_id


def test_a_new_server_that_covers_the_dead_mount_tells_it_even_after_a_restart() -> None:
    """The daemon was started after all that; what is covered shows what the subPath shows."""
    node = Direct()
    node.scene.answers[OLD] = Answer.DISCONNECTED
    node.restart(parent=node.volume.mount_id)
    assert origins(node.plan())[:1] == FOLLOWS[:1]


def test_the_daemon_remembers_it_over_a_restart() -> None:
    node = Direct()
    node.scene.look()
    document = json.loads(json.dumps(document_of(node.scene.ledger, "boot")))
    node.crash()
    table = MountTable.of(node.scene.mounts)
    node.scene.ledger = ledger_from(document, "boot", table)
    node.restart()
    assert origins(node.plan())[:1] == FOLLOWS[:1]


def known_driver(node: Direct) -> None:
    data = VolumeData("gcsfuse.csi.storage.gke.io", "bucket")
    node.scene.volume_data = {(UID, "pv"): data}
    node.scene.pods = spec(Volume("v", "persistentVolumeClaim"))


def test_where_nothing_was_seen_a_driver_that_mounts_there_and_the_spec_are_enough() -> None:
    node = Direct()
    known_driver(node)
    node.crash()
    node.restart()
    assert origins(node.plan())[:1] == FOLLOWS[:1]
    (finding,) = (f for f in node.scene.look().findings if f.bind.key.mount_point == SUBPATH)
    assert finding.bind.source.rule == "gcsfuse"


def unknown_driver(node: Direct) -> None:
    node.scene.volume_data = {(UID, "pv"): VolumeData("some.csi.driver", "h")}


def nothing_but_the_path(node: Direct) -> None:
    node.scene.volume_data = {}


def the_spec_is_not_known(node: Direct) -> None:
    node.scene.pods = None


def a_hostpath_of_that_name(node: Direct) -> None:
    node.scene.pods = spec(Volume("pv", "hostPath", path="/srv"))


@pytest.mark.parametrize(
    "but", [unknown_driver, nothing_but_the_path, the_spec_is_not_known, a_hostpath_of_that_name]
)
def test_where_nothing_was_seen_nothing_is_guessed(but: Callable[[Direct], None]) -> None:
    node = Direct()
    known_driver(node)
    but(node)
    node.crash()
    node.restart()
    todo = node.plan()
    assert todo.actions == ()
    assert Reason.NO_SOURCE in reasons(todo)


def test_a_flexvolume_is_not_looked_for_where_csi_volumes_are() -> None:
    scene = Scene()
    scene.mount(FLEX, root="/tenant")
    scene.mount(TARGET, NEW)
    subpath = scene.mount(SUBPATH, root="/logs")
    template = TemplateSettings("podfs", flexvolume="lab/fuse", in_pod=True)
    drivers = drivers_for(DriverSettings(templates=(template,)))
    path = parse_bind_path(f"{ROOT}/pods", SUBPATH)
    assert path is not None
    found = sources.locate(path, subpath, scene.snapshot(), {}, drivers)
    assert (found.rule, found.candidates, found.refusal) == ("podfs", (), Reason.DIRECT_MOUNT)


def not_there(node: Direct) -> None:
    node.scene.mounts.pop()


def dead_as_well(node: Direct) -> None:
    node.scene.answers[NEW] = Answer.DISCONNECTED


def not_answered(node: Direct) -> None:
    node.scene.answers[NEW] = Answer.PENDING


def of_another_kind(node: Direct) -> None:
    node.scene.mounts[-1] = replace(node.scene.mounts[-1], fs_type="fuseblk")


def a_part_of_something(node: Direct) -> None:
    node.scene.mounts[-1] = replace(node.scene.mounts[-1], root="/elsewhere")


def a_pod_that_ends(node: Direct) -> None:
    node.scene.pods = {UID: pod(is_deleting=True)}


@pytest.mark.parametrize(
    ("but", "reason"),
    [
        (not_there, Reason.SOURCE_MISSING),
        (dead_as_well, Reason.SOURCE_UNPROVEN),
        (not_answered, Reason.SOURCE_UNPROVEN),
        (of_another_kind, Reason.SOURCE_TYPE),
        (a_part_of_something, Reason.SOURCE_ROOT),
        (a_pod_that_ends, Reason.POD_ENDING),
    ],
)
def test_only_a_living_mount_of_that_volume_will_do(
    but: Callable[[Direct], None], reason: Reason
) -> None:
    node = Direct()
    node.scene.look()
    node.crash()
    node.restart()
    but(node)
    _, todo = node.scene.plan()
    assert todo.actions == ()
    (refusal,) = (r for r in todo.refused if r.finding.bind.key == TargetKey(0, SUBPATH))
    assert refusal.reason is reason


@pytest.mark.parametrize(
    "other",
    [publish_path(OTHER_UID), publish_path(volume="pv2"), f"{ROOT}/plugins/x"],
    ids=["of another pod", "another volume", "outside"],
)
def test_what_is_mounted_elsewhere_is_not_taken(other: str) -> None:
    node = Direct()
    node.scene.look()
    node.crash()
    node.scene.mount(other, NEW)
    assert node.plan().actions == ()


def test_an_equal_file_system_in_another_pod_teaches_nothing() -> None:
    """Two pods show one file system; each subPath is a part of its own pod's mount."""
    scene = Scene()
    scene.mount(publish_path(OTHER_UID))
    scene.mount(SUBPATH, root="/logs")
    scene.look()
    scene.answers[OLD] = Answer.DISCONNECTED
    scene.mount(TARGET, NEW)
    _, todo = scene.plan()
    assert todo.actions == ()
    (mine,) = (r for r in todo.refused if r.finding.bind.key.mount_point == SUBPATH)
    assert mine.reason is Reason.NO_SOURCE


def test_what_a_subpath_knows_is_told_to_no_other_mount() -> None:
    node = Direct()
    node.scene.look()
    node.scene.mount(publish_path(OTHER_UID))
    node.scene.look()
    known = node.scene.ledger.facts
    assert [fact.of_pod.mount_point for fact in known.values() if fact.of_pod] == [TARGET]
    assert [fact for fact in known.values() if fact.candidates] == []


def test_a_volume_with_a_source_outside_has_that_for_its_subpaths_too() -> None:
    scene = Scene()
    source = scene.mount(SOURCE)
    scene.mount(TARGET)
    scene.mount(SUBPATH, root="/logs")
    scene.look()
    scene.crash_and_restart(source)
    todo = scene.plan()[1]
    assert origins(todo) == [(TARGET, SOURCE, ""), (SUBPATH, SOURCE, "logs")]


@pytest.mark.parametrize("is_known", [True, False])
def test_a_bind_that_somebody_made_of_the_pods_mount_is_not_its_source(is_known: bool) -> None:
    """Older than the subPath bind, and younger than the mount that both are binds of."""
    scene = Scene()
    scene.mount(TARGET)
    scene.mount("/mnt/backup", OLD)
    if is_known:
        scene.look()
    scene.mount(SUBPATH, root="/logs")
    scene.look()
    scene.answers[OLD] = Answer.DISCONNECTED
    scene.mounts = [m for m in scene.mounts if m.mount_point != TARGET]
    scene.mount(TARGET, NEW)
    assert origins(scene.plan()[1]) == FOLLOWS[:1]


def test_crash_after_crash_it_is_never_taken_for_the_pods_own_source() -> None:
    """What was replaced is remembered as a part of the pod's mount, and as nothing else."""
    node = Direct()
    node.scene.namespaces.clear()
    node.scene.look()
    node.crash()
    volume = node.restart()
    (action,) = replacements(node.plan())
    after = recovered(node, action)
    # It dies before anybody looked.
    node.scene.answers[NEW] = Answer.DISCONNECTED
    findings = {f.bind.key.mount_point: f for f in node.scene.look().findings}
    assert findings[TARGET].bind.source.candidates == ()
    node.scene.unmount(volume)
    node.scene.mount(TARGET, THIRD)
    (action,) = replacements(node.plan())
    assert (action.expect.unique_id, action.origin.device) == (after.unique_id, THIRD)


def recovered(node: Direct, action: ReplaceMount) -> Mount:
    """Put the new bind there, and tell the ledger."""
    node.scene.unmount(node.subpath)
    made = node.scene.mount(SUBPATH, NEW, root="/logs", peer_group=6)
    outcome = Outcome(action, OutcomeStatus.RECOVERED, mount=made, finished_at=node.scene.now)
    states = {action.key: TargetState(Phase.RECOVERING, is_in_flight=True)}
    ledger = replace(node.scene.ledger, states=states)
    node.scene.ledger = take_outcomes(ledger, [outcome], BackOff())
    return made


def test_the_old_server_that_still_answers_is_only_reported() -> None:
    node = Direct()
    node.scene.look()
    node.scene.unmount(node.volume)
    node.restart()
    findings, todo = node.scene.plan()
    verdicts = {f.bind.key.mount_point: f.verdict for f in findings}
    assert (verdicts[TARGET], verdicts[SUBPATH]) == (Verdict.HEALTHY, Verdict.SUPERSEDED)
    assert todo.actions == ()


def test_what_it_is_a_part_of_is_told_apart_by_root() -> None:
    """A mount of the volume that does not contain what the subPath shows taught it nothing."""
    scene = Scene(ledger=Ledger())
    scene.mount(TARGET, root="/tenant")
    made = scene.mount(SUBPATH, root="/other")
    scene.look()
    assert lineage.mount_of_pod(scene.ledger.facts, made) is None


@pytest.mark.parametrize(
    ("subpath", "path", "expected"),
    [
        (SUBPATH, TARGET, True),
        (SUBPATH, FLEX, True),
        (SUBPATH, publish_path(OTHER_UID), False),
        (SUBPATH, SOURCE, False),
        (TARGET, TARGET, False),
    ],
)
def test_which_mounts_a_subpath_can_be_bound_from(subpath: str, path: str, expected: bool) -> None:
    assert is_bound_from(subpath, path) is expected
