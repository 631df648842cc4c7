"""The values that flow from observation to report.

Everything here is frozen and compares by value.  Paths are ``str`` decoded with
``surrogateescape``, so that any byte sequence the kernel shows survives a round trip.
Times are seconds of the monotonic clock, passed in by whoever has one.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NoReturn

from fusewatchd.verdicts import Reason


def assert_never(value: NoReturn) -> NoReturn:
    """Prove to the type checker that a match over a closed union is complete."""
    raise AssertionError(f"unhandled value: {value!r}")


# --------------------------------------------------------------------------- mounts

DELETED = "//deleted"
"""What the kernel appends to the root of a bind whose directory was removed."""


@dataclass(frozen=True, slots=True, order=True)
class Device:
    """A superblock's device number; for plain FUSE the minor is the connection number."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of ``/proc/<pid>/mountinfo``, named as in proc_pid_mountinfo(5)."""

    mount_id: int
    parent_id: int
    device: Device
    root: str
    mount_point: str
    options: str
    """Per-mount options, comma separated, as the kernel prints them."""
    peer_group: int
    """``shared:N``, 0 when the mount is not shared."""
    master: int
    """``master:N``, 0 when the mount is no slave."""
    fs_type: str
    source: str
    super_options: str
    unique_id: int = 0
    """64-bit id that is never reused (statx(2) ``STATX_MNT_ID_UNIQUE``), 0 where unknown."""

    @property
    def is_fuse(self) -> bool:
        """True for every file system served over ``/dev/fuse``, ``fuseblk`` included."""
        return self.fs_type.startswith("fuse") and self.fs_type != "fusectl"

    @property
    def subtype(self) -> str:
        """What the server calls its file system, ``sshfs``; ``fuse`` where it has no name."""
        return self.fs_type.partition(".")[2] or self.fs_type

    @property
    def is_read_only(self) -> bool:
        """True when this mount (not the superblock) refuses writes."""
        return "ro" in self.options.split(",")

    @property
    def is_idmapped(self) -> bool:
        """True when the mount carries an id mapping (mount_setattr(2) ``MOUNT_ATTR_IDMAP``)."""
        return "idmapped" in self.options.split(",")

    @property
    def is_of_removed(self) -> bool:
        """True when the directory or file that it shows was removed from its file system."""
        return self.root.endswith(DELETED)

    def has_id(self, mount_id: int, unique_id: int) -> bool:
        """Return True when these are the ids of this mount.

        The ids of mountinfo are used again at once: where both sides have the one that never
        is, that one alone counts.
        """
        if unique_id and self.unique_id:
            return unique_id == self.unique_id
        return mount_id == self.mount_id


# ----------------------------------------------------------------- FUSE connections


class Answer(Enum):
    """How a connection answered the last ``statfs`` that was sent to it."""

    ANSWERED = "answered"
    DISCONNECTED = "disconnected"
    """The kernel refuses with ENOTCONN or ECONNABORTED: no server, for good."""
    REFUSED = "refused"
    """A server refused with such an errno, as its backend did; or it is not known who did."""
    PENDING = "pending"
    """Asked and not answered yet."""
    NOT_ALLOWED = "not_allowed"
    """The kernel answered by itself because the caller may not use this mount."""
    ERROR = "error"
    """Another errno: the server is there and unwell, or the path is not reachable."""


_NO_FAILURE = frozenset({0, errno.EACCES, errno.EPERM, errno.ENOSYS})
"""A root may be squashed, a mount be for its owner only: what is there is served."""


@dataclass(frozen=True, slots=True)
class Root:
    """What a connection said when it was asked for the attributes of its root."""

    errno: int = 0
    is_pending: bool = False
    """It was asked for the first time, and neither answered nor was the deadline passed."""
    is_slow: bool = False
    """The deadline passed without an answer."""

    @property
    def fails(self) -> bool:
        """True when nobody can use what is mounted there."""
        return self.errno not in _NO_FAILURE


SERVED = Root()


@dataclass(frozen=True, slots=True)
class Connection:
    """What is known of one FUSE connection (one superblock), whatever mounts show it."""

    device: Device
    answer: Answer | None
    """None: never answered so far."""
    asked_at: float = 0.0
    answered_at: float = 0.0
    errno: int = 0
    waiting: int | None = None
    """``/sys/fs/fuse/connections/N/waiting``; None where fusectl cannot be read."""
    is_overdue: bool = False
    """The pending probe has passed its deadline."""
    is_hung: bool = False
    """Nothing was answered for ``hung.after_seconds``."""
    confirmations: int = 0
    """How often in a row it was found hung, one probe deadline after the other."""
    is_unasked: bool = False
    """Its question waits for a free probe child, for ``hung.after_seconds`` by now."""
    server_gone_at: float | None = None
    """When the last serving process was seen to exit."""
    first_asked_at: float | None = None
    """None: never asked so far."""
    disconnected_at: float | None = None
    """When the first DISCONNECTED came in; None for any other answer."""
    held_since: float | None = None
    """Since when something keeps it alive without a serving process, and without an answer."""
    root: Root = SERVED
    is_outdated: bool = False
    """Its last answer is from before the end of its server, and it could not be asked since."""

    @property
    def refuses_all(self) -> bool:
        """True when a pod gets ENOTCONN from its server, whatever it asks."""
        return self.answer is Answer.REFUSED and self.root.errno in (
            errno.ENOTCONN,
            errno.ECONNABORTED,
        )

    @property
    def is_dead(self) -> bool:
        """True when the kernel said that it has no server; that is for good."""
        return self.answer is Answer.DISCONNECTED


@dataclass(frozen=True, slots=True)
class MemoryCgroup:
    """Where the memory of a process is counted, cgroups(7)."""

    version: int
    """Of cgroups: 1 or 2."""
    path: str
    """As ``/proc/<pid>/cgroup`` has it, below the root of the hierarchy."""


@dataclass(frozen=True, slots=True)
class FuseServer:
    """A process that holds a ``/dev/fuse`` descriptor of a connection."""

    pid: int
    start_time: int
    """Field 22 of ``/proc/<pid>/stat`` in clock ticks: guards against pid reuse."""
    devices: tuple[Device, ...]
    """Connections it serves; empty when the kernel does not tell (before about 6.16)."""
    command: str = ""
    pod_uid: str = ""
    """Directory uid; empty outside pods."""
    container_id: str = ""
    unit: str = ""
    """The systemd unit of a server outside pods."""
    name: str = ""
    """Its name in the kernel, at most 15 bytes."""
    memory: MemoryCgroup | None = None


# -------------------------------------------------------------------------- kubelet


class BindKind(Enum):
    """What a bind under the kubelet's pods directory is for (label ``kind``)."""

    PUBLISH = "publish"
    SUBPATH = "subpath"
    FLEXVOLUME = "flexvolume"
    LOCAL = "local"
    """A ``local`` PersistentVolume whose path is, or is inside, a FUSE file system."""
    EMPTY_DIR = "emptydir"
    """A FUSE file system that a container of the pod mounted inside an emptyDir."""
    CONTAINER = "container"
    """Not on the host: a mount inside a container's own mount namespace."""


@dataclass(frozen=True, slots=True)
class BindPath:
    """What the path of a host bind says by itself (see ``kubeletdir``)."""

    kind: BindKind
    pod_uid: str
    volume: str
    """Its directory's name: the PersistentVolume's, or an inline volume's in the pod's spec."""
    plugin: str = ""
    """``kubernetes.io~csi`` and the like; empty for subPath binds, whose path lacks it."""
    container: str = ""
    index: str = ""


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """One ``volumeMounts`` entry of a container."""

    container: str
    volume: str
    """Name in ``spec.volumes``."""
    mount_path: str
    read_only: bool
    propagation: str
    """``None``, ``HostToContainer`` or ``Bidirectional``."""
    sub_path: str = ""


@dataclass(frozen=True, slots=True)
class Volume:
    """One ``spec.volumes`` entry, as far as it says where the data comes from."""

    name: str
    kind: str
    """``csi``, ``persistentVolumeClaim``, ``hostPath``, ``flexVolume``, ``emptyDir`` …"""
    driver: str = ""
    claim: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class Pod:
    """The parts of a pod of this node that recovery and reports need."""

    uid: str
    """The API server's uid; what Events must carry."""
    directory_uid: str
    """Name of the pod's directory on disk: the static pod's config hash, else the uid."""
    namespace: str
    name: str
    phase: str
    is_deleting: bool
    volumes: tuple[Volume, ...] = ()
    volume_mounts: tuple[VolumeMount, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    is_static: bool = False
    """From a file on the node, not from the API server."""
    containers: Mapping[str, str] = field(default_factory=dict)
    """Names of its containers by their id in the runtime, as far as they were started."""


@dataclass(frozen=True, slots=True)
class VolumeData:
    """``vol_data.json`` beside a CSI publish target (kubernetes/pkg/volume/csi)."""

    driver: str
    volume_handle: str
    is_ephemeral: bool = False
    """An inline volume: it has no PersistentVolume and is never staged."""

    @property
    def handle_digest(self) -> str:
        """SHA-256 of the handle in hexadecimal, which the kubelet and drivers name directories."""
        handle = self.volume_handle.encode("utf-8", "surrogateescape")
        return hashlib.sha256(handle).hexdigest()


# --------------------------------------------------------------- mount namespaces


class NamespaceKind(Enum):
    """Why a mount namespace is entered or only counted."""

    CONTAINER = "container"
    """Belongs to a pod: its cgroup proves it, and no newer list of the kubelet denies it."""
    FOREIGN = "foreign"
    """A system service, a node agent outside pods, anything else: never entered."""


@dataclass(frozen=True, slots=True)
class MountNamespace:
    """A mount namespace other than the host's that holds FUSE mounts."""

    inode: int
    """Inode of ``/proc/<pid>/ns/mnt``."""
    pid: int
    """A process inside; 0 when only a descriptor or bind keeps the namespace."""
    start_time: int
    kind: NamespaceKind
    pod_uid: str
    container_id: str
    mounts: tuple[Mount, ...]
    """The FUSE mounts, their parents and their children; nothing else."""
    own_user_namespace: bool = False
    """Its processes live in another user namespace than the daemon."""
    is_own: bool = True
    """The container's own: that of its oldest process, and none that one of them made."""
    container_name: str = ""
    """As the kubelet's list has it; empty while no list has the container."""
    users_pid: int = 0
    """The container's oldest process, where its user namespace is not the daemon's."""

    def mount(self, mount_id: int) -> Mount | None:
        """Return the mount with this id, if the namespace had it when it was read."""
        return next((mount for mount in self.mounts if mount.mount_id == mount_id), None)


# ---------------------------------------------------------- sources and targets


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


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that could not be seen this time."""

    source: str
    """``kubelet``, ``fusectl``, ``namespaces`` …"""
    reason: str


@dataclass(frozen=True, slots=True)
class TargetKey:
    """Names a bind across cycles; ``namespace`` is 0 on the host, else its inode."""

    namespace: int
    mount_point: str

    @property
    def is_host(self) -> bool:
        """True for a bind in the host's own mount table."""
        return self.namespace == 0
