"""One cycle: observe, diagnose, plan, act, report.

Level-triggered: what woke the cycle is never looked at, so any cycle may be lost, repeated
or cut between two actions, and the next one converges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from fusewatchd import budget
from fusewatchd.actions import Action, Outcome, OutcomeStatus, OwnLayer
from fusewatchd.breaker import FlapRule, follow_sources, hold_back, pauses
from fusewatchd.bucket import Rate
from fusewatchd.budget import ration
from fusewatchd.decision import CycleReport, Trigger
from fusewatchd.diagnosis import Knowledge, diagnose
from fusewatchd.history import remember
from fusewatchd.incidents import follow
from fusewatchd.ledger import Ledger
from fusewatchd.memory import BackOff, take_diagnosis, take_outcomes, take_plan
from fusewatchd.model import TargetKey
from fusewatchd.ownlayers import recalled
from fusewatchd.planner import Policy, plan
from fusewatchd.remedies import CommandEnd, RunCommand
from fusewatchd.remedying import RemedyPolicy, remedy, split
from fusewatchd.services import follow_services
from fusewatchd.snapshot import Snapshot


class Observes(Protocol):
    """The reading side of the node."""

    def observe(self, now: float) -> Snapshot:
        """Look at everything that may have changed."""

    def take_outcomes(self, outcomes: Sequence[Outcome], now: float) -> None:
        """Note what the executor changed in other namespaces."""


class Executes(Protocol):
    """The writing side of the node."""

    def submit(self, actions: Sequence[Action], now: float) -> None:
        """Accept actions without waiting for them."""

    def collect(self, now: float) -> list[Outcome]:
        """Return what has ended since the last call."""

    def take_in(self, now: float) -> None:
        """Give who has ended the next of what was accepted; ``collect`` tells of it later."""


class RunsCommands(Protocol):
    """Programs of the node that bring servers back."""

    def submit(self, commands: Sequence[RunCommand], now: float) -> None:
        """Accept commands without waiting for them."""

    def collect(self, now: float) -> list[CommandEnd]:
        """Return what has ended since the last call."""


class Reconciler:
    """Owns the ledger; everything else it uses is handed to it."""

    def __init__(
        self,
        observer: Observes,
        executor: Executes,
        knowledge: Knowledge,
        policy: Policy,
        back_off: BackOff,
        clock: Callable[[], float],
        ledger: Ledger | None = None,
        flap_rule: FlapRule | None = None,
        rate: Rate = budget.DEFAULT,
        recall: Callable[[], Iterable[tuple[TargetKey, OwnLayer]]] = tuple,
        commands: RunsCommands | None = None,
        remedy_policy: RemedyPolicy | None = None,
    ) -> None:
        """Begin with what an earlier run remembered, if anything.

        ``recall`` returns the layers that workers were about to make, those too of which no
        outcome told.
        """
        self.knowledge = knowledge
        self.policy = policy
        self.back_off = back_off
        self.flap_rule = flap_rule or FlapRule()
        self.rate = rate
        self.remedy_policy = remedy_policy or RemedyPolicy()
        self.ledger = ledger or Ledger()
        self._observer = observer
        self._executor = executor
        self._commands = commands
        self._clock = clock
        self._recall = recall
        self._number = 0

    def reconcile(self, triggers: Sequence[Trigger]) -> CycleReport:
        """Run one cycle and return what reporters may know of it."""
        started = self._clock()
        outcomes, of_sources = split(self._executor.collect(started))
        ends = self._commands.collect(started) if self._commands else []
        self._observer.take_outcomes(outcomes, started)
        snapshot = self._observer.observe(started)

        ledger = take_outcomes(self.ledger, outcomes, self.back_off)
        if self._number == 0 or any(o.status is OutcomeStatus.FAILED for o in outcomes):
            layers = recalled(ledger.own_layers, self._recall())
            ledger = replace(ledger, own_layers=layers)
        diagnosis = diagnose(snapshot, ledger, self.knowledge)
        findings = diagnosis.findings
        self._executor.take_in(self._clock())  # on a node with many binds all this takes long
        ledger = take_diagnosis(ledger, diagnosis, snapshot)
        sources = follow_sources(
            ledger.sources, findings, outcomes, snapshot, self.flap_rule, started
        )
        ledger = replace(ledger, sources=sources)

        self._executor.take_in(self._clock())
        todo = plan(findings, snapshot, ledger, self.policy, started)
        todo = hold_back(todo, findings, sources, self.flap_rule, started)
        todo, ledger = ration(todo, findings, ledger, self.rate, started)
        done = remedy(
            todo, findings, snapshot, ledger, of_sources, ends, self.remedy_policy, started
        )
        todo, ledger, remedies = done.plan, done.ledger, done.report
        self._executor.submit((*todo.actions, *remedies.detaches), started)
        if self._commands:
            self._commands.submit(remedies.commands, started)

        ledger, changes = take_plan(ledger, findings, todo, outcomes, started)
        step = follow(ledger.incidents, findings, outcomes, ledger.states, snapshot, started)
        outages = remember(ledger.outages, step.closed, started)
        services = follow_services(ledger.services, step, findings)
        self.ledger = replace(ledger, incidents=step.open, outages=outages, services=services)
        self._number += 1
        return CycleReport(
            number=self._number,
            triggers=tuple(triggers),
            started_at=started,
            finished_at=self._clock(),
            snapshot=snapshot,
            findings=findings,
            plan=todo,
            outcomes=tuple(outcomes),
            changes=changes,
            incidents_opened=step.opened,
            incidents_closed=step.closed,
            gaps=snapshot.gaps,
            foreign_stale=diagnosis.foreign_stale,
            pauses=pauses(sources, self.flap_rule),
            services=services,
            unproven=diagnosis.unproven,
            unclaimed=diagnosis.unclaimed,
            remedies=remedies,
        )
