"""Whatever names volumes have, and whatever is mounted: a bind gets its own source or none.

A node is made of volumes of all drivers with names that are alike, some sources back and others
not, for a daemon that never saw it healthy.  Whose source is whose is known from how the node
was made, by the layouts in the drivers' own code and not by ours.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from fusewatchd.config.settings import settings_from
from fusewatchd.diagnose import sources
from fusewatchd.drivers import drivers_for
from fusewatchd.model.kubelet import plain_directory
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount
from fusewatchd.model.pods import Pod, VolumeData
from fusewatchd.model.servers import Answer, Connection
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.parse.kubelet_paths import parse_bind_path

ROOT = "/var/lib/kubelet"
PLUGINS = f"{ROOT}/plugins/kubernetes.io/csi"
DRIVERS = drivers_for(
    settings_from(
        {
            "drivers": {
                "templates": [
                    {"name": "acme", "csi_driver": "acme", "source": "/acme/{volume_handle}"},
                    {"name": "team", "csi_driver": "team", "source": "/t/{namespace}/v-{volume}"},
                    {"name": "old", "flexvolume": "x/old", "source": "/old/{pod_uid}/{volume}"},
                ]
            }
        },
        "test",
    ).drivers
)
NAMES = st.sampled_from(
    ["a", "b", "c", "a-b", "b-c", "a-b-c", "a-bcdefg", "a-bcdefg-hijklm", "v-a", "pv", "a.b"]
)
HANDLES = NAMES | st.sampled_from(["..", "a/b", "../a", "", "a/../b", "\udcff"])
SUFFIXES = st.sampled_from(["-bcdefg", "-hijklm", "-aaaaaa"])


@dataclass(frozen=True)
class Volume:
    """A volume as its driver has it on the node."""

    family: str
    namespace: str
    name: str
    """Of its PersistentVolume; two may have had the same one after the other."""
    handle: str
    suffix: str
    is_back: bool
    knows_namespace: bool
    is_ephemeral: bool

    @property
    def pv(self) -> str:
        return f"{self.namespace}-{self.name}" if self.family.startswith("fluid") else self.name

    @property
    def driver(self) -> str:
        return {
            "fluid-thin": "fuse.csi.fluid.io",
            "fluid-juicefs": "fuse.csi.fluid.io",
            "juicefs": "csi.juicefs.com",
            "juicefs-old": "csi.juicefs.com",
            "juicefs-process": "csi.juicefs.com",
            "ossfs": "ossplugin.csi.alibabacloud.com",
            "staging": "seaweedfs-csi-driver",
            "staging-by-name": "csi.cubefs.com",
            "s3": "s3.csi.aws.com",
        }.get(self.family, self.family)

    @property
    def source(self) -> str:
        digest = hashlib.sha256(self.handle.encode("utf-8", "surrogateescape")).hexdigest()
        return {
            "fluid-thin": f"/runtime-mnt/thin/{self.namespace}/{self.name}/thin-fuse",
            "fluid-juicefs": f"/runtime-mnt/juicefs/{self.namespace}/{self.name}/juicefs-fuse",
            "juicefs": f"/var/lib/juicefs/volume/{self.handle}{self.suffix}",
            "juicefs-old": f"/var/lib/juicefs/volume/{self.handle}",
            "juicefs-process": f"/var/lib/jfs/{self.handle}",
            "ossfs": f"/run/fuse.ossfs/{digest}/globalmount",
            "staging": f"{PLUGINS}/{self.driver}/{digest}/globalmount",
            "staging-by-name": f"{PLUGINS}/pv/{self.pv}/globalmount",
            "s3": f"{ROOT}/plugins/s3.csi.aws.com/mnt/mp{self.suffix}",
            "acme": f"/acme/{self.handle}",
            "team": f"/t/{self.namespace}/v-{self.pv}",
            "unknown": f"/mnt/{self.handle}",
        }[self.family]

    @property
    def identity(self) -> tuple[str, ...]:
        """What two volumes never share: of Fluid, the dataset, which has one runtime."""
        if self.family.startswith("fluid"):
            return self.driver, self.namespace, self.name
        return self.driver, self.handle


FAMILIES = st.sampled_from(
    [
        "fluid-thin", "fluid-juicefs", "juicefs", "juicefs-old", "juicefs-process", "ossfs",
        "staging", "staging-by-name", "s3", "acme", "team", "unknown",
    ]
)  # fmt: skip
VOLUMES = st.lists(
    st.builds(
        Volume,
        family=FAMILIES,
        namespace=st.sampled_from(["a", "a-b", "b"]),
        name=NAMES,
        handle=HANDLES,
        suffix=SUFFIXES,
        is_back=st.booleans(),
        knows_namespace=st.booleans(),
        is_ephemeral=st.sampled_from([False, False, True]),
    ),
    max_size=8,
    unique_by=(lambda volume: volume.identity, lambda volume: volume.source),
)


def uid_of(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def old(number: int) -> Device:
    return Device(0, 100 + number)


def new(number: int) -> Device:
    return Device(0, 200 + number)


def mount(ident: int, device: Device, point: str) -> Mount:
    return Mount(ident, 1, device, "/", point, "rw", 0, 0, "fuse", "x", "rw", 1000 + ident)


def node(volumes: list[Volume]) -> Snapshot:
    mounts: list[Mount] = []
    data: dict[tuple[str, str], VolumeData] = {}
    staged: dict[str, VolumeData] = {}
    pods: dict[str, Pod] = {}
    for number, volume in enumerate(volumes):
        uid = uid_of(number)
        point = f"{ROOT}/pods/{uid}/volumes/kubernetes.io~csi/{volume.pv}/mount"
        mounts.append(mount(300 + number, old(number), point))
        data[uid, volume.pv] = VolumeData(volume.driver, volume.handle, volume.is_ephemeral)
        if volume.knows_namespace:
            pods[uid] = Pod(uid, uid, volume.namespace, "p", "Running", is_deleting=False)
        if volume.is_back and ".." not in volume.source:
            mounts.append(mount(400 + number, new(number), volume.source))
            staged[volume.source] = VolumeData(volume.driver, volume.handle)
    devices = {m.device for m in mounts}
    gone = {old(number) for number in range(len(volumes))}
    connections = {
        device: Connection(device, Answer.DISCONNECTED if device in gone else Answer.ANSWERED)
        for device in devices
    }
    return Snapshot(
        0.0, MountTable.of(mounts), plain_directory(ROOT), connections, pods=pods, volume_data=data,
        staging_data=staged,
    )  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(VOLUMES)
def test_a_bind_gets_its_own_source_or_none(volumes: list[Volume]) -> None:
    snapshot = node(volumes)
    for number, volume in enumerate(volumes):
        (bind,) = snapshot.table.on_device(old(number))
        path = parse_bind_path(f"{ROOT}/pods", bind.mount_point)
        assert path is not None
        answer = sources.locate(path, bind, snapshot, {}, DRIVERS)
        found = sources.resolve(answer, bind, snapshot)
        if found.mount is not None:
            assert found.mount.device == new(number), (volume, answer)
            assert len(answer.candidates) == 1


@settings(max_examples=150, deadline=None)
@given(VOLUMES)
def test_what_a_driver_names_is_in_the_table_or_refused(volumes: list[Volume]) -> None:
    snapshot = node(volumes)
    for number in range(len(volumes)):
        (bind,) = snapshot.table.on_device(old(number))
        path = parse_bind_path(f"{ROOT}/pods", bind.mount_point)
        assert path is not None
        for driver in DRIVERS:
            answer = driver.locate(path, bind, snapshot)
            if answer is None:
                continue
            here = [c for c in answer.candidates if snapshot.table.top_at(c.mount_point)]
            found = sources.resolve(answer, bind, snapshot)
            assert found.mount is None or (len(here), len(answer.candidates)) == (1, 1)
