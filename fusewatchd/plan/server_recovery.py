"""What to do about servers in one cycle, next to what is done about binds; pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from fusewatchd.config.settings import DeadSourceSettings
from fusewatchd.diagnose.exclusions import Scope
from fusewatchd.model.actions import DetachDeadSource, Outcome
from fusewatchd.model.findings import Finding
from fusewatchd.model.ledger import Ledger
from fusewatchd.model.plan import Plan
from fusewatchd.model.server_actions import CommandEnd, ServerMemory, ServerReport
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.plan import dead_sources, server_restart
from fusewatchd.plan.server_restart import ActionPolicy


@dataclass(frozen=True, slots=True)
class ServerPolicy:
    """What the configuration allows."""

    dead_sources: DeadSourceSettings = field(default_factory=DeadSourceSettings)
    actions: ActionPolicy = field(default_factory=ActionPolicy)


@dataclass(frozen=True, slots=True)
class ServerStep:
    """The plan with reasons that say more, the ledger, and what to do."""

    plan: Plan
    ledger: Ledger
    report: ServerReport


def split(outcomes: Iterable[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """Return the outcomes that are about binds, and those that are about sources."""
    binds: list[Outcome] = []
    sources: list[Outcome] = []
    for outcome in outcomes:
        is_source = isinstance(outcome.action, DetachDeadSource)
        (sources if is_source else binds).append(outcome)
    return binds, sources


def recover_servers(
    todo: Plan,
    findings: tuple[Finding, ...],
    snapshot: Snapshot,
    ledger: Ledger,
    outcomes: Iterable[Outcome],
    ends: Iterable[CommandEnd],
    policy: ServerPolicy,
    scope: Scope,
    now: float,
) -> ServerStep:
    """Decide about dead sources and about servers that are to be started again."""
    outcomes, ends = tuple(outcomes), tuple(ends)
    dead = dead_sources.step(
        findings,
        snapshot,
        ledger.facts,
        ledger.server_actions.sources,
        outcomes,
        policy.dead_sources,
        scope.mode,
        now,
    )
    acts = server_restart.step(findings, snapshot, ledger, ends, policy.actions, scope, now)
    due = [at for at in (dead.due_at, acts.due_at) if at is not None]
    report = ServerReport(
        dead.sources,
        acts.troubles,
        dead.detaches,
        acts.commands,
        outcomes,
        ends,
        min(due, default=None),
        dead.wants_look or acts.wants_look,
    )
    # Prefer the reason of a running action over "waiting".
    plan = todo.explained(acts.reasons).explained(dead_sources.reasons(dead.sources, snapshot))
    memory = ServerMemory(dead.watches, acts.attempts, acts.bucket)
    return ServerStep(plan, replace(ledger, server_actions=memory), report)
