"""Every kind of volume: what of it is put in order after a crash, and what is only told."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from fusewatchd.config.settings import CleanupSettings
from fusewatchd.model.actions import DetachOrphan
from fusewatchd.model.kubelet import plain_directory
from fusewatchd.model.ledger import Ledger
from fusewatchd.model.mounts import Device
from fusewatchd.model.pods import BindKind, Volume, VolumeData
from fusewatchd.model.servers import Answer
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.parse.kubelet_paths import staging_paths
from fusewatchd.plan.planner import Policy
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
    spec,
    subpath_path,
)

VOLUMES = f"{ROOT}/pods/{UID}/volumes"
FLEX = f"{VOLUMES}/lab~fuse/v"
LOCAL = f"{VOLUMES}/kubernetes.io~local-volume/pv"
EMPTY_DIR = f"{VOLUMES}/kubernetes.io~empty-dir/cache/mnt"
INLINE = publish_path(volume="v")
CLAIM = Volume("v", "persistentVolumeClaim", claim="c")
EPHEMERAL = Volume("v", "ephemeral")


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


DISK, OTHER_DISK = Device(8, 17), Device(8, 33)
STAGED = VolumeData("some.csi.driver", "h")
STAGING, _ = staging_paths(plain_directory(ROOT), STAGED, "pv")


UNKNOWN = VolumeData("", "")


def with_disk(path: str, data: VolumeData = UNKNOWN) -> Scene:
    """A volume on a disk, whose server has died; what it had mounted is detached."""
    scene = Scene(volume_data={(UID, "pv"): data})
    source = scene.mount(path, DISK, fs_type="fuseblk")
    scene.mount(publish_path(), DISK, fs_type="fuseblk")
    scene.look()
    scene.unmount(source)
    scene.answers[DISK] = Answer.DISCONNECTED
    assert reasons(scene.plan()[1]) == {Reason.BLOCK_DEVICE}
    return scene


def test_a_disks_file_system_is_not_replaced_by_another_disks() -> None:
    scene = with_disk(SOURCE)
    scene.mount(SOURCE, OTHER_DISK, fs_type="fuseblk")
    _, todo = scene.plan()
    assert todo.actions == ()
    assert reasons(todo) == {Reason.BLOCK_DEVICE}


def test_what_is_staged_for_a_volume_is_that_volume_on_whichever_disk() -> None:
    scene = with_disk(STAGING, STAGED)
    scene.mount(STAGING, OTHER_DISK, fs_type="fuseblk")
    (action,) = replacements(scene.plan()[1])
    assert (action.origin.mount_point, action.origin.device) == (STAGING, OTHER_DISK)


def test_the_same_disk_again_is_the_dead_file_system_again() -> None:
    scene = with_disk(STAGING, STAGED)
    scene.mount(STAGING, DISK, fs_type="fuseblk")
    _, todo = scene.plan()
    assert todo.actions == ()
    assert reasons(todo) == {Reason.BLOCK_DEVICE}


def test_what_a_driver_does_not_name_is_not_believed_because_it_is_the_drivers() -> None:
    """Where the driver names no place, the one that was seen says nothing of the disk there."""
    scene = with_disk(SOURCE, VolumeData("csi.cubefs.com", "h"))
    scene.mount(SOURCE, OTHER_DISK, fs_type="fuseblk")
    assert scene.plan()[1].actions == ()
