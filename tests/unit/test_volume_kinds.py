"""Every kind of volume: what of it is put in order after a crash, and what is only told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from fusewatchd.decision import (
    DetachOrphan,
    Outcome,
    OutcomeStatus,
    Propagation,
    ReplaceMount,
)
from fusewatchd.ledger import Ledger, TargetState
from fusewatchd.model import (
    Answer,
    BindKind,
    Device,
    FuseServer,
    Mount,
    NamespaceKind,
    Pod,
    Reason,
    Verdict,
    Volume,
    VolumeData,
    VolumeMount,
)
from fusewatchd.planner import Policy
from fusewatchd.settings import CleanupSettings
from tests.unit.scenes import (
    NEW,
    OLD,
    ROOT,
    SOURCE,
    THIRD,
    UID,
    Scene,
    pod,
    publish_path,
    reasons,
    replacements,
    subpath_path,
)

VOLUMES = f"{ROOT}/pods/{UID}/volumes"
FLEX = f"{VOLUMES}/lab~fuse/v"
LOCAL = f"{VOLUMES}/kubernetes.io~local-volume/pv"
EMPTY_DIR = f"{VOLUMES}/kubernetes.io~empty-dir/cache/mnt"
INLINE = publish_path(volume="v")
HOST_PATH = Volume("v", "hostPath", path=SOURCE)
CLAIM = Volume("v", "persistentVolumeClaim", claim="c")
EPHEMERAL = Volume("v", "ephemeral")


def spec(volume: Volume, *mounts: VolumeMount, **more: str) -> dict[str, Pod]:
    entries = mounts or (VolumeMount("app", "v", "/data", read_only=False, propagation="None"),)
    return {UID: replace(pod(), volumes=(volume,), volume_mounts=entries)}


def entry(**keys: object) -> VolumeMount:
    made = VolumeMount("app", "v", "/data", read_only=False, propagation="None")
    return replace(made, **keys)  # type: ignore[arg-type]


# ------------------------------------------------------------- what recovers on the host


@pytest.mark.parametrize(
    ("kind", "points"),
    [
        (BindKind.PUBLISH, [publish_path()]),
        (BindKind.SUBPATH, [publish_path(), subpath_path()]),
        (BindKind.FLEXVOLUME, [FLEX]),
        (BindKind.LOCAL, [LOCAL]),
        (BindKind.PUBLISH, [INLINE]),
        (BindKind.SUBPATH, [LOCAL, subpath_path()]),
        (BindKind.SUBPATH, [FLEX, subpath_path(volume="v")]),
        (BindKind.SUBPATH, [subpath_path(volume="v")]),  # of a hostPath: nothing else is bound
    ],
    ids=[
        "csi", "csi-subpath", "flexvolume", "local", "csi-inline", "local-subpath",
        "flexvolume-subpath", "hostpath-subpath",
    ],
)  # fmt: skip
def test_binds_of_the_kubelet_and_of_drivers(kind: BindKind, points: list[str]) -> None:
    scene = Scene()
    source = scene.mount(SOURCE)
    for point in points:
        scene.mount(point, root="/sub/dir" if "volume-subpaths" in point else "/")
    (last,) = [f.bind for f in scene.look().findings if f.bind.key.mount_point == points[-1]]
    assert last.path.kind is kind
    scene.crash_and_restart(source)
    actions = replacements(scene.plan()[1])
    assert [action.key.mount_point for action in actions] == points
    assert {action.origin.device for action in actions} == {NEW}
    subpaths = ["sub/dir" if "volume-subpaths" in point else "" for point in points]
    assert [action.subpath for action in actions] == subpaths


@pytest.mark.parametrize(
    ("volume", "point"),
    [
        (CLAIM, publish_path()),
        (EPHEMERAL, publish_path()),
        (CLAIM, LOCAL),
        (Volume("v", "csi", driver="x"), INLINE),
        (Volume("v", "flexVolume", driver="lab/fuse"), FLEX),
    ],
    ids=["claim", "generic-ephemeral", "local", "csi-inline", "flexvolume"],
)
def test_a_container_is_known_by_its_pods_spec_after_a_restart(volume: Volume, point: str) -> None:
    scene = Scene(pods=spec(volume))
    source = scene.mount(SOURCE)
    scene.mount(point)
    scene.look()
    # Of the daemon; the container shows what its bind on the host showed some time before.
    scene.crash_and_restart(source)
    scene.mount(point, NEW)
    scene.mounts = [m for m in scene.mounts if (m.mount_point, m.device) != (point, OLD)]
    scene.ledger = Ledger()
    scene.container(scene.inside())
    (action,) = replacements(scene.plan()[1])
    assert (action.key.mount_point, action.origin.mount_point) == ("/data", point)


@pytest.mark.parametrize("is_published", [True, False])
def test_fuse_in_an_emptydir_is_not_taken_for_the_pods_claim(is_published: bool) -> None:
    """After a restart of the daemon, when only the spec says whose a container's mount is."""
    scene = Scene(pods=spec(CLAIM))
    assert scene.pods
    volumes = (CLAIM, Volume("cache", "emptyDir"))
    scene.pods = {UID: replace(scene.pods[UID], volumes=volumes)}
    scene.mount(SOURCE, NEW)
    scene.mount(EMPTY_DIR, THIRD)
    if is_published:
        scene.mount(publish_path(), NEW)
    scene.container(scene.inside())
    scene.answers[OLD] = Answer.DISCONNECTED
    actions = replacements(scene.plan()[1])
    assert [a.origin.mount_point for a in actions] == [publish_path()] * is_published


@pytest.mark.parametrize(
    ("point", "driver"), [(FLEX, "lab/fuse"), (LOCAL, "demofs"), (EMPTY_DIR, "demofs")]
)
def test_the_driver_of_what_has_no_csi_driver(point: str, driver: str) -> None:
    scene = Scene(volume_data={(UID, "pv"): VolumeData("of.another.volume", "h")})
    scene.mount(point)
    assert [f.bind.driver for f in scene.look().findings] == [driver]


# ------------------------------------------------------------------- what is only told


@dataclass(frozen=True)
class Told:
    point: str
    driver: str
    reason: Reason
    fs_type: str = "fuse"
    device: Device = OLD


@pytest.mark.parametrize(
    "told",
    [
        Told(publish_path(), "gcsfuse.csi.storage.gke.io", Reason.DIRECT_MOUNT),
        Told(publish_path(), "s3.csi.aws.com", Reason.DIRECT_MOUNT),
        Told(EMPTY_DIR, "", Reason.DIRECT_MOUNT),
        Told(publish_path(), "some.csi.driver", Reason.NO_SOURCE),
        Told(publish_path(), "some.csi.driver", Reason.BLOCK_DEVICE, "fuseblk", Device(8, 17)),
    ],
    ids=["gcsfuse", "mount-s3", "emptydir", "unknown", "fuseblk"],
)
def test_a_dead_mount_without_a_source_is_named_with_its_reason(told: Told) -> None:
    scene = Scene()
    if told.driver:
        scene.volume_data = {(UID, "pv"): VolumeData(told.driver, "h")}
    scene.mount(told.point, told.device, fs_type=told.fs_type)
    (healthy,) = scene.look().findings
    assert healthy.verdict is Verdict.HEALTHY
    scene.answers[told.device] = Answer.DISCONNECTED
    (finding,), todo = scene.plan()
    assert (finding.verdict, finding.refusal) == (Verdict.STALE, told.reason)
    assert finding.bind.driver == (told.driver or "fuse")
    assert todo.actions == ()
    assert reasons(todo) == {told.reason}


def test_fuse_in_an_emptydir_is_never_bound_from_elsewhere() -> None:
    """Even where the same file system was mounted outside the pods directory, too."""
    scene = Scene()
    outside = scene.mount(SOURCE)
    scene.mount(EMPTY_DIR)
    scene.look()
    scene.crash_and_restart(outside)
    _, todo = scene.plan()
    assert todo.actions == ()
    assert reasons(todo) == {Reason.DIRECT_MOUNT}


def test_fuse_in_an_emptydir_is_taken_away_with_its_pod() -> None:
    scene = Scene(policy=Policy(cleanup=CleanupSettings(detach_orphans=True, grace_seconds=60.0)))
    layer = scene.mount(EMPTY_DIR)
    scene.pods, scene.pods_are_current, scene.pods_asked_at = {}, True, scene.now
    scene.answers[OLD] = Answer.DISCONNECTED
    _, todo = scene.plan()
    assert reasons(todo) == {Reason.GRACE}
    scene.now += 61
    scene.pods_asked_at = scene.now
    (action,) = scene.plan()[1].actions
    assert isinstance(action, DetachOrphan)
    assert action.expect.unique_id == layer.unique_id


@pytest.mark.parametrize(("point", "is_bare"), [(EMPTY_DIR, False), (LOCAL, True), (FLEX, True)])
def test_what_a_pod_unmounts_itself_is_not_missed(point: str, is_bare: bool) -> None:
    scene = Scene(pods={UID: pod()}, pods_are_current=True)
    mounted = scene.mount(point)
    scene.look()
    scene.unmount(mounted)
    assert [f.verdict for f in scene.look().findings] == [Verdict.BARE] * is_bare


def test_a_container_follows_what_its_pod_mounted_in_the_emptydir_again() -> None:
    """A private copy, which propagation does not reach, of what the pod's own sidecar serves."""
    scene = Scene()
    dead = scene.mount(EMPTY_DIR)
    scene.container(scene.inside("/cache/mnt"))
    scene.look()
    scene.answers[OLD] = Answer.DISCONNECTED
    scene.mount(EMPTY_DIR, NEW, parent=dead.mount_id)
    (action,) = replacements(scene.plan()[1])
    assert (action.key.mount_point, action.origin.mount_point) == ("/cache/mnt", EMPTY_DIR)
    assert action.origin.device == NEW


def test_a_disks_file_system_is_not_replaced_by_another_disks() -> None:
    disk, other = Device(8, 17), Device(8, 33)
    scene = Scene()
    source = scene.mount(SOURCE, disk, fs_type="fuseblk")
    scene.mount(publish_path(), disk, fs_type="fuseblk")
    scene.look()
    scene.unmount(source)
    scene.answers[disk] = Answer.DISCONNECTED
    scene.mount(SOURCE, other, fs_type="fuseblk")
    _, todo = scene.plan()
    assert todo.actions == ()
    assert reasons(todo) == {Reason.BLOCK_DEVICE}


# --------------------------------------------------------------------------- hostPath


def host_path(path: str = SOURCE, root: str = "/", **keys: object) -> tuple[Scene, Mount]:
    """A container with a hostPath of a FUSE file system at /data, seen healthy and not."""
    scene = Scene(pods=spec(Volume("v", "hostPath", path=path), entry(**keys)))
    scene.mount("/", THIRD, fs_type="ext4", parent=0)
    scene.mounts[0] = replace(scene.mounts[0], mount_id=1, parent_id=1)
    source = scene.mount(SOURCE)
    scene.container(scene.inside(root=root, master=source.peer_group))
    return scene, source


def planned(scene: Scene, source: Mount) -> tuple[list[ReplaceMount], set[Reason]]:
    scene.look()
    scene.crash_and_restart(source)
    _, todo = scene.plan()
    return replacements(todo), reasons(todo)


def test_a_container_with_a_hostpath_is_served_from_the_path() -> None:
    scene, source = host_path(propagation="HostToContainer", read_only=True)
    (finding,) = scene.look().findings
    assert (finding.verdict, finding.bind.source.rule) == (Verdict.HEALTHY, "host-path")
    assert (finding.bind.path.kind, finding.bind.path.volume) == (BindKind.CONTAINER, "v")
    ((action,), refused) = planned(scene, source)
    assert refused == set()
    assert (action.key.mount_point, action.origin.mount_point) == ("/data", SOURCE)
    assert (action.origin.device, action.subpath) == (NEW, "")
    assert (action.propagation, action.read_only) == (Propagation.SLAVE, True)


@pytest.mark.parametrize(
    "path", [f"{SOURCE}/models/a", f"{SOURCE}/models/a/", f"{SOURCE}//models/a"]
)
def test_a_hostpath_inside_a_file_system_shows_that_part_again(path: str) -> None:
    scene, source = host_path(path, "/models/a")
    ((action,), _) = planned(scene, source)
    assert (action.origin.mount_point, action.subpath) == (SOURCE, "models/a")


def test_a_hostpath_waits_for_its_path() -> None:
    scene, source = host_path()
    scene.look()
    scene.unmount(source)
    scene.answers[OLD] = Answer.DISCONNECTED
    (finding,), todo = scene.plan()
    assert (finding.verdict, finding.bind.source.why) == (
        Verdict.STALE,
        f"the pod's hostPath {SOURCE}",
    )
    assert (todo.actions, reasons(todo)) == ((), {Reason.SOURCE_MISSING})


def is_only_served(scene: Scene) -> None:
    scene.servers = {OLD: (FuseServer(1, 1, (OLD,), pod_uid=UID),)}


def is_a_foreign_namespace(scene: Scene) -> None:
    scene.namespaces = [replace(scene.namespaces[0], kind=NamespaceKind.FOREIGN)]


def has_no_pod_list(scene: Scene) -> None:
    scene.pods = None


def is_mounted_elsewhere(scene: Scene) -> None:
    """As a node agent that has the host's whole tree."""
    scene.pods = spec(Volume("v", "hostPath", path="/"), entry(mount_path="/host"))
    (namespace,) = scene.namespaces
    inside = replace(namespace.mounts[0], mount_point=f"/host{SOURCE}")
    scene.namespaces = [replace(namespace, mounts=(inside,))]


def has_another_volume_there_too(scene: Scene) -> None:
    assert scene.pods
    both = (entry(), entry(container="other", volume="w"))
    volumes = (HOST_PATH, Volume("w", "hostPath", path="/mnt/other"))
    scene.pods = {UID: replace(scene.pods[UID], volumes=volumes, volume_mounts=both)}


def is_bidirectional(scene: Scene) -> None:
    scene.pods = spec(HOST_PATH, entry(propagation="Bidirectional"))


def has_a_subpath(scene: Scene) -> None:
    scene.pods = spec(HOST_PATH, entry(sub_path="a"))


def is_another_kind_of_volume(scene: Scene) -> None:
    scene.pods = spec(Volume("v", "nfs", path=SOURCE))


def has_a_mount_of_its_own_on_top(scene: Scene) -> None:
    (namespace,) = scene.namespaces
    volume = namespace.mounts[0]
    own = scene.inside(device=THIRD, parent=volume.mount_id)
    scene.answers[THIRD] = Answer.DISCONNECTED
    scene.namespaces = [replace(namespace, mounts=(volume, own))]


def leads_into_the_kubelets_directory(scene: Scene) -> None:
    scene.pods = spec(Volume("v", "hostPath", path=publish_path()))
    scene.mount(publish_path(uid="cccccccc-0000-4000-8000-000000000003"), THIRD)
    scene.mount(publish_path(), Device(0, 99))


@pytest.mark.parametrize(
    "spoil",
    [
        is_only_served, is_a_foreign_namespace, has_no_pod_list, is_mounted_elsewhere,
        has_another_volume_there_too, is_bidirectional, has_a_subpath, is_another_kind_of_volume,
        has_a_mount_of_its_own_on_top, leads_into_the_kubelets_directory,
    ],
)  # fmt: skip
def test_what_the_spec_does_not_say_clearly_is_nobodys(spoil: Callable[[Scene], None]) -> None:
    scene, source = host_path()
    spoil(scene)
    findings = [f for f in scene.look().findings if f.bind.key.namespace]
    assert findings == []
    actions, _ = planned(scene, source)
    assert [action for action in actions if action.namespace] == []


def test_a_layer_of_our_own_on_a_hostpath_is_replaced_again() -> None:
    """As older kernels need it: the dead mount stays below the one that was put on it."""
    scene, source = host_path()
    ((action,), _) = planned(scene, source)
    (namespace,) = scene.namespaces
    dead = namespace.mounts[0]
    ours = scene.inside(device=NEW, parent=dead.mount_id)
    done = Outcome(action, OutcomeStatus.RECOVERED, 1.0, 2.0, mount=ours)
    states = {action.key: TargetState(last_outcome=done)}
    scene.ledger = replace(scene.ledger, states=states)
    scene.namespaces = [replace(namespace, mounts=(dead, ours))]
    (new,) = (mount for mount in scene.mounts if mount.device == NEW)
    scene.crash_and_restart(new, new=Device(0, 80))
    (again,) = replacements(scene.plan()[1])
    assert (again.expect.device, again.origin.device) == (NEW, Device(0, 80))


def another_kind(scene: Scene, source: Mount) -> None:
    scene.mount(SOURCE, NEW, fs_type="fuse.other")


def another_root(scene: Scene, source: Mount) -> None:
    scene.mount(SOURCE, NEW, root="/elsewhere")


def an_ordinary_disk(scene: Scene, source: Mount) -> None:
    scene.mount(SOURCE, THIRD, fs_type="ext4")


def one_above_that_covers_it(scene: Scene, source: Mount) -> None:
    scene.mount(SOURCE, NEW, parent=777)
    scene.mount("/mnt", THIRD, fs_type="tmpfs")


@pytest.mark.parametrize(
    ("restart", "reason"),
    [
        (another_kind, Reason.SOURCE_TYPE),
        (another_root, Reason.SOURCE_TYPE),
        (an_ordinary_disk, Reason.SOURCE_MISSING),
        (one_above_that_covers_it, Reason.SOURCE_MISSING),
    ],
)
def test_a_path_that_leads_to_something_else_is_refused(
    restart: Callable[[Scene, Mount], None], reason: Reason
) -> None:
    scene, source = host_path()
    scene.look()
    scene.unmount(source)
    scene.answers[OLD] = Answer.DISCONNECTED
    restart(scene, source)
    _, todo = scene.plan()
    assert (todo.actions, reasons(todo)) == ((), {reason})


def test_ignored_file_systems_are_nobodys_hostpath_either() -> None:
    scene, _ = host_path()
    (namespace,) = scene.namespaces
    lxcfs = replace(namespace.mounts[0], fs_type="fuse.lxcfs")
    scene.namespaces = [replace(namespace, mounts=(lxcfs,))]
    assert [f for f in scene.look().findings if f.bind.key.namespace] == []
