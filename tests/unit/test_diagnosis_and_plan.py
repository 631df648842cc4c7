"""From a node's mounts to verdicts, refusals and actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusewatchd.diagnose.exclusions import Switches
from fusewatchd.model.actions import DetachOwnLayer, OwnLayer, Propagation
from fusewatchd.model.ledger import Ledger, TargetState
from fusewatchd.model.mounts import Device, Mount, NamespaceKind, TargetKey
from fusewatchd.model.outages import Phase
from fusewatchd.model.plan import RecoveryMode, SupersededPolicy
from fusewatchd.model.pods import Pod, Volume, VolumeData, VolumeMount
from fusewatchd.model.servers import Answer, FuseServer
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.plan.planner import LAYERS_SECONDS, Policy
from fusewatchd.reconcile.ledger_update import take_plan
from tests.unit.scenes import (
    NAMESPACE,
    NEW,
    OLD,
    OTHER_UID,
    SOURCE,
    THIRD,
    UID,
    Scene,
    pod,
    publish_path,
    reasons,
    replacements,
    subpath_path,
    usual,
    with_root,
)


def verdicts(scene: Scene) -> dict[str, Verdict]:
    return {f.bind.key.mount_point: f.verdict for f in scene.look().findings}


# --------------------------------------------------------------------------- verdicts


def test_all_is_well() -> None:
    scene, _, _ = usual()
    findings, todo = scene.plan()
    assert {f.verdict for f in findings} == {Verdict.HEALTHY}
    assert (todo.actions, todo.refused) == ((), ())


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (Answer.DISCONNECTED, Verdict.STALE),
        (Answer.ERROR, Verdict.UNKNOWN),
        (Answer.NOT_ALLOWED, Verdict.UNKNOWN),
        (Answer.PENDING, Verdict.UNKNOWN),
        (None, Verdict.UNKNOWN),
    ],
)
def test_an_answer_is_a_verdict(answer: Answer | None, verdict: Verdict) -> None:
    scene, _, _ = usual()
    scene.answers[OLD] = answer
    assert set(verdicts(scene).values()) == {verdict}


@pytest.mark.parametrize(("kind", "verdict"), [("slow", Verdict.SLOW), ("hung", Verdict.HUNG)])
def test_what_does_not_answer_is_never_replaced(kind: str, verdict: Verdict) -> None:
    scene, source, _ = usual()
    scene.unmount(source)
    scene.mount(SOURCE, NEW)
    getattr(scene, kind).add(OLD)
    findings, todo = scene.plan()
    assert {f.verdict for f in findings if f.bind.mount and f.bind.mount.device == OLD} == {verdict}
    assert todo.actions == ()


def test_a_new_source_beside_a_living_server_is_superseded() -> None:
    scene, source, _ = usual()
    scene.unmount(source)
    scene.mount(SOURCE, NEW)
    findings, todo = scene.plan()
    assert {f.verdict for f in findings} == {Verdict.SUPERSEDED}
    assert todo.actions == ()
    scene.policy = Policy(superseded=SupersededPolicy.REBIND)
    assert {a.origin.device for a in replacements(scene.plan()[1])} == {NEW}


def test_a_pod_that_a_current_list_lacks_is_gone() -> None:
    scene, source, _ = usual()
    scene.crash_and_restart(source)
    scene.pods, scene.pods_are_current = {}, True
    findings, todo = scene.plan()
    assert {f.verdict for f in findings} == {Verdict.ORPHANED}
    assert todo.actions == ()


def test_a_list_that_may_be_too_old_proves_nothing() -> None:
    scene, source, _ = usual()
    scene.crash_and_restart(source)
    scene.pods, scene.pods_are_current = {}, False
    assert len(scene.plan()[1].actions) == 2


def test_an_unmounted_volume_of_a_running_pod_is_bare_and_left_alone() -> None:
    scene, _, bind = usual()
    scene.unmount(bind)
    scene.namespaces.clear()
    scene.pods, scene.pods_are_current = {UID: pod()}, True
    findings, todo = scene.plan()
    assert [f.verdict for f in findings] == [Verdict.BARE]
    assert todo.actions == ()


def test_ignored_file_systems_are_nobodys_volume() -> None:
    scene = Scene()
    scene.mount(publish_path(), fs_type="fuse.lxcfs")
    assert scene.look().findings == ()


# ------------------------------------------------------------------------------- plan


def test_a_crash_is_repaired_on_the_host_first() -> None:
    scene, source, bind = usual()
    new = scene.crash_and_restart(source)
    host, container = replacements(scene.plan()[1])
    assert host.key == TargetKey(0, publish_path())
    assert host.expect.unique_id == bind.unique_id
    assert (host.origin.mount_point, host.origin.unique_id) == (SOURCE, new.unique_id)
    assert host.propagation is Propagation.OWN_GROUP
    assert host.stale_devices == (OLD,)
    assert container.namespace is not None
    assert container.origin.mount_point == publish_path()
    assert container.propagation is Propagation.PRIVATE


def test_subpaths_come_after_the_volume_and_show_the_same_part() -> None:
    scene, source, _ = usual()
    scene.mount(subpath_path(), root="/a/b//deleted")
    scene.look()
    scene.crash_and_restart(source)
    actions = replacements(scene.plan()[1])
    assert [a.key.mount_point for a in actions] == [publish_path(), subpath_path(), "/data"]
    assert [a.subpath for a in actions] == ["", "a/b", ""]


def break_pod_deleted(scene: Scene) -> None:
    scene.pods = {UID: pod(is_deleting=True)}


def break_source_unproven(scene: Scene) -> None:
    scene.answers[NEW] = None


def break_source_slow(scene: Scene) -> None:
    scene.slow.add(NEW)


def break_source_type(scene: Scene) -> None:
    (source,) = [m for m in scene.mounts if m.device == NEW]
    scene.mounts[scene.mounts.index(source)] = replace(source, fs_type="fuseblk")


def break_source_root(scene: Scene) -> None:
    (source,) = [m for m in scene.mounts if m.device == NEW]
    scene.mounts[scene.mounts.index(source)] = replace(source, root="/elsewhere")


def break_source_missing(scene: Scene) -> None:
    (source,) = [m for m in scene.mounts if m.device == NEW]
    scene.unmount(source)


def break_report_mode(scene: Scene) -> None:
    scene.policy = Policy(mode=RecoveryMode.REPORT)


def break_table_full(scene: Scene) -> None:
    scene.policy = Policy(max_table_entries=2)


def break_no_lineage(scene: Scene) -> None:
    scene.ledger = replace(scene.ledger, facts={})


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        (break_pod_deleted, Reason.POD_ENDING),
        (break_source_unproven, Reason.SOURCE_UNPROVEN),
        (break_source_slow, Reason.SOURCE_UNPROVEN),
        (break_source_type, Reason.SOURCE_TYPE),
        (break_source_root, Reason.SOURCE_ROOT),
        (break_source_missing, Reason.SOURCE_MISSING),
        (break_report_mode, Reason.REPORT_ONLY),
        (break_table_full, Reason.TABLE_FULL),
        (break_no_lineage, Reason.NO_SOURCE),
    ],
)
def test_refused_with_its_reason(breaks: Callable[[Scene], None], reason: Reason) -> None:
    scene, source, _ = usual()
    scene.crash_and_restart(source)
    breaks(scene)
    _, todo = scene.plan()
    assert todo.actions == ()
    assert reason in reasons(todo)


def test_containers_can_be_left_out() -> None:
    scene, source, _ = usual()
    scene.crash_and_restart(source)
    scene.switches = Switches(containers=False)
    _, todo = scene.plan()
    (host,) = replacements(todo)
    assert host.key.is_host
    assert reasons(todo) == {Reason.DISABLED}


def test_a_failure_waits_and_then_tries_again() -> None:
    scene, source, _ = usual()
    scene.crash_and_restart(source)
    scene.look()
    key = TargetKey(0, publish_path())
    waiting = TargetState(Phase.COOLDOWN, 1, retry_at=scene.now + 10)
    scene.ledger = replace(scene.ledger, states={key: waiting})
    _, todo = scene.plan()
    # The container is cloned from there: it waits along.
    assert reasons(todo) == {Reason.BACK_OFF, Reason.HOST_BIND_STALE}
    assert todo.actions == ()
    scene.now += 20
    assert key in [a.key for a in replacements(scene.plan()[1])]


@pytest.mark.parametrize(("undone", "is_refused"), [(0, False), (1, True)])
def test_a_wait_is_over_once_all_is_well_unless_somebody_undoes_it(
    undone: int, is_refused: bool
) -> None:
    """An attempt that found its work done is no reason to let the next crash wait."""
    scene, source, _ = usual()
    key = TargetKey(0, publish_path())
    waiting = TargetState(Phase.COOLDOWN, retry_at=scene.now + 10, undone=undone)
    scene.look()
    scene.ledger = replace(scene.ledger, states={key: waiting})
    findings, todo = scene.plan()
    scene.ledger, _ = take_plan(scene.ledger, findings, todo, (), scene.now)
    assert scene.ledger.state(key).phase is Phase.HEALTHY
    scene.crash_and_restart(source)
    _, todo = scene.plan()
    assert (Reason.BACK_OFF in reasons(todo)) is is_refused


def test_what_is_under_way_is_not_planned_twice() -> None:
    scene, source, _ = usual()
    scene.crash_and_restart(source)
    key = TargetKey(0, publish_path())
    scene.ledger = replace(
        scene.ledger, states={key: TargetState(Phase.RECOVERING, is_in_flight=True)}
    )
    assert key not in [a.key for a in replacements(scene.plan()[1])]


def test_an_own_layer_goes_when_what_it_covered_is_gone() -> None:
    scene, _, bind = usual()
    key = TargetKey(0, publish_path())
    scene.ledger = replace(scene.ledger, own_layers={key: (OwnLayer.of(bind),)})
    (action,) = scene.plan()[1].actions
    assert isinstance(action, DetachOwnLayer)
    assert action.expect.unique_id == bind.unique_id


# ------------------------------------------------------------------- what mounts cover


def covered_scene(answer: Answer | None) -> tuple[Scene, TargetKey]:
    """A stale bind on top of another mount, and its source mounted anew."""
    scene, source, bind = usual()
    scene.namespaces.clear()
    scene.mounts[1] = replace(bind, device=THIRD)
    scene.mount(publish_path(), OLD, parent=bind.mount_id)
    scene.look()
    scene.crash_and_restart(source)
    scene.answers[THIRD] = answer
    return scene, TargetKey(0, publish_path())


def test_a_replacement_waits_for_what_the_stale_mount_covers() -> None:
    """Not knowing that it is dead too would leave it there."""
    scene, key = covered_scene(None)
    scene.first_asked_at[THIRD] = scene.now + 1
    _, todo = scene.plan()
    assert (todo.actions, reasons(todo)) == ((), {Reason.LAYERS_UNPROVEN})
    scene.answers[THIRD] = Answer.DISCONNECTED
    (action,) = replacements(scene.plan()[1])
    assert (action.key, action.stale_devices) == (key, (OLD, THIRD))


def test_a_replacement_does_not_wait_for_ever() -> None:
    scene, key = covered_scene(None)
    scene.first_asked_at[THIRD] = scene.now
    scene.now += LAYERS_SECONDS
    assert [a.key for a in replacements(scene.plan()[1])] == [key]


def test_a_living_mount_below_is_known_and_not_waited_for() -> None:
    scene, _ = covered_scene(Answer.ANSWERED)
    (action,) = replacements(scene.plan()[1])
    assert action.stale_devices == (OLD,)


def test_a_writable_layer_does_not_wait_for_an_old_server_of_the_host() -> None:
    """The host may keep it as long as it lives: so may the container, read-only."""
    scene = Scene()
    source = scene.mount(SOURCE)
    bind = scene.mount(publish_path(), peer_group=6)
    scene.container(scene.inside(options="ro,relatime"))
    scene.look()
    scene.unmount(source)
    scene.mount(SOURCE, NEW)
    inside = scene.namespaces[0].mounts[0]
    layer = scene.inside(parent=inside.mount_id)
    scene.namespaces[0] = replace(scene.namespaces[0], mounts=(inside, layer))
    findings, todo = scene.plan()
    assert [f.verdict for f in findings] == [Verdict.SUPERSEDED, Verdict.STALE]
    (action,) = replacements(todo)
    assert (action.expect.mount_id, action.read_only) == (layer.mount_id, True)
    assert (action.origin.mount_point, action.origin.device) == (bind.mount_point, OLD)
    # With its bind it is replaced by what that shows then.
    scene.policy = Policy(superseded=SupersededPolicy.REBIND)
    host, action = replacements(scene.plan()[1])
    assert host.origin.device == action.origin.device == NEW


def test_what_the_hosts_bind_covers_proves_whose_copy_a_container_has() -> None:
    """A repair that was cut short leaves it there, where nothing else is known."""
    scene = Scene()
    scene.mount(SOURCE, NEW)
    below = scene.mount(publish_path(), OLD, peer_group=0)
    scene.mount(publish_path(), NEW, parent=below.mount_id)
    scene.container(scene.inside("/data", OLD))
    scene.answers[OLD] = Answer.DISCONNECTED
    (action,) = replacements(scene.plan()[1])
    assert action.key == TargetKey(NAMESPACE, "/data")
    scene.unmount(below)
    scene.ledger = Ledger()
    assert replacements(scene.plan()[1]) == []
    (unproven,) = scene.look().unproven
    assert (unproven.pod_uid, unproven.key) == (UID, TargetKey(NAMESPACE, "/data"))


def test_what_the_hosts_bind_covered_is_remembered_when_it_is_gone() -> None:
    """An umount on the host takes what is on top in the container along, and shows this again."""
    scene = Scene()
    source = scene.mount(SOURCE, THIRD)
    below = scene.mount(publish_path(), OLD)
    top = scene.mount(publish_path(), THIRD, parent=below.mount_id)
    covered = scene.inside("/data", OLD)
    scene.container(covered, scene.inside("/data", THIRD, parent=covered.mount_id))
    scene.answers[OLD] = Answer.DISCONNECTED
    scene.look()
    scene.crash_and_restart(source)
    for mount in (below, top):
        scene.unmount(mount)
    scene.mount(publish_path(), NEW)
    scene.namespaces[0] = replace(scene.namespaces[0], mounts=(covered,))
    (action,) = replacements(scene.plan()[1])
    assert (action.key, action.expect.device) == (TargetKey(NAMESPACE, "/data"), OLD)
    assert scene.look().unproven == ()


def test_what_a_bind_shows_outweighs_what_another_one_covers() -> None:
    """Two volumes of one pod with one source, of which one was given another server's layer."""
    scene = Scene()
    scene.mount(SOURCE)
    scene.mount(publish_path(), OLD)
    below = scene.mount(publish_path(volume="second"), OLD, peer_group=0)
    scene.mount(publish_path(volume="second"), THIRD, parent=below.mount_id)
    for shown in (OLD, NEW):
        scene.mounts[1] = replace(scene.mounts[1], device=shown)
        scene.look()
        assert scene.ledger.former[(UID, OLD, "/")].key == TargetKey(0, publish_path())


def test_what_is_in_a_pod_without_volumes_claims_nothing() -> None:
    """A node agent sees every file system of the node."""
    scene, source, _ = usual()
    scene.container(scene.inside("/host/source"), uid=OTHER_UID)
    scene.unmount(source)
    scene.answers[OLD] = Answer.DISCONNECTED
    diagnosis = scene.look()
    assert (diagnosis.foreign_stale, diagnosis.unproven) == (1, ())


def test_a_copy_is_remembered_as_one_although_its_bind_was_replaced_at_once() -> None:
    scene, source, _ = usual()
    scene.namespaces.clear()
    scene.look()
    scene.crash_and_restart(source)
    scene.mounts[0] = replace(scene.mounts[0], device=NEW)
    # It was started from the stale bind, and is seen when that is replaced already.
    scene.container(scene.inside("/data", OLD))
    scene.look()
    facts = scene.ledger.containers[TargetKey(NAMESPACE, "/data")]
    assert (facts.origin, facts.device) == (publish_path(), OLD)


def test_a_bind_that_is_published_again_after_a_while_has_its_copies() -> None:
    scene, source, bind = usual()
    scene.crash_and_restart(source)
    scene.unmount(bind)
    scene.ledger = Ledger(containers=scene.ledger.containers)
    (finding,) = scene.look().findings
    assert (finding.verdict, finding.refusal) == (Verdict.STALE, Reason.UNMOUNTED_ON_HOST)
    assert finding.bind.source.candidates[0].mount_point == SOURCE
    scene.mount(publish_path(), NEW)
    (action,) = replacements(scene.plan()[1])
    assert action.key == TargetKey(NAMESPACE, "/data")
    # It is true of that very mount only.
    scene.mounts.pop()
    scene.look()
    (inside,) = scene.namespaces[0].mounts
    scene.namespaces[0] = replace(scene.namespaces[0], mounts=(replace(inside, mount_id=7),))
    scene.look()
    assert scene.ledger.containers == {}


# ---------------------------------------------------------------------------- sources


def test_a_reused_device_number_has_no_past() -> None:
    scene, source, bind = usual()
    scene.unmount(source)
    scene.unmount(bind)
    scene.namespaces.clear()
    scene.look()
    scene.mount(publish_path(OTHER_UID, "other"), OLD)
    scene.answers[OLD] = Answer.DISCONNECTED
    scene.mount(SOURCE, NEW)
    _, todo = scene.plan()
    assert todo.actions == ()
    assert reasons(todo) == {Reason.NO_SOURCE}


def fluid_scene(*datasets: tuple[str, str], volume: str = "a-b-c") -> Scene:
    scene = Scene()
    for number, (namespace, dataset) in enumerate(datasets):
        path = f"/runtime-mnt/juicefs/{namespace}/{dataset}/juicefs-fuse"
        scene.mount(path, Device(0, 80 + number))
    scene.mount(publish_path(volume=volume), OLD)
    scene.answers[OLD] = Answer.DISCONNECTED
    scene.volume_data = {(UID, volume): VolumeData("fuse.csi.fluid.io", "h")}
    return scene


def test_two_fluid_datasets_with_one_name_are_refused() -> None:
    _, todo = fluid_scene(("a-b", "c"), ("a", "b-c")).plan()
    assert todo.actions == ()
    assert reasons(todo) == {Reason.AMBIGUOUS_SOURCE}


@pytest.mark.parametrize(("namespace", "device"), [("a-b", Device(0, 80)), ("a", Device(0, 81))])
def test_the_pods_namespace_tells_two_fluid_datasets_apart(namespace: str, device: Device) -> None:
    scene = fluid_scene(("a-b", "c"), ("a", "b-c"))
    scene.pods = {UID: pod(namespace=namespace)}
    (action,) = replacements(scene.plan()[1])
    assert action.origin.device == device


def test_a_fluid_dataset_needs_no_lineage() -> None:
    (action,) = replacements(fluid_scene(("a", "b"), volume="a-b").plan()[1])
    assert action.origin.mount_point == "/runtime-mnt/juicefs/a/b/juicefs-fuse"


def test_the_only_fluid_dataset_there_may_be_another_teams() -> None:
    _, todo = fluid_scene(("a-b", "c")).plan()
    assert todo.actions == ()
    assert reasons(todo) == {Reason.AMBIGUOUS_SOURCE}


def test_another_teams_fluid_dataset_is_no_source() -> None:
    scene = fluid_scene(("a-b", "c"))
    scene.pods = {UID: pod(namespace="a")}
    _, todo = scene.plan()
    assert todo.actions == ()
    assert reasons(todo) == {Reason.SOURCE_MISSING}


def test_lineage_tells_two_fluid_datasets_apart_even_when_one_is_away() -> None:
    scene = Scene()
    away = scene.mount("/runtime-mnt/juicefs/a/b-c/juicefs-fuse")
    scene.mount("/runtime-mnt/juicefs/a-b/c/juicefs-fuse", NEW)
    scene.mount(publish_path(volume="a-b-c"))
    scene.look()
    scene.unmount(away)
    scene.answers[OLD] = Answer.DISCONNECTED
    _, todo = scene.plan()
    assert todo.actions == ()
    assert reasons(todo) == {Reason.SOURCE_MISSING}
    scene.mount(away.mount_point, THIRD)
    (action,) = replacements(scene.plan()[1])
    assert action.origin.device == THIRD


# ------------------------------------------------------------------------- containers


def test_foreign_namespaces_are_counted_and_not_entered() -> None:
    scene, source, _ = usual()
    scene.container(scene.inside("/host/mnt"), kind=NamespaceKind.FOREIGN)
    scene.crash_and_restart(source)
    diagnosis = scene.look()
    assert diagnosis.foreign_stale == 1
    assert all(f.bind.key.mount_point != "/host/mnt" for f in diagnosis.findings)


def test_another_pods_volume_in_a_container_is_not_ours() -> None:
    scene, source, _ = usual()
    scene.container(scene.inside("/data"), uid=OTHER_UID)
    scene.crash_and_restart(source)
    keys = [a.key for a in replacements(scene.plan()[1])]
    assert len(keys) == 2


def test_a_copy_of_the_kubelets_directory_is_not_ours() -> None:
    scene, source, _ = usual()
    scene.container(scene.inside(publish_path()))
    scene.crash_and_restart(source)
    assert len(replacements(scene.plan()[1])) == 2


def pair() -> tuple[Scene, Mount, Mount]:
    """A pod with two volumes of two sources, both in its container; seen while healthy."""
    scene = Scene()
    source = scene.mount(SOURCE)
    scene.mount("/mnt/other", THIRD)
    bind = scene.mount(publish_path(), peer_group=6)
    scene.mount(publish_path(volume="other"), THIRD, peer_group=7)
    scene.container(scene.inside(), scene.inside("/other", THIRD))
    scene.look()
    return scene, source, bind


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_mount_whose_bind_is_gone_is_no_copy_of_the_pods_other_volume(
    is_restarted: bool,
) -> None:
    scene, source, bind = pair()
    if is_restarted:  # what the state file keeps
        scene.ledger = Ledger(facts=scene.ledger.facts, containers=scene.ledger.containers)
    scene.unmount(bind)
    scene.crash_and_restart(source)
    findings, planned = scene.plan()
    left = {f.bind.key.mount_point: f for f in findings}
    assert set(left) == {publish_path(volume="other"), "/other", "/data"}
    assert not planned.actions
    assert left["/data"].bind.path.volume == "pv"
    assert left["/data"].refusal is Reason.UNMOUNTED_ON_HOST


def test_a_container_that_was_seen_before_a_restart_is_still_known_by_its_bind() -> None:
    scene, source, bind = pair()
    scene.unmount(bind)
    scene.crash_and_restart(source)
    scene.mount(publish_path(), NEW, peer_group=8)  # replaced; the containers were not
    scene.ledger = Ledger(facts=scene.ledger.facts, containers=scene.ledger.containers)
    (replacement,) = replacements(scene.plan()[1])
    assert replacement.key.mount_point == "/data"
    assert replacement.origin.mount_point == publish_path()


def test_a_dead_container_is_served_from_a_host_bind_that_is_superseded() -> None:
    scene, source, bind = usual()
    scene.unmount(bind)
    scene.crash_and_restart(source)
    scene.mount(publish_path(), NEW, peer_group=8)  # by the driver; the container waits
    scene.look()
    scene.unmount(scene.mounts[-2])
    scene.mount(SOURCE, THIRD)  # upgraded, the old server drains
    findings, planned = scene.plan()
    assert {f.verdict for f in findings} == {Verdict.SUPERSEDED, Verdict.STALE}
    (replacement,) = replacements(planned)
    assert replacement.key.mount_point == "/data"
    assert replacement.origin.device == NEW


def test_another_container_in_a_namespace_of_the_same_number_is_looked_at_anew() -> None:
    scene = Scene()
    scene.mount(SOURCE)
    scene.mount(publish_path(), peer_group=6)
    scene.container(scene.inside(options="ro,relatime"))
    scene.look()
    (first,) = scene.namespaces
    scene.namespaces = [replace(first, container_id="d" * 64, mounts=(scene.inside(),))]
    findings, planned = scene.plan()
    assert {f.verdict for f in findings} == {Verdict.HEALTHY}
    assert not planned.actions


def test_a_container_below_a_peer_of_the_host_gets_it_by_propagation() -> None:
    scene = Scene()
    base = scene.mount("/", Device(8, 1), fs_type="ext4", peer_group=77)
    scene.mount(SOURCE, parent=base.mount_id)
    scene.mount(publish_path(), parent=base.mount_id)
    root = scene.inside("/", Device(8, 1), fs_type="ext4", master=77)
    scene.container(root, scene.inside("/data", parent=root.mount_id))
    assert [f.bind.key.is_host for f in scene.look().findings] == [True]


def test_the_pod_that_serves_a_connection_keeps_it() -> None:
    scene, source, _ = usual()
    scene.servers = {OLD: (FuseServer(7, 1, (OLD,), "server", UID),)}
    scene.crash_and_restart(source)
    assert [a.key.is_host for a in replacements(scene.plan()[1])] == [True]


@pytest.mark.parametrize(
    ("mount", "propagation"),
    [
        ({}, Propagation.PRIVATE),
        ({"master": 6}, Propagation.SLAVE),
        ({"peer_group": 6}, Propagation.PEER),
        ({"peer_group": 99}, Propagation.OWN_GROUP),
    ],
)
def test_a_container_keeps_the_propagation_of_its_first_look(
    mount: dict[str, int], propagation: Propagation
) -> None:
    scene = Scene()
    source = scene.mount(SOURCE)
    scene.mount(publish_path(), peer_group=6)
    scene.container(scene.inside(**mount))
    scene.look()
    scene.crash_and_restart(source)
    assert replacements(scene.plan()[1])[1].propagation is propagation


def entry(path: str, volume: str = "v", **more: object) -> VolumeMount:
    defaults: dict[str, object] = {"container": "app", "read_only": False, "propagation": "None"}
    return VolumeMount(volume=volume, mount_path=path, **{**defaults, **more})  # type: ignore[arg-type]


def spec(*entries: VolumeMount, **kinds: str) -> dict[str, Pod]:
    volumes = tuple(Volume(name, kind) for name, kind in kinds.items())
    return {UID: replace(pod(), volumes=volumes, volume_mounts=entries)}


def test_a_file_system_that_no_bind_ever_showed_is_not_the_only_binds() -> None:
    """A hostPath of another FUSE file system, beside the pod's only volume."""
    scene, source, _ = usual()
    other = scene.mount("/mnt/other", THIRD)
    scene.container(scene.inside("/host", THIRD))
    scene.crash_and_restart(other, new=Device(0, 71))
    scene.crash_and_restart(source)
    assert {a.key.mount_point for a in replacements(scene.plan()[1])} == {publish_path(), "/data"}


def restarted_in_the_middle() -> Scene:
    """The bind on the host is live again, the container is not, and no memory is left."""
    scene, source, bind = usual()
    scene.crash_and_restart(source)
    scene.unmount(bind)
    scene.mount(bind.mount_point, NEW)
    scene.ledger = Ledger()
    return scene


ONE_CLAIM = {"v": "persistentVolumeClaim", "other": "hostPath"}


@pytest.mark.parametrize(
    ("pods", "is_ours"),
    [
        (None, False),
        (spec(entry("/data"), **ONE_CLAIM), True),
        (spec(entry("/data/"), **ONE_CLAIM), True),
        (spec(entry("/data", sub_path="x"), **ONE_CLAIM), False),
        (spec(entry("/elsewhere"), **ONE_CLAIM), False),
        (spec(entry("/data", "other"), **ONE_CLAIM), False),
        (spec(entry("/data"), entry("/data", "other", container="b"), **ONE_CLAIM), True),
        (spec(entry("/data"), entry("/data", "other"), **ONE_CLAIM), False),
        (spec(entry("/data", container="b"), **ONE_CLAIM), False),
        (spec(entry("/data"), v="persistentVolumeClaim", w="ephemeral"), False),
        (spec(entry("/data", "pv"), pv="csi", w="csi"), True),
        (spec(entry("/data", "w"), pv="csi", w="csi"), False),
        (spec(entry("/data"), v="persistentVolumeClaim", pv="csi"), False),
    ],
)
def test_without_memory_only_a_spec_that_leaves_no_choice_names_the_bind(
    pods: dict[str, Pod] | None, is_ours: bool
) -> None:
    scene = restarted_in_the_middle()
    scene.pods = pods
    assert [a.key.mount_point for a in replacements(scene.plan()[1])] == ["/data"] * is_ours


@pytest.mark.parametrize(
    ("change", "is_ours"),
    [
        ({}, True),
        ({"is_own": False}, False),
        ({"container_id": "d" * 64}, False),
        ({"container_id": ""}, False),
    ],
)
def test_the_spec_alone_repairs_only_in_a_listed_containers_own_namespace(
    change: dict[str, object], is_ours: bool
) -> None:
    scene = restarted_in_the_middle()
    scene.pods = spec(entry("/data"), **ONE_CLAIM)
    scene.namespaces[0] = replace(scene.namespaces[0], **change)  # type: ignore[arg-type]
    assert [a.key.mount_point for a in replacements(scene.plan()[1])] == ["/data"] * is_ours


@pytest.mark.parametrize("is_own", [True, False])
def test_a_mount_that_appears_dead_is_known_by_its_number_only_in_an_own_namespace(
    is_own: bool,
) -> None:
    """The number may be that of another file system by now."""
    scene, source, bind = usual()
    scene.crash_and_restart(source)
    scene.unmount(bind)
    scene.mount(bind.mount_point, NEW)
    scene.look()
    scene.container(scene.inside("/late", OLD))
    scene.namespaces[-1] = replace(scene.namespaces[-1], is_own=is_own)
    points = [a.key.mount_point for a in replacements(scene.plan()[1])]
    assert points == ["/data", *(["/late"] * is_own)]


@pytest.mark.parametrize("is_seen_alive", [True, False])
@pytest.mark.parametrize("is_restarted", [True, False])
def test_a_namespace_that_a_container_made_is_known_by_device_and_memory(
    is_seen_alive: bool, is_restarted: bool
) -> None:
    """As of a container engine in the container."""
    scene, source, bind = usual()
    inner = scene.inside("/inner")
    if is_seen_alive:
        scene.container(inner)
        scene.namespaces[-1] = replace(scene.namespaces[-1], is_own=False)
        scene.look()
    scene.crash_and_restart(source)
    if not is_seen_alive:
        scene.container(inner)
        scene.namespaces[-1] = replace(scene.namespaces[-1], is_own=False)
        # The bind on the host still shows the same.
    else:
        scene.unmount(bind)
        scene.mount(bind.mount_point, NEW)
    if is_restarted:
        scene.ledger = Ledger(facts=scene.ledger.facts, containers=scene.ledger.containers)
    assert "/inner" in {a.key.mount_point for a in replacements(scene.plan()[1])}


@pytest.mark.parametrize("listed_at", [0.0, 50.0])
def test_a_container_that_a_newer_list_lacks_is_nobodys(listed_at: float) -> None:
    scene, source, _ = usual()
    scene.pods = {UID: replace(pod(), containers={"d" * 64: "app"})}
    scene.listed_at = listed_at
    scene.look()
    scene.crash_and_restart(source)
    points = [a.key.mount_point for a in replacements(scene.plan()[1])]
    assert points == [publish_path(), *([] if listed_at else ["/data"])]


@pytest.mark.parametrize("change", ["nothing", "mount", "container", "root"])
def test_memory_names_the_bind_of_just_that_mount(change: str) -> None:
    scene, _, _ = usual()
    remembered = scene.ledger.containers
    scene = restarted_in_the_middle()
    scene.ledger = Ledger(containers=remembered)
    (namespace,) = scene.namespaces
    (mount,) = namespace.mounts
    if change == "mount":
        scene.namespaces[0] = replace(namespace, mounts=(replace(mount, mount_id=999),))
    elif change == "container":
        scene.namespaces[0] = replace(namespace, container_id="d" * 64)
    elif change == "root":
        scene.namespaces[0] = replace(namespace, mounts=(with_root(mount, "/sub"),))
    is_same = change == "nothing"
    assert [a.key.mount_point for a in replacements(scene.plan()[1])] == ["/data"] * is_same


def test_a_device_number_that_is_used_again_in_the_container_has_no_past() -> None:
    scene, source, bind = usual()
    scene.crash_and_restart(source)
    scene.unmount(bind)
    scene.mount(bind.mount_point, NEW)
    scene.namespaces.clear()
    scene.look()
    scene.mount("/mnt/other", OLD)
    scene.seen_at[OLD] = scene.now
    scene.container(scene.inside("/host", OLD))
    assert [f.bind.key.mount_point for f in scene.look().findings] == [publish_path()]


def test_a_container_that_is_born_from_a_stale_bind_is_known_by_it() -> None:
    scene, source, bind = usual()
    scene.crash_and_restart(source)
    scene.unmount(bind)
    scene.mount(bind.mount_point, NEW)
    scene.namespaces.clear()
    scene.look()
    scene.container(scene.inside("/late", OLD))
    assert [a.key.mount_point for a in replacements(scene.plan()[1])] == ["/late"]


def test_a_user_namespace_never_becomes_a_peer_of_the_host() -> None:
    scene = Scene()
    source = scene.mount(SOURCE)
    scene.mount(publish_path(), peer_group=6)
    scene.container(scene.inside(master=6))
    scene.namespaces[0] = replace(scene.namespaces[0], own_user_namespace=True)
    scene.pods = spec(entry("/data", propagation="Bidirectional"), **ONE_CLAIM)
    scene.look()
    scene.crash_and_restart(source)
    assert replacements(scene.plan()[1])[1].propagation is Propagation.SLAVE


def test_containers_that_have_a_path_in_common_do_not_lend_their_access() -> None:
    scene = Scene()
    source = scene.mount(SOURCE)
    scene.mount(publish_path(), peer_group=6)
    scene.container(scene.inside())
    reader = entry("/data", container="a", read_only=True, propagation="Bidirectional")
    scene.pods = spec(reader, entry("/data", container="b"), **ONE_CLAIM)
    scene.look()
    scene.crash_and_restart(source)
    action = replacements(scene.plan()[1])[1]
    assert (action.read_only, action.propagation) == (False, Propagation.PRIVATE)


def test_a_writable_layer_on_a_read_only_mount_is_a_finding_of_its_own() -> None:
    scene = Scene()
    scene.mount(SOURCE)
    scene.mount(publish_path(), peer_group=6)
    below = scene.inside(options="ro,relatime")
    scene.container(below)
    scene.look()
    layer = scene.inside(options="rw,relatime", parent=below.mount_id)
    namespace = scene.namespaces[0]
    scene.namespaces[0] = replace(namespace, mounts=(*namespace.mounts, layer))
    (action,) = replacements(scene.plan()[1])
    assert action.read_only
    assert not action.key.is_host


# ------------------------------------------------------------------------- properties

DEVICES = st.sampled_from([OLD, NEW, THIRD])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("crash"), DEVICES),
        st.tuples(st.just("hang"), DEVICES),
        st.tuples(st.just("source"), DEVICES),
        st.tuples(st.just("bind"), DEVICES),
        st.tuples(st.just("unbind"), DEVICES),
        st.tuples(st.just("unsource"), DEVICES),
        st.tuples(st.just("look"), DEVICES),
    ),
    max_size=14,
)


def take_step(scene: Scene, what: str, device: Device) -> None:
    here = [m for m in scene.mounts if m.device == device]
    if what == "crash":
        scene.answers[device] = Answer.DISCONNECTED
    elif what == "hang":
        scene.hung.add(device)
    elif what == "source":
        scene.mount(SOURCE, device)
    elif what == "bind":
        scene.mount(publish_path(), device)
    elif what == "look":
        scene.look()
    else:
        inside = what == "unbind"
        for mount in here:
            if (mount.mount_point != SOURCE) is inside:
                scene.unmount(mount)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_no_history_leads_to_an_action_that_is_not_safe(steps: list[tuple[str, Device]]) -> None:
    scene, _, _ = usual()
    for what, device in steps:
        take_step(scene, what, device)
    findings, todo = scene.plan()
    by_key = {f.bind.key: f for f in findings}
    present = {m.unique_id for m in scene.mounts}
    present |= {m.unique_id for ns in scene.namespaces for m in ns.mounts}
    assert len({a.key for a in todo.actions}) == len(todo.actions)
    for action in replacements(todo):
        assert by_key[action.key].verdict is Verdict.STALE
        assert action.expect.unique_id in present
        assert scene.answers[action.expect.device] is Answer.DISCONNECTED
        assert scene.answers[action.origin.device] is Answer.ANSWERED
        assert action.origin.device not in scene.hung
        assert action.origin.device not in action.stale_devices


def test_a_copy_of_another_volumes_bind_is_no_new_source() -> None:
    """It is mounted where the dead source was, alive, and older than nothing of its own volume."""
    scene, source, _ = usual()
    scene.mount("/mnt/other", THIRD)
    scene.mount(publish_path(OTHER_UID), THIRD)
    scene.look()
    scene.unmount(source)
    scene.answers[OLD] = Answer.DISCONNECTED
    scene.mount(SOURCE, THIRD)
    _, todo = scene.plan()
    assert (replacements(todo), reasons(todo)) == ([], {Reason.SOURCE_MISSING})
