"""From findings to actions, in an order in which each finds what it needs.

Pure: the present time is an argument.  Whatever is broken and not acted on is listed with
the reason; nothing is ever left out in silence.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from fusewatchd.config.settings import CleanupSettings
from fusewatchd.diagnose import propagation
from fusewatchd.diagnose.own_layers import has_own_base, is_own_top, layers_of
from fusewatchd.diagnose.sources import compare, place_of_another_user, subpath_of, type_change
from fusewatchd.model.actions import (
    Action,
    DetachOwnLayer,
    DropLayers,
    Expect,
    NamespaceRef,
    Propagation,
    ReplaceMount,
)
from fusewatchd.model.findings import Finding
from fusewatchd.model.ledger import ContainerFacts, Ledger
from fusewatchd.model.mounts import Device, Mount, TargetKey
from fusewatchd.model.plan import OnDiskPolicy, Plan, RecoveryMode, Refusal, SupersededPolicy
from fusewatchd.model.pods import BindKind
from fusewatchd.model.rights import Denied, Rights, denies_writing
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.plan import ended_pods, hung_connections
from fusewatchd.plan.child_mounts import plan_children
from fusewatchd.plan.on_disk import cover
from fusewatchd.plan.reach import Reach

LAYERS_SECONDS = 1.0
"""So long is an answer of what a stale mount covers waited for: not knowing costs a layer."""
MOST_OF_MOUNT_MAX = 0.9
"""The rest of what the kernel allows is for pods that start, and for others who repair."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the configuration allows."""

    mode: RecoveryMode = RecoveryMode.RECOVER
    superseded: SupersededPolicy = SupersededPolicy.REPORT
    max_table_entries: int = 50_000
    cleanup: CleanupSettings = field(default_factory=CleanupSettings)
    abort_after: int = 0
    """Confirmations after which a hung connection is aborted; 0: never."""
    keep_read_only: bool = False
    """A container that could never write gets its new mount read-only."""
    on_disk: OnDiskPolicy = OnDiskPolicy.REPORT


def table_limit(max_table_entries: int, mount_max: int | None) -> int:
    """Return with how many mounts on a node nothing is replaced there any more."""
    if mount_max is None:
        return max_table_entries
    return min(max_table_entries, int(mount_max * MOST_OF_MOUNT_MAX))


MANY_LAYERS = 64
"""Fewer than these are taken off within milliseconds when the new mount is attached."""
_WAITING_FOR_SOURCE = frozenset({Reason.SOURCE_MISSING, Reason.SOURCE_UNPROVEN})


RANKS: Mapping[BindKind, int] = {
    BindKind.PUBLISH: 0,
    BindKind.FLEXVOLUME: 0,
    BindKind.LOCAL: 0,
    BindKind.EMPTY_DIR: 0,
    BindKind.SUBPATH: 1,
    BindKind.CONTAINER: 2,
}


@dataclass(frozen=True, slots=True)
class _Look:
    """What every decision of one cycle is made from."""

    findings: Mapping[TargetKey, Finding]
    snapshot: Snapshot
    ledger: Ledger
    policy: Policy
    now: float
    dead: tuple[Device, ...]
    read_only_below: frozenset[str]
    denied: Denied
    reach: Reach


def plan(
    findings: Iterable[Finding],
    snapshot: Snapshot,
    ledger: Ledger,
    policy: Policy,
    now: float,
) -> Plan:
    """Decide what to do about every finding that asks for something."""
    findings = tuple(findings)
    known, dead = ledger.containers, tuple(sorted(snapshot.dead_devices()))
    by_key = {finding.bind.key: finding for finding in findings}
    read_only_below = propagation.read_only_below(known)
    denied = propagation.denied_below(known) if policy.keep_read_only else Denied()
    reach = Reach(frozenset(dead))
    look = _Look(by_key, snapshot, ledger, policy, now, dead, read_only_below, denied, reach)
    room = table_limit(policy.max_table_entries, snapshot.mount_max) - len(snapshot.table)
    actions: list[Action] = []
    refused: list[Refusal] = []
    replaced: set[TargetKey] = set()
    for finding in sorted(findings, key=_order):
        bind = finding.bind
        decision = _decide(finding, look, replaced, is_full=len(actions) >= room)
        if isinstance(decision, Refusal):
            refused.append(decision)
            decision = _layers_to_drop(decision, look)
        elif isinstance(decision, ReplaceMount):
            replaced.add(bind.key)
        if decision is not None:
            actions.append(decision)
    if policy.abort_after:
        abort, held_back = hung_connections.choose(
            findings, snapshot, ledger, policy.abort_after, policy.mode, now
        )
        refused += held_back
        actions += [abort] if abort is not None else []
    return Plan(tuple(actions), tuple(refused))


def _order(finding: Finding) -> tuple[int, tuple[bool, int, int], int, str]:
    """Host before containers, publish binds before what is inside or below them.

    A pod chooses names inside its containers, and can make namespaces of its own: what the
    runtime started comes first, then what is older.
    """
    bind, namespace = finding.bind, finding.bind.namespace
    age = (False, 0, 0)
    if namespace is not None:
        age = (not namespace.is_own, namespace.start_time, namespace.inode)
    point = bind.key.mount_point
    return RANKS[bind.path.kind], age, point.count("/"), point


def _decide(
    finding: Finding, look: _Look, replaced: Collection[TargetKey], *, is_full: bool
) -> Action | Refusal | None:
    """Say what to do about one finding.

    ``replaced`` are those before it that get another mount in this plan; ``is_full`` when this
    plan has no room for one more.
    """
    policy, state = look.policy, look.ledger.state(finding.bind.key)
    decision = _own_layer(finding, look) or ended_pods.step(
        finding, look.snapshot, look.ledger, policy.cleanup, policy.mode, look.now
    )
    if decision is not None:
        return decision
    if state.is_in_flight or not _wants_replacement(finding, look):
        return None
    source = _source_of(finding, look, replaced)
    reason = _forbidden(finding, source, look, is_full=is_full)
    if source is None or reason is not Reason.NONE:
        return Refusal(finding, reason)
    if look.now < state.retry_at:
        return Refusal(finding, Reason.BACK_OFF, state.retry_at)
    if finding.bind.underneath is not None:
        return cover(finding, finding.bind.underneath, source, look.findings, look.snapshot)
    return _replacement(finding, source, look)


def _wants_replacement(finding: Finding, look: _Look) -> bool:
    if finding.verdict in (Verdict.STALE, Verdict.ON_DISK):
        return True
    if finding.verdict is not Verdict.SUPERSEDED or finding.bind.mount is None:
        return False
    old = look.snapshot.connections.get(finding.bind.mount.device)
    # Nobody can use a server that refuses everything, whether it lives or not.
    is_useless = old is not None and old.refuses_all
    return is_useless or look.policy.superseded is SupersededPolicy.REBIND


def _source_of(finding: Finding, look: _Look, replaced: Collection[TargetKey]) -> Mount | None:
    """Return what a bind is to show after this plan.

    A container whose bind on the host may keep its old server, since that is alive, keeps
    it as well: what is wrong with the container's own mount does not wait for that to end.
    None where the bind on the host stays as it is this time: a container is cloned from there,
    so it would only fail, cycle after cycle.
    """
    source = finding.source_mount
    origin = look.findings.get(finding.bind.origin) if finding.bind.origin else None
    there = origin.bind.mount if origin is not None else None
    if source is None or origin is None or there is None or origin.bind.key in replaced:
        return source
    if origin.verdict is Verdict.SUPERSEDED and finding.verdict is Verdict.STALE:
        return there
    return source if there.device == source.device else None


def _forbidden(finding: Finding, source: Mount | None, look: _Look, *, is_full: bool) -> Reason:
    if finding.refusal in (Reason.POD_ENDING, Reason.DISABLED):
        return finding.refusal
    if finding.verdict is Verdict.ON_DISK and look.policy.on_disk is OnDiskPolicy.REPORT:
        return Reason.ON_DISK
    if finding.refusal is not Reason.NONE:
        return finding.refusal
    if finding.source_mount is None:
        return Reason.SOURCE_MISSING
    if look.policy.mode.withholds is not Reason.NONE:
        return look.policy.mode.withholds
    if is_full:
        return Reason.TABLE_FULL
    if source is None:
        return Reason.HOST_BIND_STALE
    return Reason.LAYERS_UNPROVEN if _waits_for_layers(finding, look) else Reason.NONE


def _waits_for_layers(finding: Finding, look: _Look) -> bool:
    """True while it is about to turn out whether what the stale mount covers is dead too."""
    for layer in layers_of(finding.bind, look.snapshot)[:-1]:
        connection = look.snapshot.connections.get(layer.device)
        if connection is None or connection.answer is not None:
            continue
        first = connection.first_asked_at
        if first is None or look.now < first + LAYERS_SECONDS:
            return True
    return False


# --------------------------------------------------------------------- replacement


def _replacement(finding: Finding, source: Mount, look: _Look) -> ReplaceMount | Refusal:
    bind, mount, key = finding.bind, finding.bind.mount, finding.bind.key
    assert mount is not None
    known = look.ledger.containers.get(key)
    children = plan_children(bind, look.snapshot, look.findings, look.ledger.containers)
    if children is None:
        return Refusal(finding, Reason.CHILD_MOUNT)
    if bind.origin is None:
        origin, subpath = Expect.of(source), subpath_of(mount, source) or ""
    else:
        # A container is served from its pod's bind as it will be when its turn comes.
        origin, subpath = Expect(bind.origin.mount_point, source.device), ""
    is_kept = _is_kept_read_only(key, known, source, look)
    less, more = compare(mount, source, is_kept_read_only=is_kept)
    stale = {*look.dead, mount.device} if finding.verdict is Verdict.SUPERSEDED else {*look.dead}
    # A bind on the host keeps its flags for the next container, unless one receives them.
    is_seen = not key.is_host or key.mount_point in look.denied.receiving
    return ReplaceMount(
        key=key,
        expect=Expect.of(mount),
        origin=origin,
        propagation=_propagation(key, known, mount, source, look, is_kept_read_only=is_kept),
        subpath=subpath,
        stale_devices=tuple(sorted(stale - {source.device})),
        own_layers=look.ledger.own_layers.get(key, ()),
        read_only=(is_kept and is_seen) or (known is not None and known.is_read_only),
        children=children,
        namespace=NamespaceRef.of(bind.namespace) if bind.namespace else None,
        source_place=place_of_another_user(bind.source, mount, source),
        narrower=less,
        wider=more,
        type_change=type_change(mount, source),
        pod_uid=bind.path.pod_uid,
        asks=bind.namespace is not None and look.reach.crosses_living(mount, bind.namespace),
    )


def _is_kept_read_only(
    key: TargetKey, known: ContainerFacts | None, source: Mount, look: _Look
) -> bool:
    """True where a pod could never write to this volume, and could from now on."""
    if not look.policy.keep_read_only or denies_writing(source):
        return False
    if key.is_host:
        return key.mount_point in look.denied.origins
    return known is not None and known.rights is Rights.DENIED


def _propagation(
    key: TargetKey,
    known: ContainerFacts | None,
    mount: Mount,
    source: Mount,
    look: _Look,
    *,
    is_kept_read_only: bool,
) -> Propagation:
    if known is not None:
        return known.propagation
    if not key.is_host:
        return Propagation.PRIVATE
    before = look.ledger.propagations.get(key)
    is_read_only_below = is_kept_read_only or key.mount_point in look.read_only_below
    return propagation.wanted(mount, source, before, is_read_only_below=is_read_only_below)


# -------------------------------------------------------------------------- layers


def _layers_to_drop(refusal: Refusal, look: _Look) -> DropLayers | None:
    """Use the time until the source is back: then all but one layer may be gone."""
    bind = refusal.finding.bind
    if refusal.reason not in _WAITING_FOR_SOURCE or look.policy.mode is not RecoveryMode.RECOVER:
        return None
    if bind.mount is None or not bind.key.is_host or bind.depth < MANY_LAYERS:
        return None
    if not all(layer.device in look.dead for layer in layers_of(bind, look.snapshot)[-2:]):
        return None
    expect, last = Expect.of(bind.mount), look.ledger.state(bind.key).last_outcome
    is_stuck = last is not None and isinstance(last.action, DropLayers)
    if is_stuck and last is not None and last.action.expect == expect:
        return None
    return DropLayers(bind.key, expect, look.dead, bind.path.pod_uid)


def _own_layer(finding: Finding, look: _Look) -> DetachOwnLayer | None:
    """Take away a layer of ours that would keep a pod from ending.

    Without BENEATH a driver that unmounts once, or in another namespace, takes the stale
    mount below ours and leaves ours behind.
    """
    bind, known = finding.bind, look.ledger.own_layers
    if bind.mount is None or not bind.key.is_host or not is_own_top(known, bind, look.snapshot):
        return None
    if look.policy.mode is not RecoveryMode.RECOVER or look.ledger.state(bind.key).is_in_flight:
        return None
    pod = (look.snapshot.pods or {}).get(bind.path.pod_uid)
    is_ending = finding.verdict is Verdict.ORPHANED or (pod is not None and pod.is_deleting)
    if not is_ending and not has_own_base(known, bind, look.snapshot):
        return None
    return DetachOwnLayer(bind.key, Expect.of(bind.mount), bind.mount.peer_group, bind.path.pod_uid)
