"""One cycle: observe, diagnose, plan, act, report.

Level-triggered: what woke the cycle is never looked at, so any cycle may be lost, repeated
or cut between two actions, and the next one converges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from fusewatchd.diagnose.diagnosis import Diagnosis, Knowledge, diagnose
from fusewatchd.diagnose.exclusions import Scope
from fusewatchd.diagnose.own_layers import dead_layers, recalled
from fusewatchd.model import quota
from fusewatchd.model.actions import (
    Action,
    DropLayers,
    Outcome,
    OutcomeStatus,
    OwnLayer,
    PlaceStandIns,
)
from fusewatchd.model.cycle import CycleReport, Trigger
from fusewatchd.model.findings import Finding, Gap
from fusewatchd.model.ledger import Ledger, remember_outages
from fusewatchd.model.mounts import TargetKey
from fusewatchd.model.outages import Change
from fusewatchd.model.plan import RecoveryMode
from fusewatchd.model.quota import RefusedOwner
from fusewatchd.model.server_actions import CommandEnd, RunCommand
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.stand_ins import moved, real
from fusewatchd.plan.back_off import BackOff
from fusewatchd.plan.budget import over_their_share, ration
from fusewatchd.plan.flapping import FlapRule, follow_sources, hold_back, pauses
from fusewatchd.plan.planner import Policy, plan
from fusewatchd.plan.server_recovery import ServerPolicy, ServerStep, recover_servers, split
from fusewatchd.plan.stand_ins import plan_stand_ins
from fusewatchd.plan.stand_ins import take_outcomes as after_placing
from fusewatchd.rate_limit import Rate
from fusewatchd.reconcile.incidents import IncidentStep, follow, follow_services
from fusewatchd.reconcile.ledger_update import take_diagnosis, take_outcomes, take_plan


class Observes(Protocol):
    """The reading side of the node."""

    def observe(self, now: float) -> Snapshot:
        """Look at everything that may have changed."""

    def take_outcomes(self, outcomes: Sequence[Outcome], now: float) -> None:
        """Note what the executor changed in other namespaces, and the stand-ins that it made."""

    def expect_stand_ins(self) -> None:
        """Note that stand-ins may be there at any moment from now on, until an outcome says so."""


class Executes(Protocol):
    """The writing side of the node."""

    def submit(self, actions: Sequence[Action], now: float) -> None:
        """Accept actions without waiting for them."""

    def collect(self, now: float) -> list[Outcome]:
        """Return what has ended since the last call."""

    def dispatch_next(self, now: float) -> None:
        """Give who has ended the next of what was accepted; ``collect`` tells of it later."""

    @property
    def is_idle(self) -> bool:
        """True when every action has ended."""

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Say why what was accepted cannot be begun."""

    @property
    def refused_owners(self) -> tuple[RefusedOwner, ...]:
        """Name those who hold as many workers as one owner may."""


class RunsCommands(Protocol):
    """Programs of the node that bring servers back."""

    def submit(self, commands: Sequence[RunCommand], now: float) -> None:
        """Accept commands without waiting for them."""

    def collect(self, now: float) -> list[CommandEnd]:
        """Return what has ended since the last call."""


@dataclass(frozen=True, slots=True)
class Policies:
    """What the configuration says to each step of a cycle; a reload replaces all of it."""

    diagnosis: Knowledge
    planning: Policy
    servers: ServerPolicy
    back_off: BackOff
    flapping: FlapRule
    budget: Rate


@dataclass(frozen=True, slots=True)
class _Ended:
    """What was under way and has ended since the last cycle."""

    of_binds: tuple[Outcome, ...]
    of_sources: tuple[Outcome, ...]
    of_stand_ins: tuple[Outcome, ...]
    commands: tuple[CommandEnd, ...]


class Reconciler:
    """Owns the ledger; everything else it uses is handed to it."""

    def __init__(
        self,
        observer: Observes,
        executor: Executes,
        commands: RunsCommands,
        policies: Policies,
        clock: Callable[[], float],
        recall: Callable[[], Iterable[tuple[TargetKey, OwnLayer]]],
    ) -> None:
        """Begin with an empty ledger.

        Args:
            observer: reads the node.
            executor: changes mounts.
            commands: runs programs that start servers.
            policies: may be replaced between two cycles.
            clock: seconds, monotonic.
            recall: returns the layers that workers were about to make, also those of which no
                outcome told.
        """
        self.policies = policies
        self.ledger = Ledger()
        self.paused_until: float | None = None
        """In seconds since 1970; as long as it is set, nothing is changed on the node."""
        self._observer = observer
        self._executor = executor
        self._commands = commands
        self._clock = clock
        self._recall = recall
        self._number = 0
        self._meant: dict[Action, Action] = {}
        """What was planned, by what was ordered where a stand-in is in the place of its mount."""

    @property
    def _planning(self) -> Policy:
        planning = self.policies.planning
        if self.paused_until is None or planning.mode is not RecoveryMode.RECOVER:
            return planning
        return replace(planning, mode=RecoveryMode.PAUSED)

    def reconcile(self, triggers: Sequence[Trigger]) -> CycleReport:
        """Run one cycle and return what reporters may know of it."""
        started = self._clock()
        ended = self._collect(started)
        self._observer.take_outcomes((*ended.of_binds, *ended.of_stand_ins), started)
        snapshot = self._observer.observe(started)
        gaps, refused = self._executor.gaps, self._executor.refused_owners
        if gaps or refused:
            refused = (*snapshot.refused_owners, *refused)
            snapshot = replace(snapshot, gaps=(*snapshot.gaps, *gaps), refused_owners=refused)
        diagnosis, ledger = self._learn(ended, snapshot)
        done = self._decide(diagnosis, snapshot, ledger, ended)
        actions = (*done.plan.actions, *done.report.detaches)
        stand_ins, placing = plan_stand_ins(
            snapshot, done.ledger.placing, self._planning.mode, started
        )
        if stand_ins:
            self._observer.expect_stand_ins()
        self._executor.submit((*stand_ins, *self._ordered(actions, snapshot)), started)
        self._commands.submit(done.report.commands, started)
        told = tuple(o for o in ended.of_binds if not isinstance(o.action, DropLayers))
        done = replace(done, ledger=replace(done.ledger, placing=placing))
        spent = over_their_share(done.ledger.budget, self.policies.budget, started)
        refused = (*snapshot.refused_owners, *diagnosis.refused_owners, *spent)
        changes, step = self._remember(done, diagnosis.findings, told, snapshot, refused)
        self._number += 1
        return CycleReport(
            number=self._number,
            triggers=tuple(triggers),
            started_at=started,
            finished_at=self._clock(),
            snapshot=snapshot,
            findings=diagnosis.findings,
            plan=done.plan,
            outcomes=told,
            changes=changes,
            ledger=self.ledger,
            mode=self._planning.mode,
            paused_until=self.paused_until,
            superseded=self.policies.planning.superseded,
            incidents_opened=step.opened,
            incidents_closed=step.closed,
            foreign_stale=diagnosis.foreign_stale,
            pauses=pauses(self.ledger.sources, self.policies.flapping),
            unproven=diagnosis.unproven,
            unclaimed=diagnosis.unclaimed,
            dead_roots=diagnosis.dead_roots,
            uncovered=diagnosis.uncovered,
            dead_layers=dead_layers(
                (finding.bind for finding in diagnosis.findings), snapshot, self.ledger.own_layers
            ),
            server_actions=done.report,
        )

    def _collect(self, now: float) -> _Ended:
        outcomes = self._executor.collect(now)
        of_stand_ins = tuple(o for o in outcomes if isinstance(o.action, PlaceStandIns))
        if self._meant:
            meant = (self._meant.pop(o.action, o.action) for o in outcomes)
            outcomes = [replace(o, action=a) for o, a in zip(outcomes, meant, strict=True)]
        others = (o for o in outcomes if not isinstance(o.action, PlaceStandIns))
        of_binds, of_sources = split(others)
        commands = tuple(self._commands.collect(now))
        return _Ended(tuple(of_binds), tuple(of_sources), of_stand_ins, commands)

    def _ordered(self, actions: Iterable[Action], snapshot: Snapshot) -> Iterator[Action]:
        """Yield what is to be done to the mounts that are there."""
        for action in actions:
            order = real(action, snapshot.stand_ins) if snapshot.stand_ins else action
            if order is not action:
                self._meant[order] = action
            yield order

    def _learn(self, ended: _Ended, snapshot: Snapshot) -> tuple[Diagnosis, Ledger]:
        """Judge every bind, and put what is known now into the ledger."""
        policies, outcomes = self.policies, ended.of_binds
        ledger = take_outcomes(self.ledger, outcomes, policies.back_off)
        if snapshot.stand_ins or ended.of_stand_ins:
            facts = moved(ledger.facts, snapshot.table, snapshot.stand_ins)
            placing = after_placing(ledger.placing, ended.of_stand_ins)
            ledger = replace(ledger, facts=facts, placing=placing)
        if self._number == 0 or any(o.status is OutcomeStatus.FAILED for o in outcomes):
            layers = recalled(ledger.own_layers, self._recall())
            ledger = replace(ledger, own_layers=layers)
        diagnosis = diagnose(snapshot, ledger, policies.diagnosis)
        self._feed_workers()
        ledger = take_diagnosis(ledger, diagnosis, snapshot)
        now, rule = snapshot.taken_at, policies.flapping
        sources = follow_sources(ledger.sources, diagnosis.findings, outcomes, snapshot, rule, now)
        self._feed_workers()
        return diagnosis, replace(ledger, sources=sources)

    def _feed_workers(self) -> None:
        """Give workers that are free their next actions: thousands of binds take long to judge."""
        if not self._executor.is_idle:
            self._executor.dispatch_next(self._clock())

    def _decide(
        self, diagnosis: Diagnosis, snapshot: Snapshot, ledger: Ledger, ended: _Ended
    ) -> ServerStep:
        """Plan what is done about binds and about their servers."""
        policies, findings, now = self.policies, diagnosis.findings, snapshot.taken_at
        planning = self._planning
        todo = plan(findings, snapshot, ledger, planning, now)
        todo = hold_back(todo, findings, ledger.sources, policies.flapping, now)
        todo, ledger = ration(todo, findings, ledger, policies.budget, now)
        scope = Scope(planning.mode, policies.diagnosis.switches)
        done = ended.of_sources, ended.commands
        return recover_servers(
            todo, findings, snapshot, ledger, *done, policies.servers, scope, now
        )

    def _remember(
        self,
        done: ServerStep,
        findings: tuple[Finding, ...],
        outcomes: tuple[Outcome, ...],
        snapshot: Snapshot,
        refused: tuple[RefusedOwner, ...],
    ) -> tuple[tuple[Change, ...], IncidentStep]:
        """Put what was decided into the ledger; return what changed with it."""
        now = snapshot.taken_at
        ledger, changes = take_plan(done.ledger, findings, done.plan, outcomes, now)
        step = follow(ledger.incidents, findings, outcomes, ledger.states, snapshot, now)
        outages = remember_outages(ledger.outages, step.closed, now)
        services = follow_services(ledger.services, step, findings)
        self.ledger = replace(
            ledger,
            stand_ins=tuple(snapshot.stand_ins.values()),
            incidents=step.open,
            outages=outages,
            services=services,
            refused_owners=quota.follow(ledger.refused_owners, refused, now),
        )
        return changes, step
