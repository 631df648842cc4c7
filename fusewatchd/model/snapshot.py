"""What one look at the node saw: the only input of diagnosis and planning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fusewatchd.model.degraded import Degradation
from fusewatchd.model.findings import Gap
from fusewatchd.model.held import NO_KEEPER, KeeperView
from fusewatchd.model.hidden_files import HiddenFiles
from fusewatchd.model.kubelet import KubeletDirectory
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, MountNamespace
from fusewatchd.model.namespace_tables import NamespaceTables
from fusewatchd.model.pods import Pod, VolumeData
from fusewatchd.model.quota import RefusedOwner
from fusewatchd.model.servers import Connection, FuseServer, Holding, ServerEnd
from fusewatchd.model.stand_in import StandIns


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Facts about the node at one moment; what could not be seen is a gap."""

    taken_at: float
    table: MountTable
    """The host's mount table."""
    kubelet: KubeletDirectory
    """Not found: a gap tells so."""
    connections: Mapping[Device, Connection] = field(default_factory=dict)
    servers: Mapping[Device, tuple[FuseServer, ...]] = field(default_factory=dict)
    namespaces: tuple[MountNamespace, ...] = ()
    pods: Mapping[str, Pod] | None = None
    """By directory uid; None while the kubelet has not answered or has no address."""
    pods_are_current: bool = False
    """The list was asked for after the last change below the pods directory, and is whole."""
    volume_data: Mapping[tuple[str, str], VolumeData] = field(default_factory=dict)
    """``vol_data.json`` by (pod directory uid, volume)."""
    seen_at: Mapping[Device, float] = field(default_factory=dict)
    """When each FUSE device was first seen in the host's table."""
    namespaces_looked_at: float = 0.0
    """When the look at the other namespaces began; 0: there was none so far."""
    pods_asked_at: float = 0.0
    """When the kubelet was asked for the list of ``pods``."""
    mount_max: int | None = None
    """``/proc/sys/fs/mount-max``, proc_sys_fs(5); None where it cannot be read."""
    ends: Mapping[Device, ServerEnd] = field(default_factory=dict)
    """The latest end of a server of each connection that is still shown."""
    holdings: tuple[Holding, ...] = ()
    """Who still holds files of dead mounts that have been replaced."""
    gaps: tuple[Gap, ...] = ()
    staging_data: Mapping[str, VolumeData] = field(default_factory=dict)
    """``vol_data.json`` beside a staging path that is only a name, by that path."""
    is_in_order: bool = True
    """The order of ``table`` is the one in which its mounts were made, not that of a copy."""
    anonymous_servers: tuple[FuseServer, ...] = ()
    """Servers of which the kernel does not tell the connection (before about 6.16)."""
    refused_owners: tuple[RefusedOwner, ...] = ()
    """Of whom not everything was looked at, since that is more than one owner may have."""
    tables: NamespaceTables = field(default_factory=NamespaceTables, compare=False, repr=False)
    """The mounts of ``namespaces``, indexed."""

    hidden_files: Mapping[str, HiddenFiles] = field(default_factory=dict)
    """What lies below volumes that were not mounted for some time, by the path on the node."""
    degraded: tuple[Degradation, ...] = ()
    """What the daemon goes on without."""

    keeper: KeeperView = NO_KEEPER
    """Connections that outlive their servers, and why others do not."""

    stand_ins: StandIns = field(default_factory=dict)
    """Dead mounts in the place of held ones, by id: ``table`` has what they took the place of."""

    def pods_to_restart(self) -> tuple[str, ...]:
        """Return the pods of which a process holds the root of a dead mount, by directory uid."""
        held = (h.pod_uid for holding in self.holdings for h in holding.holders if h.roots)
        return tuple(dict.fromkeys(uid for uid in held if uid))

    def is_dead(self, device: Device) -> bool:
        """Return True when the connection of a device is known to have no server any more."""
        connection = self.connections.get(device)
        return connection is not None and connection.is_dead

    def dead_devices(self) -> frozenset[Device]:
        """Return the devices whose connection has no server any more."""
        return frozenset(d for d, connection in self.connections.items() if connection.is_dead)

    def has_gap(self, source: str) -> bool:
        """Return True when this source of facts could not be read."""
        return any(gap.source == source for gap in self.gaps)
