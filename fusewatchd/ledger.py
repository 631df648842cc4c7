"""What the daemon remembers between two cycles, as a value.

Everything here could be lost at any moment: the next look at the node would rebuild what
matters, and the rest only makes reports richer.  The pieces that cannot be rebuilt once a
source is gone (``facts``, ``own_layers``) are what the state file keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fusewatchd.decision import Incident, Outcome, Phase, Propagation
from fusewatchd.lineage import Fact
from fusewatchd.model import Device, MountNamespace, Reason, SourceAnswer, TargetKey


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


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """What a container mount was like before anything happened to its host bind.

    A replaced host bind sets its slaves free, so a slave looks private afterwards; and a
    layer stacked by somebody else may have lost ``ro``.  The first look is the true one.
    """

    propagation: Propagation
    is_read_only: bool
    pod_uid: str = ""
    """Whose it is: the kernel uses the numbers of namespaces again."""
    container_id: str = ""
    origin: str = ""
    """Mount point on the host of the bind that it is a copy of."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """All memory; replaced as a whole at the end of every cycle."""

    facts: Mapping[str, Fact] = field(default_factory=dict)
    """Lineage, by mount point of the bind on the host."""
    published: Mapping[str, SourceAnswer] = field(default_factory=dict)
    """Binds that were seen on the host and whose pod has not left since."""
    states: Mapping[TargetKey, TargetState] = field(default_factory=dict)
    containers: Mapping[TargetKey, ContainerFacts] = field(default_factory=dict)
    former: Mapping[tuple[str, Device, str], TargetKey] = field(default_factory=dict)
    """(pod uid, device, root) that a host bind had earlier -> that bind.

    Kept only while some mount still shows that device, so that it cannot be reused."""
    own_layers: Mapping[TargetKey, tuple[int, ...]] = field(default_factory=dict)
    """Mounts that this daemon made, the newest last, by unique id where there is one."""
    incidents: Mapping[Device, Incident] = field(default_factory=dict)
    """Open ones, by the device of the dead superblock."""

    def facts_of(self, namespace: MountNamespace, mount_point: str) -> ContainerFacts | None:
        """Return what was learned of this mount in the very container that lives there now."""
        known = self.containers.get(TargetKey(namespace.inode, mount_point))
        if known is None:
            return None
        is_same = (known.pod_uid, known.container_id) == (namespace.pod_uid, namespace.container_id)
        return known if is_same else None

    def state(self, key: TargetKey) -> TargetState:
        """Return the state of a bind, a fresh one when it was never seen."""
        return self.states.get(key, _FRESH)


_FRESH = TargetState()
