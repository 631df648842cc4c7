"""From findings to actions, in an order in which each finds what it needs.

Pure: the present time is an argument.  Whatever is broken and not acted on is listed with
the reason; nothing is ever left out in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fusewatchd.config.settings import CleanupSettings
from fusewatchd.diagnose import propagation
from fusewatchd.diagnose.own_layers import has_own_base, is_own_top, layers_of
from fusewatchd.diagnose.sources import compare, subpath_of, type_change
from fusewatchd.model.actions import (
    AbortConnection,
    Action,
    DetachOrphan,
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
from fusewatchd.model.plan import Plan, RecoveryMode, Refusal, SupersededPolicy
from fusewatchd.model.pods import BindKind
from fusewatchd.model.rights import Denied, Rights, denies_writing
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.plan import ended_pods
from fusewatchd.plan.child_mounts import ChildrenUnknownError, plan_children
from fusewatchd.plan.hung_connections import HungConnections
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


def plan(
    findings: Iterable[Finding],
    snapshot: Snapshot,
    ledger: Ledger,
    policy: Policy,
    now: float,
) -> Plan:
    """Decide what to do about every finding that asks for something."""
    findings = tuple(findings)
    planner = _Planner(snapshot, ledger, policy, now, findings)
    for finding in sorted(findings, key=_order):
        planner.consider(finding)
    if policy.abort_after:
        planner.consider_hung(findings)
    return Plan((*planner.actions, *planner.last), tuple(planner.refused))


def _order(finding: Finding) -> tuple[int, int, str]:
    """Host before containers, publish binds before what is inside or below them."""
    bind = finding.bind
    return RANKS[bind.path.kind], bind.key.mount_point.count("/"), bind.key.mount_point


class _Planner:
    """Collects the plan of one cycle; lives no longer than that."""

    def __init__(
        self,
        snapshot: Snapshot,
        ledger: Ledger,
        policy: Policy,
        now: float,
        findings: tuple[Finding, ...],
    ) -> None:
        self.actions: list[Action] = []
        self.last: list[Action] = []
        """What another living server may hold up, so that it holds up nothing else."""
        self.refused: list[Refusal] = []
        self._snapshot = snapshot
        self._ledger = ledger
        self._policy = policy
        self._now = now
        self._replaced: set[TargetKey] = set()
        self._findings = {finding.bind.key: finding for finding in findings}
        self._read_only_below = propagation.read_only_below(ledger.containers)
        self._denied = (
            propagation.denied_below(ledger.containers) if policy.keep_read_only else Denied()
        )
        self._dead = tuple(sorted(snapshot.dead_devices()))
        self._reach = Reach(frozenset(self._dead))

    def consider(self, finding: Finding) -> None:
        """Add an action, a refusal or nothing."""
        if self._ends_with_own_layer(finding) or self._is_left_over(finding):
            return
        if not self._wants_replacement(finding):
            return
        state = self._ledger.state(finding.bind.key)
        if state.is_in_flight:
            return
        reason = self._forbidden(finding)
        if reason is not Reason.NONE:
            self.refused.append(Refusal(finding, reason))
            if reason in _WAITING_FOR_SOURCE:
                self._drop_layers(finding)
        elif self._now < state.retry_at:
            self.refused.append(Refusal(finding, Reason.BACK_OFF, state.retry_at))
        else:
            self._replace(finding)

    def _drop_layers(self, finding: Finding) -> None:
        """Use the time until the source is back: then all but one layer may be gone."""
        bind, last = finding.bind, self._ledger.state(finding.bind.key).last_outcome
        if bind.mount is None or not bind.key.is_host or bind.depth < MANY_LAYERS:
            return
        if self._policy.mode is RecoveryMode.REPORT:
            return
        layers = layers_of(bind, self._snapshot)
        if not all(layer.device in self._dead for layer in layers[-2:]):
            return
        expect = Expect.of(bind.mount)
        is_stuck = last is not None and isinstance(last.action, DropLayers)
        if is_stuck and last is not None and last.action.expect == expect:
            return
        self.actions.append(DropLayers(bind.key, expect, self._dead))

    def _wants_replacement(self, finding: Finding) -> bool:
        if finding.verdict is Verdict.STALE:
            return True
        if finding.verdict is not Verdict.SUPERSEDED or finding.bind.mount is None:
            return False
        old = self._snapshot.connections.get(finding.bind.mount.device)
        # Nobody can use a server that refuses everything, whether it lives or not.
        is_useless = old is not None and old.refuses_all
        return is_useless or self._policy.superseded is SupersededPolicy.REBIND

    def _forbidden(self, finding: Finding) -> Reason:
        if finding.refusal is not Reason.NONE:
            return finding.refusal
        if finding.source_mount is None:
            return Reason.SOURCE_MISSING
        if self._policy.mode is RecoveryMode.REPORT:
            return Reason.REPORT_ONLY
        limit = table_limit(self._policy.max_table_entries, self._snapshot.mount_max)
        if len(self._snapshot.table) + len(self.actions) + len(self.last) >= limit:
            return Reason.TABLE_FULL
        if self._waits_for_host(finding):
            return Reason.HOST_BIND_STALE
        return Reason.LAYERS_UNPROVEN if self._waits_for_layers(finding) else Reason.NONE

    def _waits_for_host(self, finding: Finding) -> bool:
        """True for a container whose bind on the host stays as it is this time.

        It is cloned from there, so it would only be tried in vain, cycle after cycle.
        """
        origin = self._findings.get(finding.bind.origin) if finding.bind.origin else None
        if origin is None or origin.bind.mount is None or finding.source_mount is None:
            return False
        is_there = origin.bind.mount.device == self._source_of(finding).device
        return not is_there and origin.bind.key not in self._replaced

    def _source_of(self, finding: Finding) -> Mount:
        """Return what a bind is to show after this plan.

        A container whose bind on the host may keep its old server, since that is alive, keeps
        it as well: what is wrong with the container's own mount does not wait for that to end.
        """
        assert finding.source_mount is not None
        origin = self._findings.get(finding.bind.origin) if finding.bind.origin else None
        if origin is None or origin.bind.mount is None or origin.bind.key in self._replaced:
            return finding.source_mount
        is_kept = origin.verdict is Verdict.SUPERSEDED and finding.verdict is Verdict.STALE
        return origin.bind.mount if is_kept else finding.source_mount

    def _waits_for_layers(self, finding: Finding) -> bool:
        """True while it is about to turn out whether what the stale mount covers is dead too."""
        connections = self._snapshot.connections
        for layer in layers_of(finding.bind, self._snapshot)[:-1]:
            connection = connections.get(layer.device)
            if connection is None or connection.answer is not None:
                continue
            first = connection.first_asked_at
            if first is None or self._now < first + LAYERS_SECONDS:
                return True
        return False

    # ------------------------------------------------------------------ replacement

    def _replace(self, finding: Finding) -> None:
        mount, source = finding.bind.mount, self._source_of(finding)
        assert mount is not None
        if finding.bind.origin is None:
            origin, subpath = Expect.of(source), subpath_of(mount, source) or ""
        else:
            origin, subpath = self._host_origin(finding, source), ""
        known = self._ledger.containers.get(finding.bind.key)
        try:
            inside = self._known_inside(mount, known)
            children = plan_children(
                finding.bind,
                self._snapshot,
                self._findings,
                inside,
                known.received if known is not None else (),
                is_slave=known is not None and known.propagation is Propagation.SLAVE,
            )
        except ChildrenUnknownError:
            self.refused.append(Refusal(finding, Reason.CHILD_MOUNT))
            return
        self._replaced.add(finding.bind.key)
        is_kept = self._is_kept_read_only(finding, source)
        less, more = compare(mount, source, is_kept_read_only=is_kept)
        namespace = finding.bind.namespace
        is_last = namespace is not None and self._reach.crosses_living(mount, namespace)
        (self.last if is_last else self.actions).append(
            ReplaceMount(
                key=finding.bind.key,
                expect=Expect.of(mount),
                origin=origin,
                propagation=self._propagation(finding, mount, source, is_kept_read_only=is_kept),
                subpath=subpath,
                stale_devices=self._stale_devices(finding, mount, source.device),
                own_layers=self._ledger.own_layers.get(finding.bind.key, ()),
                read_only=self._is_read_only(finding, is_kept_read_only=is_kept),
                children=children,
                namespace=_namespace_ref(finding),
                narrower=less,
                wider=more,
                type_change=type_change(mount, source),
            )
        )

    def _is_kept_read_only(self, finding: Finding, source: Mount) -> bool:
        """True where a pod could never write to this volume, and could from now on."""
        if not self._policy.keep_read_only or denies_writing(source):
            return False
        if finding.bind.key.is_host:
            return finding.bind.key.mount_point in self._denied.origins
        known = self._ledger.containers.get(finding.bind.key)
        return known is not None and known.rights is Rights.DENIED

    def _is_read_only(self, finding: Finding, *, is_kept_read_only: bool) -> bool:
        """A bind on the host keeps its flags for the next container, unless one receives them."""
        key = finding.bind.key
        if key.is_host:
            return is_kept_read_only and key.mount_point in self._denied.receiving
        known = self._ledger.containers.get(key)
        return is_kept_read_only or (known is not None and known.is_read_only)

    def _known_inside(self, mount: Mount, known: ContainerFacts | None) -> tuple[Mount, ...] | None:
        """Return what must be inside a container's volume although it may be gone by now.

        What is gone from a living file system was unmounted by somebody; what a container
        shares with the host is taken from there as it is.
        """
        if known is None or mount.device not in self._dead:
            return None
        return None if known.propagation is Propagation.PEER else known.inside

    def _host_origin(self, finding: Finding, source: Mount) -> Expect:
        """A container is served from its pod's bind as it will be when its turn comes."""
        assert finding.bind.origin is not None
        return Expect(finding.bind.origin.mount_point, source.device)

    def _propagation(
        self, finding: Finding, mount: Mount, source: Mount, *, is_kept_read_only: bool
    ) -> Propagation:
        key = finding.bind.key
        known = self._ledger.containers.get(key)
        if known is not None:
            return known.propagation
        if not key.is_host:
            return Propagation.PRIVATE
        before = self._ledger.propagations.get(key)
        is_read_only_below = is_kept_read_only or key.mount_point in self._read_only_below
        return propagation.wanted(mount, source, before, is_read_only_below=is_read_only_below)

    def _stale_devices(self, finding: Finding, mount: Mount, source: Device) -> tuple[Device, ...]:
        devices = set(self._dead)
        if finding.verdict is Verdict.SUPERSEDED:
            devices.add(mount.device)
        devices.discard(source)
        return tuple(sorted(devices))

    # ------------------------------------------------------------- hung connections

    def consider_hung(self, findings: tuple[Finding, ...]) -> None:
        """Add at most one hung connection to abort, and why the others are left alone."""
        policy = self._policy
        hung = HungConnections(findings, self._snapshot, self._ledger)
        choice = hung.choose(policy.abort_after, policy.mode, self._now)
        self.refused += choice.refused
        finding = choice.finding
        if finding is None or finding.bind.mount is None:
            return
        expect, times = Expect.of(finding.bind.mount), choice.confirmations
        self.actions.append(
            AbortConnection(finding.bind.key, expect, times, _namespace_ref(finding))
        )

    # -------------------------------------------------------------------- own layers

    def _ends_with_own_layer(self, finding: Finding) -> bool:
        """Take away a layer of ours that would keep a pod from ending.

        Without BENEATH a driver that unmounts once, or in another namespace, takes the stale
        mount below ours and leaves ours behind.
        """
        bind = finding.bind
        known = self._ledger.own_layers
        if bind.mount is None or not bind.key.is_host:
            return False
        if not is_own_top(known, bind, self._snapshot):
            return False
        if self._policy.mode is RecoveryMode.REPORT or self._ledger.state(bind.key).is_in_flight:
            return False
        pod = (self._snapshot.pods or {}).get(bind.path.pod_uid)
        is_ending = finding.verdict is Verdict.ORPHANED or (pod is not None and pod.is_deleting)
        lost_its_base = has_own_base(known, bind, self._snapshot)
        if not (is_ending or lost_its_base):
            return False
        self.actions.append(DetachOwnLayer(bind.key, Expect.of(bind.mount), bind.mount.peer_group))
        return True

    def _is_left_over(self, finding: Finding) -> bool:
        """Take away what a pod that is over left behind, where that is switched on."""
        policy = self._policy
        step = ended_pods.step(
            finding, self._snapshot, self._ledger, policy.cleanup, policy.mode, self._now
        )
        match step:
            case DetachOrphan():
                self.actions.append(step)
            case Refusal():
                self.refused.append(step)
        return step is not None


def _namespace_ref(finding: Finding) -> NamespaceRef | None:
    namespace = finding.bind.namespace
    if namespace is None:
        return None
    return NamespaceRef(
        namespace.inode,
        namespace.pid,
        namespace.start_time,
        namespace.own_user_namespace,
        namespace.users_pid,
    )
