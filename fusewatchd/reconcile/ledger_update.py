"""How one cycle changes what the daemon remembers; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from fusewatchd.diagnose import lineage, propagation
from fusewatchd.diagnose.diagnosis import Diagnosis
from fusewatchd.diagnose.own_layers import still_there, with_layers, without
from fusewatchd.model.actions import (
    DetachOrphan,
    DetachOwnLayer,
    DropLayers,
    Outcome,
    OutcomeStatus,
    OwnLayer,
    ReplaceMount,
)
from fusewatchd.model.findings import Finding, SourceAnswer
from fusewatchd.model.ledger import Detached, Ledger, Place, TargetState
from fusewatchd.model.mounts import TargetKey
from fusewatchd.model.outages import Change, Phase
from fusewatchd.model.plan import Plan
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.parse.kubelet_paths import is_bound_from
from fusewatchd.plan import ended_pods
from fusewatchd.plan.back_off import BackOff
from fusewatchd.reconcile.container_facts import facts_of, remember_former, still_true
from fusewatchd.reconcile.lifecycle import Signal, advance, signal_of

UNDONE_SECONDS = 120.0
"""Replacing the same mount again within this time counts as a conflict with another tool."""

DONE = frozenset({OutcomeStatus.RECOVERED, OutcomeStatus.DETACHED, OutcomeStatus.ABORTED})


def take_outcomes(ledger: Ledger, outcomes: Iterable[Outcome], back_off: BackOff) -> Ledger:
    """End the attempts that the executor reports as ended."""
    states = dict(ledger.states)
    facts = dict(ledger.facts)
    outcomes = tuple(outcomes)
    own_layers = dict(ledger.own_layers)
    detached = ledger.detached
    for outcome in outcomes:
        action, mount = outcome.action, outcome.mount
        key = action.key
        if isinstance(action, DropLayers):
            states[key] = _after_dropping(states.get(key, TargetState()), outcome)
            continue
        state = _after_attempt(states.get(key, TargetState()), outcome, back_off)
        if _is_own_race(outcome, ledger.state(key), states):
            state = replace(state, retry_at=outcome.started_at)
        states[key] = state
        if isinstance(action, DetachOwnLayer):
            if outcome.status is OutcomeStatus.DETACHED:
                own_layers[key] = without(own_layers.get(key, ()), action.expect)
        elif isinstance(action, DetachOrphan):
            if outcome.status is OutcomeStatus.DETACHED:
                detached = Detached(detached.layers + 1, outcome.finished_at)
        elif isinstance(action, ReplaceMount) and mount is not None and key.is_host:
            # The source may be gone again before both were ever seen side by side.
            origin = action.origin
            source = Place(origin.mount_point, origin.root, origin.unique_id)
            is_of_pod = is_bound_from(key.mount_point, origin.mount_point)
            facts[mount.mount_id] = lineage.bound(mount, source, is_of_pod=is_of_pod)
    return replace(
        ledger,
        states=states,
        facts=facts,
        own_layers=with_layers(own_layers, _stacked(outcomes)),
        detached=detached,
    )


def _stacked(outcomes: Iterable[Outcome]) -> Iterable[tuple[TargetKey, OwnLayer]]:
    for outcome in outcomes:
        layer, mount = outcome.layer, outcome.mount
        if layer is not None:
            is_read_back = mount is not None and layer.is_about(mount)
            yield outcome.action.key, OwnLayer.of(mount) if mount and is_read_back else layer


def _after_attempt(state: TargetState, outcome: Outcome, back_off: BackOff) -> TargetState:
    if outcome.status in DONE:
        phase = advance(state.phase, Signal.SUCCEEDED)
        if not _is_repeated(state.last_outcome, outcome):
            return TargetState(phase, last_outcome=outcome)
        undone = state.undone + 1
        retry_at = outcome.finished_at + back_off.delay(outcome.action.key, undone)
        return TargetState(phase, retry_at=retry_at, last_outcome=outcome, undone=undone)
    # Somebody else was faster: no failure of ours, but no reason to spin either.
    failures = state.failures + (outcome.status is not OutcomeStatus.SKIPPED)
    return replace(
        state,
        phase=advance(state.phase, Signal.FAILED),
        failures=failures,
        retry_at=outcome.finished_at + back_off.delay(outcome.action.key, failures),
        is_in_flight=False,
        last_outcome=outcome,
    )


def _after_dropping(state: TargetState, outcome: Outcome) -> TargetState:
    """It is as stale as before, and what could not be done holds up no replacement."""
    if outcome.status is OutcomeStatus.DETACHED:
        return replace(state, is_in_flight=False)
    return replace(state, is_in_flight=False, last_outcome=outcome)


def _is_own_race(
    outcome: Outcome, before: TargetState, states: Mapping[TargetKey, TargetState]
) -> bool:
    """Return True when what came between was done by us.

    In a container, the replacement of the pod's bind on the host: what is detached there goes in
    its slaves as well.  It is true at most once for each such replacement.  On the host, another
    dead layer is on top: those above it were dropped, and the table did not tell so yet.
    """
    action = outcome.action
    if outcome.reason is not Reason.RACED or outcome.found is None:
        return False
    if not isinstance(action, ReplaceMount):
        return False
    if action.namespace is None:
        last = before.last_outcome
        is_first = last is None or last.reason is not Reason.RACED
        return is_first and outcome.found.device in action.stale_devices
    host = states.get(TargetKey(0, action.origin.mount_point))
    if host is None or host.last_outcome is None or host.last_outcome.status not in DONE:
        return False
    last = before.last_outcome
    return last is None or last.finished_at < host.last_outcome.finished_at


def _is_repeated(before: Outcome | None, outcome: Outcome) -> bool:
    """Return True when just this was done before: somebody undoes it again and again.

    After a crash it is another superblock, since the dead one was shown until it was replaced.
    """
    if before is None or before.mount is None or outcome.mount is None:
        return False
    is_soon = outcome.finished_at - before.finished_at < UNDONE_SECONDS
    return is_soon and before.mount.device == outcome.mount.device


def take_diagnosis(ledger: Ledger, diagnosis: Diagnosis, snapshot: Snapshot) -> Ledger:
    """Remember what diagnosis learned about the node."""
    findings = diagnosis.findings
    hosts = [f.bind for f in findings if f.bind.key.is_host and f.bind.mount is not None]
    # What an earlier run remembered waits for the first look at the other namespaces.
    has_looked = bool(snapshot.namespaces_looked_at)
    remembered = ledger.containers
    containers = still_true(remembered, snapshot) if has_looked else dict(remembered)
    by_key = {bind.key: bind for bind in hosts}
    for finding in findings:
        bind = finding.bind
        if bind.namespace is not None and bind.mount is not None:
            origin = by_key.get(bind.origin) if bind.origin else None
            known = ledger.facts_of(bind.namespace, bind.key.mount_point)
            containers[bind.key] = facts_of(bind, origin, known, snapshot)
    binds = (finding.bind for finding in findings)
    return replace(
        ledger,
        facts=diagnosis.facts,
        published=_published(ledger, findings, snapshot),
        containers=containers,
        propagations=propagation.learn(ledger.propagations, findings, snapshot),
        former=remember_former(ledger.former, hosts, snapshot),
        own_layers=still_there(ledger.own_layers, binds, snapshot),
        owners=diagnosis.owners,
        dead_roots=diagnosis.dead_roots,
        over_since=ended_pods.over_since(ledger.over_since, hosts, snapshot),
    )


def _published(
    ledger: Ledger, findings: Iterable[Finding], snapshot: Snapshot
) -> dict[str, SourceAnswer]:
    """Keep vanished binds only as long as a current pod list could tell that they are bare."""
    published = {f.bind.key.mount_point: f.bind.source for f in findings if f.bind.key.is_host}
    if not snapshot.pods_are_current:
        for path, answer in ledger.published.items():
            published.setdefault(path, answer)
    return published


def take_plan(
    ledger: Ledger, findings: Iterable[Finding], plan: Plan, outcomes: Iterable[Outcome], now: float
) -> tuple[Ledger, tuple[Change, ...]]:
    """Move every bind to its next phase; return the ledger and what changed."""
    dropping = frozenset(a.key for a in plan.actions if isinstance(a, DropLayers))
    submitted = frozenset(action.key for action in plan.actions) - dropping
    refusals = {refusal.finding.bind.key: refusal.reason for refusal in plan.refused}
    ended = {outcome.action.key: outcome for outcome in outcomes}
    states: dict[TargetKey, TargetState] = {}
    changes: list[Change] = []
    for finding in findings:
        key = finding.bind.key
        before = ledger.state(key)
        state = _next_state(before, finding, key in submitted, now)
        refusal = refusals.get(key)
        if refusal is not None and refusal is not state.last_refusal:
            state = replace(state, last_refusal=refusal)
        if key in dropping:
            state = replace(state, is_in_flight=True)
        states[key] = state
        outcome = ended.get(key)
        if outcome is not None or state.phase is not before.phase or key not in ledger.states:
            changes.append(Change(finding, _phase_before(before, outcome), state.phase, outcome))
    for key, state in ledger.states.items():
        # Its outcome is still to come: until then a vanished bind is not forgotten.
        if key not in states and state.is_in_flight:
            states[key] = state
    return replace(ledger, states=states), tuple(changes)


def _phase_before(before: TargetState, outcome: Outcome | None) -> Phase:
    """The outcome was already taken when the phases are compared."""
    return Phase.RECOVERING if outcome is not None else before.phase


def _next_state(
    state: TargetState, finding: Finding, is_submitted: bool, now: float
) -> TargetState:
    phase = state.phase
    if phase is Phase.COOLDOWN and now >= state.retry_at and finding.verdict is Verdict.STALE:
        phase = advance(phase, Signal.BACK_OFF_OVER)
    phase = advance(phase, signal_of(finding.verdict))
    if is_submitted:
        if phase is Phase.HEALTHY or phase is Phase.COOLDOWN:
            phase = Phase.STALE
        return replace(state, phase=advance(phase, Signal.SUBMITTED), is_in_flight=True)
    if phase is Phase.HEALTHY and (state.failures or (state.retry_at and not state.undone)):
        return TargetState(phase, last_outcome=state.last_outcome)
    return state if phase is state.phase else replace(state, phase=phase)


def next_retry(ledger: Ledger, plan: Plan) -> float | None:
    """Return when the first thing that waits for a time is due; None when nothing does."""
    waiting = [s.retry_at for s in ledger.states.values() if s.phase is Phase.COOLDOWN]
    waiting += [r.retry_at for r in plan.refused if r.retry_at is not None]
    return min(waiting, default=None)
