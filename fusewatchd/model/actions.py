"""What may be done to a mount or a connection, and how it ended.

Actions are plain values that cannot run themselves; ``executor`` is the only place that
carries them out, so a dry run prints them and a test compares them with ``==``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fusewatchd.model.mounts import Device, Mount, MountNamespace, TargetKey, UserNamespaceRef
from fusewatchd.model.stand_in import StandIn
from fusewatchd.model.verdicts import Reason


@dataclass(frozen=True, slots=True)
class Expect:
    """What must be true of a mount at the moment of the system call."""

    mount_point: str
    device: Device
    mount_id: int = 0
    """0: any mount of that device (a host bind replaced earlier in the same plan)."""
    unique_id: int = 0
    root: str = "/"

    @classmethod
    def of(cls, mount: Mount) -> Expect:
        """Expect just this mount."""
        return cls(mount.mount_point, mount.device, mount.mount_id, mount.unique_id, mount.root)

    def is_met_by(self, mount: Mount) -> bool:
        """Return True when this is the mount that is described."""
        if mount.mount_point != self.mount_point or mount.device != self.device:
            return False
        is_any = not (self.mount_id or self.unique_id)
        return is_any or mount.has_id(self.mount_id, self.unique_id)


@dataclass(frozen=True, slots=True)
class OwnLayer:
    """A mount that this daemon put on top of one that it could not take away."""

    mount_id: int
    unique_id: int
    device: Device
    peer_group: int = 0
    """The group of its own that it was seen in; 0: none, or not seen since it was attached."""

    @classmethod
    def of(cls, mount: Mount) -> OwnLayer:
        """Describe a layer that was read back."""
        return cls(mount.mount_id, mount.unique_id, mount.device, mount.peer_group)

    def is_about(self, mount: Mount) -> bool:
        """True when this is the mount, as far as its ids tell: see ``own_layers``."""
        return mount.device == self.device and mount.has_id(self.mount_id, self.unique_id)


@dataclass(frozen=True, slots=True)
class ChildMount:
    """A mount inside the volume that must be in the new one before anybody can see it."""

    expect: Expect
    relative_path: str
    origin: Expect
    """A mount of the host that shows the same file system."""
    origin_subpath: str = ""
    """Where below the origin the child's root is."""
    wanted: Mount | None = None
    """What it is like, if it must be there even when it is gone by then: the kernel unmounts what
    is on a directory of a dead file system as soon as somebody looks for that directory
    (fs/dcache.c, d_invalidate)."""


@dataclass(frozen=True, slots=True)
class NamespaceRef:
    """A namespace to enter; inode and start time guard against a reused pid."""

    inode: int
    pid: int
    start_time: int
    own_user_namespace: bool = False
    """What it inherited may be locked there, mount_namespaces(7)."""
    users: UserNamespaceRef | None = None
    """The container's own user namespace; None: not known."""

    @classmethod
    def of(cls, namespace: MountNamespace) -> NamespaceRef:
        """Name a namespace as it was seen."""
        return cls(
            namespace.inode,
            namespace.pid,
            namespace.start_time,
            namespace.own_user_namespace,
            namespace.users,
        )


class Propagation(Enum):
    """Propagation type that the new mount must have (mount_namespaces(7))."""

    OWN_GROUP = "own_group"
    """Shared in a peer group of its own, so that nothing is copied to the source."""
    PRIVATE = "private"
    SLAVE = "slave"
    """Receives from the origin's group and sends nothing back (HostToContainer)."""
    RECEIVER = "receiver"
    """Slave of the origin's group, then shared in one of its own: it passes on what it receives."""
    PEER = "peer"
    """Stays in the origin's group (Bidirectional)."""


RECEIVES = frozenset({Propagation.SLAVE, Propagation.RECEIVER, Propagation.PEER})
"""What is mounted inside the origin is mounted inside these as well."""


@dataclass(frozen=True, slots=True)
class ReplaceMount:
    """Put a clone of ``origin`` in the place of the mount that ``expect`` describes."""

    key: TargetKey
    expect: Expect
    origin: Expect
    propagation: Propagation
    subpath: str = ""
    """Directory or file below the origin, resolved without leaving its file system."""
    stale_devices: tuple[Device, ...] = ()
    """Proven dead: layers of these may be taken from a stack, but never the last one."""
    own_layers: tuple[OwnLayer, ...] = ()
    """Put there by this daemon: what they cover was to be replaced, and is no better."""
    read_only: bool = False
    """Add ``ro`` even if the mount to replace lacks it (a writable layer on a read-only one)."""
    children: tuple[ChildMount, ...] = ()
    namespace: NamespaceRef | None = None
    source_place: str = ""
    """Where another user's server than before is mounted on the host; empty: not known."""
    narrower: str = ""
    """How the new superblock allows less than the old one; empty when it does not."""
    wider: str = ""
    """How it allows more."""
    type_change: str = ""
    """How its server calls it now, and before; empty when that is the same."""
    pod_uid: str = ""
    """Whose bind it is, here and in the other actions about binds."""
    over: str = ""
    """Per-mount options of a new mount that goes over the node's directory; ``expect`` is that.

    Empty: the new mount takes the place of the mount in ``expect``.
    """
    asks: bool = False
    """The way to the target crosses a file system that has to be asked, and may not answer."""

    def describe(self) -> str:
        """Say in one line what this would do."""
        where = f" in namespace {self.namespace.inode}" if self.namespace else ""
        below = f" (at {self.subpath})" if self.subpath else ""
        if self.over:
            source = f"{self.origin.mount_point}{below}"
            return f"mount {source} over the node's directory at {self.expect.mount_point}{where}"
        return (
            f"replace {self.expect.mount_point}{where}: device {self.expect.device} by "
            f"{self.origin.device} from {self.origin.mount_point}{below}"
        )


@dataclass(frozen=True, slots=True)
class DropLayers:
    """Take dead layers off a deep stack while there is nothing yet to replace the last one with."""

    key: TargetKey
    expect: Expect
    stale_devices: tuple[Device, ...]
    """As in ``ReplaceMount``."""
    pod_uid: str = ""

    def describe(self) -> str:
        """Say in one line what this would do."""
        return f"take dead layers of device {self.expect.device} off {self.expect.mount_point}"


@dataclass(frozen=True, slots=True)
class DetachOwnLayer:
    """Take away a layer that this daemon stacked, once nothing is left for it to cover."""

    key: TargetKey
    expect: Expect
    peer_group: int
    """Of the layer: what tells it from a bind of somebody else that got its number."""
    pod_uid: str = ""

    def describe(self) -> str:
        """Say in one line what this would do."""
        return f"detach own layer {self.expect.mount_id} at {self.expect.mount_point}"


@dataclass(frozen=True, slots=True)
class DetachOrphan:
    """Take away a dead layer that a pod which is over left behind."""

    key: TargetKey
    expect: Expect
    pod_uid: str = ""

    def describe(self) -> str:
        """Say in one line what this would do."""
        return (
            f"detach dead layer {self.expect.mount_id} of device {self.expect.device}"
            f" at {self.expect.mount_point}"
        )


@dataclass(frozen=True, slots=True)
class DetachDeadSource:
    """Take a dead source mount away, so that a server can mount there again."""

    key: TargetKey
    expect: Expect

    def describe(self) -> str:
        """Say in one line what this would do."""
        return (
            f"detach dead source {self.expect.mount_id} of device {self.expect.device}"
            f" at {self.expect.mount_point}"
        )


@dataclass(frozen=True, slots=True)
class AbortConnection:
    """Make the kernel fail every request of a hung FUSE connection, now and for good."""

    key: TargetKey
    """One of the binds that show the connection; the others share its fate."""
    expect: Expect
    """The mount there: while it exists, no other connection can have the number."""
    confirmations: int
    """How often in a row it was found hung."""
    namespace: NamespaceRef | None = None

    def describe(self) -> str:
        """Say in one line what this would do."""
        return f"abort connection {self.expect.device}, shown at {self.expect.mount_point}"


@dataclass(frozen=True, slots=True)
class PlaceStandIns:
    """Put a dead file system in the place of mounts of a held connection whose server has ended."""

    key: TargetKey
    """The first of the mounts; it stands for all."""
    expect: Expect
    mounts: tuple[Mount, ...]
    """All on the host, each of them the topmost at its path, of one connection."""
    known: tuple[StandIn, ...] = ()
    """Of the same connection, made before: one may be beneath its mount already."""

    def describe(self) -> str:
        """Say in one line what this would do."""
        count = len(self.mounts)
        return f"put a dead mount in the place of {count} of device {self.expect.device}"


Action = (
    ReplaceMount
    | DropLayers
    | DetachOwnLayer
    | DetachOrphan
    | DetachDeadSource
    | AbortConnection
    | PlaceStandIns
)


class OutcomeStatus(Enum):
    """How an action ended (label ``outcome``)."""

    RECOVERED = "recovered"
    """The target shows its source again, read back from the kernel."""
    SKIPPED = "skipped"
    """The world had changed: nothing was done."""
    REFUSED = "refused"
    """A rule forbids it: nothing was done."""
    FAILED = "failed"
    DETACHED = "detached"
    """A layer of our own, a dead one of a pod that is over, or a dead source was taken away."""
    ABORTED = "aborted"
    """A hung connection was aborted, and no request waits for it any more."""
    PLACED = "placed"
    """Dead mounts are in the place of all that were named."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one action, as read back."""

    action: Action
    status: OutcomeStatus
    reason: Reason = Reason.NONE
    errno: int = 0
    detail: str = ""
    """Which step and why, for the log; never parsed."""
    mount: Mount | None = None
    """The mount that stands at the target now."""
    found: Mount | None = None
    """What stood at the target in the place of the mount that was expected there."""
    depth: int = 1
    layer: OwnLayer | None = None
    """What was put on top of the old mount, whatever became of the attempt after that."""
    narrower: str = ""
    """How the new superblock allows less than the old one; empty when it does not."""
    wider: str = ""
    """How it allows more."""
    stand_ins: tuple[StandIn, ...] = ()
    """Dead mounts that were put in the place of held ones, or were about to be."""
    started_at: float = 0.0
    finished_at: float = 0.0
