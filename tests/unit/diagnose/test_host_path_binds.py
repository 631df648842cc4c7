"""Containers with a hostPath that leads to a FUSE file system of the node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fusewatchd.model.actions import OwnLayer, Propagation, ReplaceMount
from fusewatchd.model.ledger import Ledger
from fusewatchd.model.mounts import Device, Mount, NamespaceKind
from fusewatchd.model.pods import BindKind, Volume
from fusewatchd.model.servers import Answer, FuseServer
from fusewatchd.model.verdicts import Reason, Verdict
from tests.unit.scenes import (
    NEW,
    OLD,
    SOURCE,
    THIRD,
    UID,
    Scene,
    entry,
    publish_path,
    reasons,
    replacements,
    spec,
)


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
    "path",
    [f"/{SOURCE}/models/a", f"{SOURCE}/models/a", f"{SOURCE}/models/a/", f"{SOURCE}//models/a"],
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


HOST_PATH = Volume("v", "hostPath", path=SOURCE)


def is_only_served(scene: Scene) -> None:
    scene.servers = {OLD: (FuseServer(1, 1, (OLD,), pod_uid=UID),)}


def is_a_foreign_namespace(scene: Scene) -> None:
    scene.namespaces = [replace(scene.namespaces[0], kind=NamespaceKind.FOREIGN, container_id="")]


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
    scene.pods = {UID: replace(scene.pods[UID], volumes=volumes, volume_mounts=both, containers={})}


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


@pytest.mark.parametrize("is_seen_alive", [True, False])
@pytest.mark.parametrize("change", [{"is_own": False}, {"container_id": "d" * 64}])
def test_elsewhere_than_in_a_listed_containers_own_namespace_a_hostpath_is_known_by_its_device(
    change: dict[str, object], is_seen_alive: bool
) -> None:
    scene, source = host_path()
    scene.namespaces[0] = replace(scene.namespaces[0], **change)  # type: ignore[arg-type]
    if is_seen_alive:
        scene.look()
        scene.ledger = Ledger(containers=scene.ledger.containers)  # what the state file keeps
    scene.crash_and_restart(source)
    assert len(replacements(scene.plan()[1])) == is_seen_alive


def test_a_container_gets_its_own_hostpath_not_that_of_another_at_the_path() -> None:
    scene, source = host_path()
    assert scene.pods
    both = (entry(), entry(container="other", volume="w"))
    volumes = (HOST_PATH, Volume("w", "hostPath", path="/mnt/other"))
    scene.pods = {UID: replace(scene.pods[UID], volumes=volumes, volume_mounts=both)}
    scene.mount("/mnt/other", THIRD)
    ((action,), _) = planned(scene, source)
    assert action.origin.mount_point == SOURCE


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
    scene.ledger = replace(scene.ledger, own_layers={action.key: (OwnLayer.of(ours),)})
    scene.namespaces = [replace(namespace, mounts=(dead, ours))]
    (new,) = (mount for mount in scene.mounts if mount.device == NEW)
    scene.crash_and_restart(new, new=Device(0, 80))
    (again,) = replacements(scene.plan()[1])
    assert (again.expect.device, again.origin.device) == (NEW, Device(0, 80))


def another_kind(scene: Scene, source: Mount) -> None:
    scene.mount(SOURCE, NEW, fs_type="fuseblk")


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
        (another_root, Reason.SOURCE_ROOT),
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
