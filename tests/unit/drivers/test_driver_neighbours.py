"""Volumes whose names, paths or numbers are alike: what a driver must not take for its own."""

from __future__ import annotations

import hashlib

import pytest

from fusewatchd.config.settings import DriverSettings, TemplateSettings
from fusewatchd.diagnose.sources import locate, resolve
from fusewatchd.drivers import drivers_for
from fusewatchd.drivers.base import Driver
from fusewatchd.drivers.host_service import service_of
from fusewatchd.model.findings import SourceAnswer
from fusewatchd.model.kubelet import plain_directory
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount
from fusewatchd.model.pods import Pod, Volume, VolumeData
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason
from fusewatchd.parse.kubelet_paths import parse_bind_path

ROOT = "/var/lib/kubelet"
UID, OTHER_UID = (f"00000000-0000-4000-8000-00000000000{n}" for n in (1, 2))
OLD = Device(0, 50)
JUICEFS, CUBEFS, SEAWEEDFS = "csi.juicefs.com", "csi.cubefs.com", "seaweedfs-csi-driver"
VOLUMES = "/var/lib/juicefs/volume/"
STAGED = f"{ROOT}/plugins/kubernetes.io/csi"


def publish(volume: str, uid: str = UID) -> str:
    return f"{ROOT}/pods/{uid}/volumes/kubernetes.io~csi/{volume}/mount"


def mount(ident: int, point: str, *, device: Device | None = None, root: str = "/") -> Mount:
    return Mount(
        ident, 1, device or Device(0, 100 + ident), root, point, "rw", 0, 0, "fuse", "x", "rw", ident
    )  # fmt: skip


def answer(
    sources: list[str],
    data: VolumeData,
    *,
    point: str = "",
    others: dict[str, VolumeData] | None = None,
    staged: dict[str, VolumeData] | None = None,
    drivers: tuple[Driver, ...] = drivers_for(DriverSettings()),
) -> SourceAnswer:
    """Ask for a bind of volume ``pv`` beside these mounts and the volumes of other pods."""
    bind = mount(10, point or publish("pv"), device=OLD)
    table = MountTable.of([bind, *(mount(20 + n, path) for n, path in enumerate(sources))])
    volumes = {(UID, "pv"): data}
    volumes |= {(OTHER_UID, name): other for name, other in (others or {}).items()}
    seen = Snapshot(
        0.0, table, plain_directory(ROOT), volume_data=volumes, staging_data=staged or {}
    )
    path = parse_bind_path(f"{ROOT}/pods", bind.mount_point)
    assert path is not None
    return locate(path, bind, seen, {}, drivers)


def paths(found: SourceAnswer) -> list[str]:
    return [candidate.mount_point for candidate in found.candidates]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a-abcdef"], ["a-abcdef"]),
        (["a-abcdef", "a-ghijkl"], ["a-abcdef", "a-ghijkl"]),
        (["a-b-abcdef", "b-a-abcdef", "aa-abcdef"], []),
        (["a-abcde", "a-abcdefg", "a-ABCDEF", "a-abcde1", "a-"], []),
        (["a", "a-abcdef/sub", "sub/a-abcdef"], []),
        (["a-abcdef", "a-abcdef-ghijkl"], ["a-abcdef"]),
    ],
)
def test_mount_pods_of_juicefs(names: list[str], expected: list[str]) -> None:
    found = answer([VOLUMES + name for name in names], VolumeData(JUICEFS, "a"))
    assert (found.rule, paths(found)) == ("juicefs", [VOLUMES + name for name in expected])


def test_a_name_with_two_readings_is_neither_volumes() -> None:
    """``a-bcdefg``: of volume ``a`` by its mount pod, or of an older plugin's ``a-bcdefg``."""
    other = {"other": VolumeData(JUICEFS, "a-bcdefg")}
    sources = [VOLUMES + "a-bcdefg"]
    assert paths(answer(sources, VolumeData(JUICEFS, "a"), others=other)) == []
    elsewhere = {"other": VolumeData("another.csi", "a-bcdefg")}
    assert paths(answer(sources, VolumeData(JUICEFS, "a"), others=elsewhere)) == sources


@pytest.mark.parametrize("handle", ["", ".", "..", "a/b", "../volume/a"])
def test_a_handle_that_is_no_name_leads_nowhere(handle: str) -> None:
    sources = [VOLUMES + "a-abcdef", "/var/lib/jfs/a", "/var/lib/jfs"]
    assert paths(answer(sources, VolumeData(JUICEFS, handle))) == []


def staged_at(driver: str, handle: str) -> str:
    return f"{STAGED}/{driver}/{hashlib.sha256(handle.encode()).hexdigest()}/globalmount"


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ([staged_at(SEAWEEDFS, "h")], [staged_at(SEAWEEDFS, "h")]),
        ([staged_at(SEAWEEDFS, "h2"), staged_at("other-driver", "h")], []),
        ([staged_at(SEAWEEDFS, "h") + "/sub", staged_at(SEAWEEDFS, "h") + "2"], []),
        ([f"{STAGED}/pv/pv/globalmount"], []),
        ([f"/other{staged_at(SEAWEEDFS, 'h')}"], []),
    ],
)
def test_staging_paths_are_those_of_the_very_volume(
    sources: list[str], expected: list[str]
) -> None:
    found = answer(sources, VolumeData(SEAWEEDFS, "h"))
    assert (found.rule, paths(found)) == ("csi-staging", expected)


BY_NAME = f"{STAGED}/pv/pv/globalmount"


@pytest.mark.parametrize(
    ("staged", "expected"),
    [
        ({BY_NAME: VolumeData(CUBEFS, "h")}, [BY_NAME]),
        ({BY_NAME: VolumeData(CUBEFS, "h2")}, []),
        ({BY_NAME: VolumeData(SEAWEEDFS, "h")}, []),
        ({}, []),
    ],
)
def test_a_staging_path_that_is_a_name_needs_the_volume_beside_it(
    staged: dict[str, VolumeData], expected: list[str]
) -> None:
    assert paths(answer([BY_NAME], VolumeData(CUBEFS, "h"), staged=staged)) == expected


def test_a_volume_staged_in_both_places_is_ambiguous() -> None:
    both = [staged_at(CUBEFS, "h"), BY_NAME]
    data = VolumeData(CUBEFS, "h")
    assert paths(answer(both, data, staged={BY_NAME: data})) == both


@pytest.mark.parametrize("driver", ["pv", "..", "a/b", ""])
def test_a_driver_whose_name_is_no_name_stages_nothing(driver: str) -> None:
    digest = hashlib.sha256(b"h").hexdigest()
    sources = [f"{STAGED}/{driver}/{digest}/globalmount", f"{STAGED}/pv/{digest}/globalmount"]
    assert answer(sources, VolumeData(driver, "h")).rule == ""


def test_an_inline_volume_is_not_staged() -> None:
    found = answer([staged_at(SEAWEEDFS, "h")], VolumeData(SEAWEEDFS, "h", is_ephemeral=True))
    assert found.rule == ""


def test_the_names_of_other_kinds_of_volumes_are_no_datasets() -> None:
    """A FlexVolume or a local volume may be called as a Fluid dataset's PersistentVolume is."""
    dataset = "/runtime-mnt/thin/a/pv/thin-fuse"
    for kind in ("volumes/lab~fuse/a-pv", "volumes/kubernetes.io~local-volume/a-pv"):
        bind = mount(10, f"{ROOT}/pods/{UID}/{kind}", device=OLD)
        seen = Snapshot(0.0, MountTable.of([bind, mount(20, dataset)]), plain_directory(ROOT))
        path = parse_bind_path(f"{ROOT}/pods", bind.mount_point)
        assert path is not None
        assert locate(path, bind, seen, {}, drivers_for(DriverSettings())).rule == ""


def test_a_driver_with_both_ways_is_direct_only_where_no_source_is() -> None:
    s3 = VolumeData("s3.csi.aws.com", "h")
    assert answer([], s3).refusal is Reason.DIRECT_MOUNT
    v2 = answer([f"{ROOT}/plugins/s3.csi.aws.com/mnt/mp-abcde"], s3)
    assert (v2.rule, v2.refusal) == ("mountpoint-s3", Reason.NO_SOURCE)
    gcs = "gcsfuse.csi.storage.gke.io"
    assert answer([], VolumeData(gcs, "h")).refusal is Reason.DIRECT_MOUNT
    shared = answer([staged_at(gcs, "h")], VolumeData(gcs, "h"))
    assert paths(shared) == [staged_at(gcs, "h")]


@pytest.mark.parametrize(
    ("handle", "expected"),
    [
        ("pvc-1a", "geesefs-pvc_2d1a.service"),
        ("1a", "geesefs-_31a.service"),
        ("bucket/é_", "geesefs-bucket_2f_c3_a9_5f.service"),
        ("", "geesefs-_.service"),
    ],
)
def test_units_of_geesefs(handle: str, expected: str) -> None:
    assert service_of(VolumeData("ru.yandex.s3.csi", handle)) == expected


# -------------------------------------------------------------------------- templates


def by_template(data: VolumeData, sources: list[str], **keys: object) -> SourceAnswer:
    template = TemplateSettings(name="mine", **keys)  # type: ignore[arg-type]
    assert template.problem() == ""
    drivers = drivers_for(DriverSettings(templates=(template,)))
    return answer(sources, data, drivers=drivers)


def test_a_template_comes_before_what_is_built_in() -> None:
    data = VolumeData(SEAWEEDFS, "h")
    found = by_template(
        data,
        [staged_at(SEAWEEDFS, "h"), "/mnt/h"],
        csi_driver=SEAWEEDFS,
        source="/mnt/{volume_handle}",
    )
    assert (found.rule, paths(found)) == ("mine", ["/mnt/h"])


@pytest.mark.parametrize("handle", ["", "..", ".", "a/b", "/", "\0"])
def test_a_template_takes_only_single_names(handle: str) -> None:
    found = by_template(
        VolumeData("acme", handle), ["/mnt/a"], csi_driver="acme", source="/mnt/x/{volume_handle}"
    )
    assert (found.rule, paths(found)) == ("mine", [])


def test_a_template_waits_for_what_is_not_known() -> None:
    found = by_template(
        VolumeData("acme", "h"),
        ["/mnt/shop/pv"],
        csi_driver="acme",
        source="/mnt/{namespace}/{volume}",
    )
    assert (found.rule, paths(found), found.why) == ("mine", [], "{namespace} is not known")


def test_a_template_is_for_its_own_driver_alone() -> None:
    found = by_template(
        VolumeData("acme2", "h"), ["/mnt/h"], csi_driver="acme", source="/mnt/{volume_handle}"
    )
    assert found.rule == ""


def test_every_field_of_a_template() -> None:
    digest = hashlib.sha256(b"h").hexdigest()
    found = by_template(
        VolumeData("acme", "h"), [], csi_driver="acme",
        source="{kubelet_root}/x/{pod_uid}/v-{volume}.d/{volume_handle}/{volume_handle_sha256}",
    )  # fmt: skip
    assert paths(found) == [f"{ROOT}/x/{UID}/v-pv.d/h/{digest}"]


def test_a_template_names_what_is_not_there_and_nothing_else_is_taken() -> None:
    found = by_template(
        VolumeData("acme", "h"),
        ["/mnt/hh", "/mnt"],
        csi_driver="acme",
        source="/mnt/{volume_handle}",
    )
    bind = mount(10, publish("pv"), device=OLD)
    table = MountTable.of([bind, mount(20, "/mnt/hh"), mount(21, "/mnt")])
    assert (
        resolve(found, bind, Snapshot(0.0, table, plain_directory(ROOT))).refusal
        is Reason.SOURCE_MISSING
    )


# --------------------------------------------------- a hostPath with the PersistentVolume's name

SUBPATH = f"{ROOT}/pods/{UID}/volume-subpaths/pv/app/0"


@pytest.mark.parametrize(
    ("published", "kinds", "is_its"),
    [
        (OLD, None, True),
        (OLD, ("hostPath",), True),  # it shows what the CSI volume does
        (Device(0, 77), ("persistentVolumeClaim",), True),
        (Device(0, 77), (), True),
        (Device(0, 77), ("hostPath",), False),
        (Device(0, 77), ("persistentVolumeClaim", "hostPath"), False),
        (Device(0, 77), ("csi",), False),
        (Device(0, 77), None, False),
        (None, None, False),
    ],
)
@pytest.mark.parametrize("driver", [JUICEFS, SEAWEEDFS, "acme"])
def test_a_subpath_of_another_volume_of_this_name_is_not_the_csi_volumes(
    driver: str, published: Device | None, kinds: tuple[str, ...] | None, is_its: bool
) -> None:
    template = TemplateSettings("acme", "acme", source="/acme/{volume_handle}")
    mounts = [mount(10, SUBPATH, device=OLD), mount(20, VOLUMES + "h-abcdef")]
    mounts += [mount(21, staged_at(SEAWEEDFS, "h")), mount(22, "/acme/h")]
    if published:
        mounts.append(mount(11, publish("pv"), device=published))
    volumes = tuple(Volume("pv", kind) for kind in kinds or ())
    pod = Pod(UID, UID, "shop", "p", "Running", is_deleting=False, volumes=volumes)
    seen = Snapshot(
        0.0, MountTable.of(mounts), plain_directory(ROOT), pods=None if kinds is None else {UID: pod},
        volume_data={(UID, "pv"): VolumeData(driver, "h")},
    )  # fmt: skip
    path = parse_bind_path(f"{ROOT}/pods", SUBPATH)
    assert path is not None
    drivers = drivers_for(DriverSettings(templates=(template,)))
    assert bool(locate(path, mounts[0], seen, {}, drivers).candidates) is is_its
