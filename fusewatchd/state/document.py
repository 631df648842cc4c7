"""What of the daemon's memory outlives it, as a document; pure.

Only what the node itself cannot tell any more once a source is gone: lineage, the layers of
our own, and what container mounts were like before the first repair; and what the kubelet told of
the pods with binds, so that nothing is switched on by not hearing from it; and the
outages: the last ones, and when and how those began that are not over.  Everything in it is
about mounts of one boot, and is believed only as far as those very mounts are still there.

Fields are only ever added, and what an older file lacks has a value here, so that neither an
upgrade nor the way back loses what is known.  Another version is for what an older daemon would
misread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fusewatchd.diagnose import lineage
from fusewatchd.errors import ParseError
from fusewatchd.json_values import decode, encode
from fusewatchd.model.actions import OwnLayer, Propagation
from fusewatchd.model.ledger import MAX_OUTAGES, ContainerFacts, Fact, Ledger, Owner
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, TargetKey
from fusewatchd.model.outages import Incident, Outage
from fusewatchd.model.servers import ServerEnd
from fusewatchd.model.stand_in import StandIn
from fusewatchd.model.stand_ins import as_before, merged, moved
from fusewatchd.text import printable

VERSION = 2
MAX_UPTIME_SECONDS = 1e10


@dataclass(frozen=True, slots=True)
class _OwnLayers:
    key: TargetKey
    layers: tuple[int, ...]
    """By unique id where there is one: all that earlier versions know of them."""
    mounts: tuple[OwnLayer, ...]


@dataclass(frozen=True, slots=True)
class _Container:
    key: TargetKey
    facts: ContainerFacts


@dataclass(frozen=True, slots=True)
class _HostBind:
    key: TargetKey
    propagation: Propagation


@dataclass(frozen=True, slots=True)
class _Owner:
    pod_uid: str
    owner: Owner


@dataclass(frozen=True, slots=True)
class _OpenOutage:
    """How an incident began; what is hit by it and what was recovered is seen again."""

    device: Device
    driver: str
    source_path: str
    noticed_at: float
    server_gone_at: float | None
    source_up_at: float | None
    end: ServerEnd | None


def _open_outages(ledger: Ledger) -> list[_OpenOutage]:
    return [
        _OpenOutage(
            one.device,
            one.driver,
            one.source_path,
            one.noticed_at,
            one.server_gone_at,
            one.source_up_at,
            one.end,
        )
        for one in ledger.incidents.values()
    ]


def is_same_memory(one: Ledger, other: Ledger) -> bool:
    """Return True when both would be written down alike."""
    return (
        one.facts == other.facts
        and one.own_layers == other.own_layers
        and one.containers == other.containers
        and one.propagations == other.propagations
        and one.owners == other.owners
        and one.outages == other.outages
        and (one.incidents is other.incidents or _open_outages(one) == _open_outages(other))
        and one.stand_ins == other.stand_ins
    )


def document_of(ledger: Ledger, boot_id: str) -> dict[str, Any]:
    """Return what is to be written down."""
    return {
        "version": VERSION,
        "boot_id": boot_id,
        "lineage": [encode(fact) for fact in ledger.facts.values()],
        "own_layers": [
            encode(_OwnLayers(key, tuple(m.unique_id or m.mount_id for m in layers), layers))
            for key, layers in ledger.own_layers.items()
        ],
        "containers": [encode(_Container(key, facts)) for key, facts in ledger.containers.items()],
        "host_binds": [encode(_HostBind(key, p)) for key, p in ledger.propagations.items()],
        "owners": [encode(_Owner(uid, owner)) for uid, owner in ledger.owners.items()],
        "outages": [encode(outage) for outage in ledger.outages],
        "open_outages": [encode(one) for one in _open_outages(ledger)],
        # Only where there are some: a node that holds nothing writes what it always wrote.
        **({"stand_ins": [encode(s) for s in ledger.stand_ins]} if ledger.stand_ins else {}),
    }


def ledger_from(
    document: object, boot_id: str, table: MountTable, noted: Iterable[StandIn] = ()
) -> Ledger:
    """Return the memory that still holds on this node.

    ``noted`` are stand-ins that are known from elsewhere, and may not be in the document.

    Raises:
        ParseError: it is from another boot or version, or not what was once written.
    """
    if not isinstance(document, Mapping):
        raise ParseError("not a state document")
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        raise ParseError(f"it has version {printable(repr(version), 40)}, not {VERSION}")
    if document.get("boot_id") != boot_id:
        raise ParseError("it is from another boot")
    known = merged(_stand_ins(document), noted)
    table, present = as_before(table, known)
    facts = [_fact(item) for item in _list(document, "lineage")]
    facts = [*moved({fact.mount_id: fact for fact in facts}, table, present).values()]
    layers = [_own_layers(item, table) for item in _list(document, "own_layers")]
    containers = [_container(item) for item in _list(document, "containers")]
    # A file written by an earlier version may lack these.
    document = {"host_binds": [], "owners": [], "outages": [], "open_outages": [], **document}
    host_binds = [decode(_HostBind, item) for item in _list(document, "host_binds")]
    owners = [decode(_Owner, item) for item in _list(document, "owners")]
    outages = [_outage(item) for item in _list(document, "outages")]
    shown = {mount.device for mount in table.fuse_mounts()}
    shown |= {item.facts.device for item in containers if item.facts.device is not None}
    incidents = [_incident(item) for item in _list(document, "open_outages")]
    return Ledger(
        facts=lineage.restore(facts, table),
        own_layers={item.key: item.mounts for item in layers if item.mounts},
        containers={item.key: item.facts for item in containers},
        propagations={item.key: item.propagation for item in host_binds},
        owners={item.pod_uid: item.owner for item in owners},
        outages=tuple(outages[-MAX_OUTAGES:]),
        incidents={one.device: one for one in incidents if one.device in shown},
        stand_ins=known,
    )


def _fact(item: object) -> Fact:
    """Read one fact; earlier versions wrote neither ages nor what was seen to work."""
    if isinstance(item, Mapping):
        item = {"tied": 1, "seen_working": True, "of_pod": None, "is_ordered": False, **item}
        places = item.get("candidates")
        if isinstance(places, list):
            aged = [{"unique_id": 0, **p} if isinstance(p, Mapping) else p for p in places]
            item["candidates"] = aged
            own = {name: item.get(name) for name in ("mount_point", "root", "unique_id")}
            item = {"is_place": own in aged, **item}
    fact = decode(Fact, item)
    if not 1 <= fact.tied <= max(1, len(fact.candidates)):
        raise ParseError(f"{fact.tied} of {len(fact.candidates)} candidates are alike")
    return fact


def _outage(item: object) -> Outage:
    outage = decode(Outage, item)
    times = (
        outage.noticed_at,
        outage.ended_at,
        outage.server_gone_at,
        outage.source_up_at,
        outage.recovered_at,
    )
    _check_times(times)
    return outage


def _incident(item: object) -> Incident:
    one = decode(_OpenOutage, item)
    ended_at = one.end.seen_at if one.end is not None else None
    _check_times((one.noticed_at, one.server_gone_at, one.source_up_at, ended_at))
    return Incident(
        one.device,
        one.driver,
        one.source_path,
        one.noticed_at,
        one.server_gone_at,
        one.source_up_at,
        end=one.end,
    )


def _check_times(times: Iterable[float | None]) -> None:
    if not all(0.0 <= moment < MAX_UPTIME_SECONDS for moment in times if moment is not None):
        raise ParseError("an outage at no time of this boot")


def _container(item: object) -> _Container:
    """Read what is known of a container's mount; earlier versions lack what is inside."""
    if isinstance(item, Mapping) and isinstance(item.get("facts"), Mapping):
        older: dict[str, Any] = {
            "inside": [],
            "rights": "unseen",
            "received": [],
            "driver": "",
            "source": None,
        }
        item = {**item, "facts": {**older, **item["facts"]}}
    return decode(_Container, item)


def _stand_ins(document: Mapping[Any, Any]) -> list[StandIn]:
    """Read the stand-ins; earlier versions made none."""
    found = document.get("stand_ins", [])
    return [decode(StandIn, item) for item in _list({"stand_ins": found}, "stand_ins")]


def _list(document: Mapping[Any, Any], name: str) -> list[Any]:
    found = document.get(name)
    if not isinstance(found, list):
        raise ParseError(f"{name} is no list")
    return found


def _own_layers(item: object, table: MountTable) -> _OwnLayers:
    """Read the layers at one place; those on the host must be there still.

    Who reads what an earlier version wrote takes over what the ids of its layers mean now.
    """
    if isinstance(item, Mapping) and "mounts" not in item:
        item = {**item, "mounts": []}
        read = decode(_OwnLayers, item)
        stack = table.stack_at(read.key.mount_point) if read.key.is_host else ()
        found = [m for m in stack if (m.unique_id or m.mount_id) in read.layers]
        return _OwnLayers(read.key, read.layers, tuple(OwnLayer.of(m) for m in found))
    read = decode(_OwnLayers, item)
    if not read.key.is_host:
        return read
    stack = table.stack_at(read.key.mount_point)
    there = tuple(layer for layer in read.mounts if any(map(layer.is_about, stack)))
    return _OwnLayers(read.key, read.layers, there)
