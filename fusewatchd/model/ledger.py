"""What the daemon remembers between two cycles, as a value.

Everything here could be lost at any moment: the next look at the node would rebuild what
matters, and the rest only makes reports richer.  The pieces that cannot be rebuilt once a
source is gone (``facts``, ``own_layers``) are what the state file keeps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fusewatchd.model.actions import Outcome, OwnLayer, Propagation
from fusewatchd.model.findings import NOT_LOCATED, DeadRoot, SourceAnswer, SourcePath
from fusewatchd.model.held import Placing
from fusewatchd.model.mounts import Device, Mount, MountNamespace, TargetKey
from fusewatchd.model.outages import Incident, Outage, Phase
from fusewatchd.model.quota import Refused
from fusewatchd.model.rights import Rights
from fusewatchd.model.server_actions import ServerMemory
from fusewatchd.model.servers import Service
from fusewatchd.model.stand_in import StandIn
from fusewatchd.model.verdicts import Reason
from fusewatchd.rate_limit import Bucket

MAX_OUTAGES = 256
"""On the whole node, the newest."""
MAX_OF_ONE = 8
"""Of one source."""


@dataclass(frozen=True, slots=True)
class Place:
    """A mount that shows, or showed, a file system, and that others may have come from."""

    mount_point: str
    root: str
    unique_id: int = 0
    """Of that mount: the smaller, the older.  0 where the kernel has no such ids."""

    @property
    def path(self) -> SourcePath:
        """Where it is, whichever mount is there by now."""
        return SourcePath(self.mount_point, self.root)


@dataclass(frozen=True, slots=True)
class Fact:
    """One mount, and every place older than all binds of what it shows.

    The first candidate is the one that was mounted first: the server's own mount.  The others
    are binds of it, which may be left over or reused for something else later, so only the
    first is ever acted on.
    """

    mount_point: str
    mount_id: int
    unique_id: int
    device: Device
    root: str
    fs_type: str
    candidates: tuple[Place, ...]
    tied: int = 1
    """So many of the first candidates nothing tells apart."""
    seen_working: bool = False
    """The file system answered at a moment when the first candidate showed it."""
    of_pod: Place | None = None
    """For a subPath bind: the pod's own mount of this volume, when that showed the same."""
    is_ordered: bool = False
    """The order of the mounts is the one in which they were made, and not that of a copy."""
    is_place: bool = False
    """It was older than every bind of its file system when it was first seen, and none itself."""

    def is_about(self, mount: Mount) -> bool:
        """True when this fact was learned from exactly this mount."""
        if (self.mount_point, self.device) != (mount.mount_point, mount.device):
            return False
        return mount.has_id(self.mount_id, self.unique_id)


Facts = Mapping[int, Fact]
"""By ``mount_id``; of the host's mounts only."""


@dataclass(frozen=True, slots=True)
class TargetState:
    """The life of one bind so far."""

    phase: Phase = Phase.HEALTHY
    failures: int = 0
    """Failed attempts in a row."""
    retry_at: float = 0.0
    is_in_flight: bool = False
    """An action was handed to the executor and has not ended."""
    last_outcome: Outcome | None = None
    last_refusal: Reason = Reason.NONE
    undone: int = 0
    """Recoveries in a row onto the same file system: somebody else does not want them."""


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """What a container mount was like before anything happened to its host bind.

    A replaced host bind sets its slaves free, so a slave looks private afterwards; and a
    layer stacked by somebody else may have lost ``ro``.  The first look is the true one.
    """

    propagation: Propagation
    is_read_only: bool
    pod_uid: str = ""
    container: str = ""
    """Whose it is: the kernel uses the numbers of namespaces again."""
    origin: str = ""
    """The host bind that it is a copy of, as far as that was proven; empty: not so far."""
    mount_id: int = 0
    device: Device | None = None
    """Which mount that was: it is true of no other."""
    inside: tuple[Mount, ...] = ()
    """What was mounted inside the volume when its server was last known to be alive."""
    rights: Rights = Rights.UNSEEN
    received: tuple[int, ...] = ()
    """Ids of mounts inside that came from the bind on the host, and will again."""
    driver: str = ""
    source: SourceAnswer | None = None
    """Of what was on the host when that was last there: the mount outlives it."""


@dataclass(frozen=True, slots=True)
class Former:
    """A host bind that showed something which it may show no more."""

    key: TargetKey
    seen_at: float
    """When it was last seen to; the device number means nothing once it is used again."""
    driver: str = ""
    source: SourceAnswer = NOT_LOCATED


@dataclass(frozen=True, slots=True)
class Owner:
    """What of a pod decides whether its binds are repaired; the annotations as they stand."""

    namespace: str
    recovery: str = ""
    containers: str = ""


@dataclass(frozen=True, slots=True)
class Detached:
    """What was taken away of pods that are over."""

    layers: int = 0
    last_at: float | None = None


NOTHING_DETACHED = Detached()


@dataclass(frozen=True, slots=True)
class SourceLife:
    """What is mounted at a source, and what became of the mounts before it."""

    device: Device | None
    """None: there is no living one now."""
    up_at: float = float("-inf")
    """When it was first seen; long ago for one that was there from the start."""
    served_at: float | None = None
    """When the last bind was put on it."""
    unused_mounts: tuple[float, ...] = ()
    """When mounts ended that were of no use, of late, the newest last."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What is left of the replacements that the node, or one pod, may have."""

    bucket: Bucket = field(default_factory=Bucket)
    resumes_at: float = 0.0
    """After it was spent: nothing is replaced before this."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The replacements of mounts that the node had, and those of each pod."""

    node: Spent = field(default_factory=Spent)
    pods: Mapping[str, Spent] = field(default_factory=dict)
    """Those that have not got back all that they spent."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """All memory; replaced as a whole at the end of every cycle."""

    facts: Facts = field(default_factory=dict)
    """Lineage of the mounts of the host."""
    published: Mapping[str, SourceAnswer] = field(default_factory=dict)
    """Binds that were seen on the host and whose pod has not left since."""
    states: Mapping[TargetKey, TargetState] = field(default_factory=dict)
    containers: Mapping[TargetKey, ContainerFacts] = field(default_factory=dict)
    propagations: Mapping[TargetKey, Propagation] = field(default_factory=dict)
    """How each bind on the host hung on its source while both were seen."""
    former: Mapping[tuple[str, Device, str], Former] = field(default_factory=dict)
    """(pod uid, device, root) that a host bind had earlier -> that bind."""
    own_layers: Mapping[TargetKey, tuple[OwnLayer, ...]] = field(default_factory=dict)
    """Mounts that this daemon put on top of others, the newest last."""
    owners: Mapping[str, Owner] = field(default_factory=dict)
    """By directory uid, of the pods that have binds: as the last list that had them said."""
    over_since: Mapping[str, float] = field(default_factory=dict)
    """Since when each pod that left binds behind is known to be over."""
    detached: Detached = NOTHING_DETACHED
    incidents: Mapping[Device, Incident] = field(default_factory=dict)
    """Open ones, by the device of the dead superblock."""
    outages: tuple[Outage, ...] = ()
    """Those that are over, the newest last."""
    sources: Mapping[str, SourceLife] = field(default_factory=dict)
    """By path."""
    services: Mapping[str, Service] = field(default_factory=dict)
    """By path of the source."""
    dead_roots: tuple[DeadRoot, ...] = ()
    """Containers whose image has a dead layer."""
    budget: Budget = field(default_factory=Budget)
    refused_owners: Refused = field(default_factory=dict)
    """Who wants more of something than one owner may have."""
    stand_ins: tuple[StandIn, ...] = ()
    """Dead mounts that were put in the place of held ones, as the last look found them."""
    placing: Mapping[Device, Placing] = field(default_factory=dict)
    """Attempts to do that, by the device of the held connection."""
    server_actions: ServerMemory = field(default_factory=ServerMemory)

    def postponed(self, seconds: float) -> Ledger:
        """Move the times of grace on by a time in which nobody could do anything."""
        lives = {p: replace(x, up_at=x.up_at + seconds) for p, x in self.sources.items()}
        over_since = {uid: since + seconds for uid, since in self.over_since.items()}
        return replace(self, sources=lives, over_since=over_since)

    def facts_of(self, namespace: MountNamespace, mount_point: str) -> ContainerFacts | None:
        """Return what was learned of this mount in the very container that lives there now."""
        known = self.containers.get(TargetKey(namespace.inode, mount_point))
        if known is None:
            return None
        is_same = (known.pod_uid, known.container) == (namespace.pod_uid, namespace.container_id)
        return known if is_same else None

    def state(self, key: TargetKey) -> TargetState:
        """Return the state of a bind, a fresh one when it was never seen."""
        return self.states.get(key, _FRESH)


_FRESH = TargetState()


def remember_outages(
    known: tuple[Outage, ...], closed: Iterable[Incident], now: float
) -> tuple[Outage, ...]:
    """Add the incidents that have just been closed; the oldest are forgotten."""
    fresh = tuple(_outage(incident, now) for incident in closed)
    if not fresh:
        return known
    kept: list[Outage] = []
    count: Counter[str] = Counter()
    for outage in reversed(known + fresh):
        count[outage.source_path] += 1
        if count[outage.source_path] <= MAX_OF_ONE and len(kept) < MAX_OUTAGES:
            kept.append(outage)
    return tuple(reversed(kept))


def _outage(incident: Incident, now: float) -> Outage:
    return Outage(
        incident.device,
        incident.source_path,
        incident.noticed_at,
        now if incident.recovered_at is None else incident.recovered_at,
        incident.server_gone_at,
        incident.source_up_at,
        incident.recovered_at,
        len(incident.targets),
        len(incident.recovered_targets),
    )
