"""What diagnosis finds: binds, the source of each, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass

from fusewatchd.model.mounts import Device, Mount, MountNamespace, TargetKey
from fusewatchd.model.pods import BindPath
from fusewatchd.model.verdicts import Reason, Verdict


@dataclass(frozen=True, slots=True)
class SourcePath:
    """A place on the host where the FUSE server mounts, and the root shown there."""

    mount_point: str
    root: str = "/"


@dataclass(frozen=True, slots=True)
class SourceAnswer:
    """Which source a bind belongs to, by which rule, and in a person's words why."""

    rule: str
    """Name of the driver module, ``lineage``, or empty when nothing answered."""
    why: str
    candidates: tuple[SourcePath, ...] = ()
    refusal: Reason = Reason.NONE
    """Why there is no candidate, where that will never change."""
    is_by_name: bool = False
    """The place belongs to this very volume, by what a driver calls it: whatever is mounted there,
    on whichever disk, is the volume."""
    is_seen: bool = False
    """The place was seen to serve while the bind worked."""
    is_older: bool = False
    """By the order in which mounts were made the place is older than the bind."""


NOT_LOCATED = SourceAnswer("", "")


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that could not be seen this time."""

    source: str
    """``kubelet``, ``fusectl``, ``namespaces`` …"""
    reason: str


@dataclass(frozen=True, slots=True)
class Underneath:
    """The node's directory that a container has in the place of its volume."""

    mount: Mount
    """The topmost mount at that path in the container."""
    host_path: str
    """Where the directory is on the node; a mount there may hide it."""
    inside: str = ""
    """Which part of the volume's directory it is: empty, or that of a subPath."""


@dataclass(frozen=True, slots=True)
class Bind:
    """One place where a pod sees a FUSE file system, on the host or in a container."""

    key: TargetKey
    path: BindPath
    mount: Mount | None
    """The topmost FUSE mount there; None when there is a bare directory of the node."""
    depth: int
    """How many mounts are stacked at this path."""
    driver: str
    """CSI driver name, or the FUSE subtype; a metric label after capping."""
    source: SourceAnswer
    namespace: MountNamespace | None = None
    """The container's namespace; None on the host."""
    origin: TargetKey | None = None
    """For a container mount: its pod's bind on the host."""
    underneath: Underneath | None = None
    """What a container has there instead of its volume."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict on one bind and what it rests on."""

    bind: Bind
    verdict: Verdict
    evidence: str
    source_mount: Mount | None = None
    """The live mount that the bind should show; None while there is none."""
    refusal: Reason = Reason.NONE
    """Why a bind that is not healthy cannot be replaced, as far as diagnosis can tell."""
    source_errno: int = 0
    """With what its new source answers, where that is why."""


@dataclass(frozen=True, slots=True)
class Unproven:
    """A dead mount in a pod's container that nothing proves to be a copy of one of its binds."""

    pod_uid: str
    key: TargetKey
    device: Device


@dataclass(frozen=True, slots=True)
class DeadRoot:
    """A container that has lost a part of its root."""

    pod_uid: str
    container_id: str
    layer: str
    """Where the dead layer is mounted on the host, or was."""
    mount_id: int
    """Of the overlay."""
