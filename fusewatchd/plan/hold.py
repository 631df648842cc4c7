"""Which connections the keeper holds, and why not the others; pure.

A connection is held while its server is well, for the time after the end of that server.  It is
held only where the end of one known process is the end of its service.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from fusewatchd.diagnose.exclusions import Switches, is_left_alone, leaves_containers_alone
from fusewatchd.model.findings import Bind, Finding
from fusewatchd.model.held import Caller, HeldConnection, Hold, HoldRefusal, NotHeld
from fusewatchd.model.ledger import Owner
from fusewatchd.model.mounts import Device
from fusewatchd.model.plan import RecoveryMode
from fusewatchd.model.quota import Resource
from fusewatchd.model.servers import FuseServer
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Verdict

_ALIVE = frozenset({Verdict.HEALTHY, Verdict.SLOW, Verdict.SUPERSEDED})
UNSERVED_SECONDS = 2.0
"""More than a server takes to end after it has closed its descriptor."""
_UNSEEN = frozenset({Resource.WALK, Resource.DESCRIPTORS, Resource.SERVERS})


@dataclass(frozen=True, slots=True)
class HoldPolicy:
    """What the configuration says about holding."""

    drivers: tuple[str, ...] = ()
    """Globs of drivers or types of file systems; empty: nothing is held."""
    grace_seconds: float = 10.0
    mode: RecoveryMode = RecoveryMode.RECOVER
    switches: Switches = field(default_factory=Switches)
    has_stand_ins: bool = True
    """The kernel has all that it takes to put a dead mount in the place of a held one."""


@dataclass(frozen=True, slots=True)
class HoldPlan:
    """What is to be held now."""

    holds: tuple[Hold, ...] = ()
    releases: tuple[Device, ...] = ()
    """Held ones with a living server, which are not to be held any longer."""
    refused: tuple[HoldRefusal, ...] = ()
    unserved: Mapping[Device, float] = field(default_factory=dict)
    """When looks began to find no server of a held connection, whose process lives."""


NOTHING = HoldPlan()


def is_named(bind: Bind, patterns: Iterable[str]) -> bool:
    """Return True for a mount of a driver or type of file system that one of the globs names."""
    mount = bind.mount
    names = (bind.driver, mount.fs_type, mount.subtype) if mount is not None else (bind.driver,)
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names if name)


def choose_holds(
    findings: Iterable[Finding],
    snapshot: Snapshot,
    owners: Mapping[str, Owner],
    policy: HoldPolicy,
    held: Mapping[Device, HeldConnection],
    before: HoldPlan = NOTHING,
) -> HoldPlan:
    """Return the connections to hold, and the reason for each that is named and is not held.

    One whose server has ended is never released here: the keeper does that, by its own clock.
    One whose server lives on without its descriptor is, after ``UNSERVED_SECONDS``: the keeper
    cannot notice that.  A server that ends in order closes its descriptor a moment before it ends.
    ``before`` is the last plan: callers go on to wait when their own mount is replaced.
    """
    if not policy.drivers and not held:
        return HoldPlan()
    # What no container shows may only not have been seen yet, before the first whole look.
    may_release = bool(snapshot.namespaces_looked_at) and not snapshot.has_gap("namespaces")
    by_device: dict[Device, list[Finding]] = {}
    for finding in findings:
        bind = finding.bind
        if bind.namespace is not None and bind.mount is not None:
            by_device.setdefault(bind.mount.device, []).append(finding)
    holds: list[Hold] = []
    refused: list[HoldRefusal] = []
    without: dict[Device, float] = {}
    looked_at = snapshot.namespaces_looked_at
    for device, shown in sorted(by_device.items()):
        driver, known = shown[0].bind.driver, held.get(device)
        if known is not None and (known.is_dead or snapshot.is_dead(device)):
            waiting = next((h.callers for h in before.holds if h.device == device), ())
            holds.append(Hold(device, driver, _callers(shown, snapshot, waiting)))
            continue
        is_wanted = any(is_named(finding.bind, policy.drivers) for finding in shown)
        is_alive = any(finding.verdict in _ALIVE for finding in shown)
        if not is_wanted or not (is_alive or known):
            continue
        servers = snapshot.servers.get(device, ())
        reason = _reason(shown, servers, snapshot, owners, policy)
        is_seen = may_release and reason is not NotHeld.NOT_EVERYBODY_SEEN
        if known is not None and is_seen and reason is NotHeld.SERVER_UNKNOWN:
            without[device] = before.unserved.get(device, looked_at)
            is_seen = looked_at >= without[device] + UNSERVED_SECONDS
        if known is not None and not is_seen:
            # What was seen when it was taken may only not be seen now.
            holds.append(Hold(device, driver, _callers(shown, snapshot)))
        elif reason is None:
            holds.append(Hold(device, driver, _callers(shown, snapshot), servers[0]))
        else:
            refused.append(HoldRefusal(device, driver, reason, _detail(reason, servers)))
    gone = (h for h in before.holds if h.device in held and h.device not in by_device)
    # Every mount of it is replaced, and the keeper does not know that yet.
    holds += [hold for hold in gone if held[hold.device].is_dead]
    kept = {hold.device for hold in holds}
    lost = (d for d, h in held.items() if not (h.is_dead or snapshot.is_dead(d) or d in kept))
    releases = tuple(sorted(lost)) if may_release else ()
    return HoldPlan(tuple(holds), releases, tuple(refused), without)


def _callers(
    shown: Iterable[Finding], snapshot: Snapshot, waiting: tuple[Caller, ...] = ()
) -> tuple[Caller, ...]:
    pods = snapshot.pods or {}
    found = {caller.pid: caller for caller in waiting}
    for finding in shown:
        namespace, pod = finding.bind.namespace, pods.get(finding.bind.path.pod_uid)
        if namespace is not None and namespace.pid:
            is_deleting = pod is not None and pod.is_deleting
            found[namespace.pid] = Caller(namespace.pid, namespace.start_time, is_deleting)
    return tuple(found[pid] for pid in sorted(found))


def _reason(
    shown: list[Finding],
    servers: tuple[FuseServer, ...],
    snapshot: Snapshot,
    owners: Mapping[str, Owner],
    policy: HoldPolicy,
) -> NotHeld | None:
    if policy.mode is not RecoveryMode.RECOVER:
        return NotHeld.REPORT_ONLY
    if not policy.has_stand_ins:
        return NotHeld.KERNEL
    if any(f.bind.mount is not None and f.bind.mount.fs_type == "fuseblk" for f in shown):
        return NotHeld.BLOCK_DEVICE
    if any(_is_off(finding.bind, owners, policy.switches) for finding in shown):
        return NotHeld.SWITCHED_OFF
    if any(one.resource in _UNSEEN for one in snapshot.refused_owners):
        return NotHeld.NOT_EVERYBODY_SEEN
    if len(servers) > 1:
        return NotHeld.OTHER_HOLDER
    if servers:
        return None
    anonymous = bool(snapshot.anonymous_servers)
    return NotHeld.CONNECTION_UNKNOWN if anonymous else NotHeld.SERVER_UNKNOWN


def _is_off(bind: Bind, owners: Mapping[str, Owner], switches: Switches) -> bool:
    owner = owners.get(bind.path.pod_uid)
    return is_left_alone(bind, switches, owner) or leaves_containers_alone(bind, switches, owner)


def _detail(reason: NotHeld, servers: tuple[FuseServer, ...]) -> str:
    if reason is not NotHeld.OTHER_HOLDER:
        return ""
    return "processes " + ", ".join(f"{server.pid} ({server.name})" for server in servers[:4])
