"""What is mounted over the node's directory that a container has, and where nothing is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusewatchd.model.actions import Propagation, ReplaceMount
from fusewatchd.model.findings import Bind, Finding, SourceAnswer, Underneath
from fusewatchd.model.kubelet import plain_directory
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount, MountNamespace, NamespaceKind, TargetKey
from fusewatchd.model.plan import Refusal
from fusewatchd.model.pods import BindKind, BindPath, Pod
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.plan.on_disk import cover

PUBLISH = "/k/pods/uid-a/volumes/kubernetes.io~csi/pv/mount"
DISK = Mount(101, 100, Device(8, 1), PUBLISH, "/data", "rw,relatime", 0, 0, "ext4", "s", "rw")
VOLUME = Mount(9, 1, Device(0, 50), "/", PUBLISH, "rw,nosuid,noatime", 5, 0, "fuse.x", "s", "rw")
CONTAINER = MountNamespace(4, 44, 1, NamespaceKind.CONTAINER, "uid-a", "c", (DISK,))
POD = Pod("uid-a", "uid-a", "shop", "web", "Running", is_deleting=False)


def decided(
    disk: Mount = DISK,
    volume: Mount | None = VOLUME,
    pods: dict[str, Pod] | None = None,
    *,
    inside: str = "",
    is_current: bool = True,
) -> ReplaceMount | Refusal:
    answer = SourceAnswer("lineage", "")
    path = BindPath(BindKind.PUBLISH, "uid-a", "pv", "kubernetes.io~csi")
    host = Bind(TargetKey(0, PUBLISH), path, volume, 1, "d", answer)
    key = TargetKey(4, "/data")
    under = Underneath(disk, PUBLISH, inside)
    bind = Bind(key, path, None, 0, "d", answer, CONTAINER, host.key, underneath=under)
    snapshot = Snapshot(
        1.0,
        MountTable.of([VOLUME]),
        plain_directory("/k"),
        namespaces=(CONTAINER,),
        pods={"uid-a": POD} if pods is None else pods,
        pods_are_current=is_current,
    )
    findings = {host.key: Finding(host, Verdict.HEALTHY, "")}
    return cover(Finding(bind, Verdict.ON_DISK, ""), under, VOLUME, findings, snapshot)


def reason(decision: ReplaceMount | Refusal) -> Reason:
    assert isinstance(decision, Refusal)
    return decision.reason


@pytest.mark.parametrize(
    ("of_volume", "of_directory", "wanted"),
    [
        ("rw,nosuid,noatime", "rw,relatime", "rw,nosuid,noatime"),
        ("ro,relatime", "rw,relatime", "ro,relatime"),
        ("rw,relatime", "ro,nodev,noatime", "ro,relatime,nodev"),
        ("rw,noexec", "rw,noexec,nosymfollow,idmapped", "rw,noexec,nosymfollow,idmapped"),
    ],
)
def test_it_is_as_strict_as_both(of_volume: str, of_directory: str, wanted: str) -> None:
    made = decided(replace(DISK, options=of_directory), replace(VOLUME, options=of_volume))
    assert isinstance(made, ReplaceMount)
    assert made.over == wanted


def test_a_part_of_the_volume() -> None:
    made = decided(inside="a/b")
    assert isinstance(made, ReplaceMount)
    assert (made.subpath, made.propagation) == ("a/b", Propagation.PRIVATE)
    assert "over the node's directory" in made.describe()


def test_where_nothing_is_mounted() -> None:
    assert reason(decided(volume=None)) is Reason.HOST_BIND_STALE
    assert reason(decided(replace(DISK, peer_group=7))) is Reason.ON_DISK
    assert reason(decided(replace(DISK, master=7))) is Reason.HOST_BIND_STALE
    for pods in ({}, {"uid-a": replace(POD, phase="Succeeded")}):
        assert reason(decided(pods=pods)) is Reason.POD_UNKNOWN
    assert reason(decided(is_current=False)) is Reason.POD_UNKNOWN
