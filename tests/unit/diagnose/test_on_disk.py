"""Which mounts of containers show the directory below a volume of their pod."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusewatchd.diagnose import on_disk
from fusewatchd.model.findings import Bind, Finding, SourceAnswer
from fusewatchd.model.kubelet import plain_directory
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount, MountNamespace, NamespaceKind, TargetKey
from fusewatchd.model.servers import FuseServer
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Verdict
from fusewatchd.parse.kubelet_paths import parse_bind_path

KUBELET, UID, OTHER = "/var/lib/kubelet", "uid-a", "uid-b"
POD = f"{KUBELET}/pods/{UID}"
PUBLISH = f"{POD}/volumes/kubernetes.io~csi/pv/mount"
SUBPATH = f"{POD}/volume-subpaths/pv/app/0"
DISK, FUSE = Device(8, 1), Device(0, 50)


def mount(
    number: int, parent: int, point: str, device: Device = DISK, root: str = "/", fs: str = "ext4"
) -> Mount:
    return Mount(number, parent, device, root, point, "rw", 0, 0, fs, "s", "rw")


HOST = (mount(1, 0, "/"),)
VOLUME = mount(9, 1, PUBLISH, FUSE, fs="fuse.x")


def container(*shown: Mount, uid: str = UID, **keys: object) -> MountNamespace:
    mounts = (mount(100, 0, "/", Device(0, 30), fs="overlay"), *shown)
    ids = tuple(m.mount_id for m in shown if not m.is_fuse)
    kind = NamespaceKind.CONTAINER
    made = MountNamespace(4, 44, 1, kind, uid, "c" * 64, mounts, directories=ids)
    return replace(made, **keys)  # type: ignore[arg-type]


def found(
    namespace: MountNamespace,
    host: tuple[Mount, ...] = (*HOST, VOLUME),
    published: tuple[str, ...] = (),
    servers: tuple[FuseServer, ...] = (),
) -> list[tuple[str, str]]:
    snapshot = Snapshot(
        1.0,
        MountTable.of(host),
        plain_directory(KUBELET),
        namespaces=(namespace,),
        servers={FUSE: servers},
    )
    answer = SourceAnswer("lineage", "")
    findings = []
    for top in host:
        path = parse_bind_path(f"{KUBELET}/pods", top.mount_point)
        if path is not None and top.is_fuse:
            bind = Bind(TargetKey(0, top.mount_point), path, top, 1, "d", answer)
            findings.append(Finding(bind, Verdict.HEALTHY, ""))
    binds = on_disk.find(snapshot, findings, dict.fromkeys(published, answer))
    return [(b.key.mount_point, b.underneath.host_path) for b in binds if b.underneath]


def at_data(root: str, device: Device = DISK) -> Mount:
    return mount(101, 100, "/data", device, root)


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        (HOST, at_data(PUBLISH)),
        ((mount(1, 0, "/", root="/@"),), at_data(f"/@{PUBLISH}")),
        ((*HOST, mount(2, 1, KUBELET, Device(8, 2))), at_data(PUBLISH[len(KUBELET) :], Device(8, 2))),
        (
            (*HOST, mount(2, 1, KUBELET, Device(8, 2)), mount(3, 2, KUBELET, Device(8, 3), "/k")),
            at_data("/k" + PUBLISH[len(KUBELET) :], Device(8, 3)),
        ),
        (
            (*HOST, mount(2, 1, f"{KUBELET}/pods", Device(8, 2))),
            at_data(PUBLISH[len(KUBELET) + 5 :], Device(8, 2)),
        ),
        ((*HOST, mount(2, 1, POD, Device(8, 2), "/pod")), at_data("/pod" + PUBLISH[len(POD) :], Device(8, 2))),
        (HOST, at_data(f"{PUBLISH}//deleted")),
    ],
    ids=["plain", "subvolume", "disk", "two disks", "disk of pods", "disk of the pod", "removed"],
)  # fmt: skip
def test_the_directory_is_known_on_whatever_the_kubelet_stands(
    host: tuple[Mount, ...], shown: Mount
) -> None:
    volume = replace(VOLUME, parent_id=host[-1].mount_id)
    assert found(container(shown), (*host, volume)) == [("/data", PUBLISH)]
    # Of two layers there, and of none any more.
    above = replace(VOLUME, mount_id=10, parent_id=9, device=Device(0, 60))
    assert found(container(shown), (*host, volume, above)) == [("/data", PUBLISH)]
    assert found(container(shown), host, published=(PUBLISH,)) == [("/data", PUBLISH)]


def test_part_of_it_and_the_target_of_a_subpath() -> None:
    assert found(container(at_data(f"{PUBLISH}/a/b"))) == [("/data", f"{PUBLISH}/a/b")]
    target = mount(10, 1, SUBPATH, FUSE, "/sub", "fuse.x")
    assert found(container(at_data(SUBPATH)), (*HOST, VOLUME, target)) == [("/data", SUBPATH)]


@pytest.mark.parametrize(
    "namespace",
    [
        container(at_data(PUBLISH), mount(102, 101, "/data", FUSE, fs="fuse.x")),
        container(at_data(PUBLISH), mount(102, 99, "/data", FUSE, fs="fuse.x")),
        container(at_data(PUBLISH), uid=OTHER),
        container(at_data(PUBLISH, Device(8, 9))),
        container(at_data(f"{PUBLISH}s")),
        container(at_data(PUBLISH[len(KUBELET) :])),
        container(at_data(PUBLISH), is_own=False),
        container(at_data(PUBLISH), kind=NamespaceKind.FOREIGN),
    ],
    ids=[
        "arrived",
        "ours",
        "other pod",
        "other disk",
        "name",
        "other place",
        "made there",
        "foreign",
    ],
)
def test_what_is_none(namespace: MountNamespace) -> None:
    assert found(namespace) == []


def test_a_volume_that_was_never_fuse_is_none() -> None:
    assert found(container(at_data(PUBLISH)), HOST) == []
    bound = mount(9, 1, PUBLISH, DISK, "/srv/data")
    assert found(container(at_data("/srv/data")), (*HOST, bound)) == []
    assert found(container(at_data("/srv/data")), (*HOST, bound), published=(PUBLISH,)) == []


def test_an_empty_dir_in_which_a_file_system_is_mounted_is_none() -> None:
    point = f"{POD}/volumes/kubernetes.io~empty-dir/e"
    inside = mount(9, 1, point, FUSE, fs="fuse.x")
    assert found(container(at_data(point)), (*HOST, inside)) == []


def test_the_container_that_serves_it_is_left_alone() -> None:
    server = FuseServer(44, 1, (FUSE,), "", UID, "c" * 64)
    assert found(container(at_data(PUBLISH)), servers=(server,)) == []
