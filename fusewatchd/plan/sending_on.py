"""When the callers of a held connection may be sent on into the new mount; pure.

The keeper answers them with ESTALE, and the kernel walks their paths once more.  It forgives that
once: a caller that comes out in an old mount again gets the error.  A request does not say from
which mount namespace it comes.  So all wait until the mounts of the host and of all containers are
replaced, and a look that began after that found none left.

An incident is closed by just that, ``reconcile.incidents``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.held import HeldConnection
from fusewatchd.model.mounts import Device
from fusewatchd.model.outages import Incident
from fusewatchd.model.verdicts import Reason

LOOP_SECONDS = 60.0
"""A server that ends so soon after the last one may end again at once."""
PROVEN_SECONDS = 2.0
"""For so long its successor has to live then."""
FINAL = frozenset(
    {
        Reason.DISABLED,
        Reason.IDMAP,
        Reason.LOCKED,
        Reason.POD_ENDING,
        Reason.CHILD_MOUNT,
        Reason.SUBPATH_MISSING,
        Reason.SUBPATH_UNSAFE,
        Reason.TYPE_MISMATCH,
        Reason.DIRECTORY_DROPPED,
        Reason.FORBIDDEN,
    }
)
"""Refusals that waiting does not change: those mounts hold up no others."""


@dataclass(frozen=True, slots=True)
class _Ready:
    """A connection of which everything is replaced."""

    source_path: str
    not_before: float


@dataclass(frozen=True, slots=True)
class SendingOn:
    """What is remembered between two cycles."""

    ready: Mapping[Device, _Ready] = field(default_factory=dict)
    deaths: Mapping[str, float] = field(default_factory=dict)
    """When the last held server of each source ended."""
    looping: frozenset[Device] = frozenset()
    """Those whose server ended soon after the one before it."""


def may_send_on(
    before: SendingOn, cycle: CycleReport, held: Mapping[Device, HeldConnection]
) -> tuple[SendingOn, tuple[Device, ...]]:
    """Return what to remember, and the connections whose callers may be answered now."""
    now = cycle.snapshot.taken_at
    dead = {device for device, one in held.items() if one.is_dead and not one.is_answered}
    ready = {device: kept for device, kept in before.ready.items() if device in dead}
    deaths = {path: at for path, at in before.deaths.items() if now - at < LOOP_SECONDS}
    looping = set(before.looping & dead)
    open_now = cycle.ledger.incidents
    for incident in cycle.incidents_opened:
        if incident.device in dead:
            looping |= {incident.device} if incident.source_path in deaths else set()
            deaths[incident.source_path] = incident.noticed_at
    closed = {incident.device: incident for incident in cycle.incidents_closed}
    for device, incident in {**closed, **open_now}.items():
        if device not in dead or device in ready:
            continue
        if device in open_now and not _is_as_good_as_closed(incident, cycle):
            continue
        if not incident.recovered_targets:
            continue  # nothing was replaced, and nothing is left: the kernel ends it
        up_at = incident.source_up_at if incident.source_up_at is not None else now
        not_before = up_at + PROVEN_SECONDS if device in looping else now
        ready[device] = _Ready(incident.source_path, not_before)
    troubled = {i.source_path for device, i in open_now.items() if device not in ready}
    done = tuple(
        sorted(d for d, r in ready.items() if now >= r.not_before and r.source_path not in troubled)
    )
    left = {device: kept for device, kept in ready.items() if device not in done}
    return SendingOn(left, deaths, frozenset(looping)), done


def due_at(memory: SendingOn) -> float | None:
    """Return when the first of those that wait for nothing else may be answered."""
    return min((kept.not_before for kept in memory.ready.values()), default=None)


def _is_as_good_as_closed(incident: Incident, cycle: CycleReport) -> bool:
    """True when what is left of an outage is refused for good, and the rest was replaced."""
    last = incident.last_recovery_at
    if not incident.recovered_targets or last is None:
        return False
    if cycle.snapshot.namespaces_looked_at < last:
        return False
    refused = {r.finding.bind.key: r.reason for r in cycle.plan.refused}
    states = cycle.ledger.states
    return all(
        refused.get(key) in FINAL and not (key in states and states[key].is_in_flight)
        for key in incident.open_targets
    )
