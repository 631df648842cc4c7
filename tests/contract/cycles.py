"""The real reconciler over a stage: what the daemon would plan next, and remember."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fusewatchd.act.replace_mount import carry_out
from fusewatchd.config.settings import DriverSettings, FluidSettings
from fusewatchd.diagnose.diagnosis import Knowledge
from fusewatchd.drivers import drivers_for
from fusewatchd.linux.mount_kernel import MountKernel
from fusewatchd.model.actions import Action, Outcome, OutcomeStatus, OwnLayer, ReplaceMount
from fusewatchd.model.cycle import Trigger
from fusewatchd.model.findings import Gap
from fusewatchd.model.kubelet import plain_directory
from fusewatchd.model.mounts import Device, MountNamespace, NamespaceKind, TargetKey
from fusewatchd.model.pods import Pod
from fusewatchd.model.quota import RefusedOwner
from fusewatchd.model.server_actions import CommandEnd, RunCommand
from fusewatchd.model.servers import Answer, Connection
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason
from fusewatchd.plan.back_off import BackOff
from fusewatchd.plan.budget import DEFAULT
from fusewatchd.plan.flapping import FlapRule
from fusewatchd.plan.planner import Policy
from fusewatchd.plan.server_recovery import ServerPolicy
from fusewatchd.reconcile.reconciler import Policies, Reconciler
from fusewatchd.state.document import document_of, ledger_from

if TYPE_CHECKING:
    from tests.contract.stage import Container, Stage

UID = "aaaaaaaa-0000-4000-8000-000000000001"
MOST_CYCLES = 4
"""Until everything must be as it shall be."""


class NoCommands:
    """Nothing is configured that could be run."""

    def submit(self, commands: Sequence[RunCommand], now: float) -> None:
        assert not commands

    def collect(self, now: float) -> list[CommandEnd]:
        return []


class Daemon:
    """The real reconciler over a stage; what it submits is carried out when a test says so."""

    def __init__(self, stage: Stage, fluid_mount_root: str) -> None:
        self._stage = stage
        self._now = 0.0
        self._outcomes: list[Outcome] = []
        self.planned: tuple[Action, ...] = ()
        self.sees_covered = True
        """What other mounts cover has answered, as far as it ever did."""
        knowledge = Knowledge(
            drivers_for(DriverSettings(FluidSettings(fluid_mount_root))), frozenset()
        )
        self.policy = Policy()
        self._knowledge = knowledge
        self._journal: list[tuple[TargetKey, OwnLayer]] = []
        self.restart()

    def restart(self, *, remembers: bool = False) -> None:
        """Begin anew, with what a state file keeps or with nothing but the journal."""
        document = document_of(self._reconciler.ledger, "boot") if remembers else None
        self._outcomes, self.planned = [], ()
        policies = Policies(
            self._knowledge, self.policy, ServerPolicy(), BackOff(), FlapRule(), DEFAULT
        )
        self._reconciler = Reconciler(
            self, self, NoCommands(), policies, lambda: self._now, lambda: self._journal
        )
        if document is not None:
            ledger = ledger_from(json.loads(json.dumps(document)), "boot", self._stage.mounts())
            self._reconciler.ledger = ledger

    def forget_journal(self) -> None:
        """What a node is like whose runtime directory is new."""
        self._journal.clear()

    # What the reconciler asks for.

    def observe(self, now: float) -> Snapshot:
        stage = self._stage
        answers = {d: Answer.ANSWERED for v in stage.volumes for d in (v.live, *v.draining)}
        answers |= {d: Answer.DISCONNECTED for v in stage.volumes for d in v.dead}
        if not self.sees_covered:
            tops = self._on_top()
            answers = {device: answer for device, answer in answers.items() if device in tops}
        pod = Pod(UID, UID, "shop", "web", "Running", stage.pod_is_ending)
        return Snapshot(
            now,
            stage.mounts(),
            plain_directory(stage.root),
            {device: Connection(device, a, answered_at=now) for device, a in answers.items()},
            namespaces=tuple(self._namespace(c) for c in stage.living()),
            pods={} if stage.pod_is_gone else {UID: pod},
            pods_are_current=True,
            namespaces_looked_at=now,
        )

    def _on_top(self) -> set[Device]:
        stage, tops = self._stage, set()
        for container in (None, *stage.living()):
            table = stage.mounts(container)
            points = {m.mount_point for m in table}
            tops |= {table.stack_at(point)[-1].device for point in points}
        return tops

    def _namespace(self, container: Container) -> MountNamespace:
        is_pod = container.kind is NamespaceKind.CONTAINER
        ref, uid = container.ref, UID if is_pod else ""
        stage = self._stage
        mounts = tuple(stage.stale_looks.get(container) or stage.mounts(container))
        return MountNamespace(
            ref.inode, ref.pid, ref.start_time, container.kind, uid, "c" * 64, mounts
        )

    def take_outcomes(self, outcomes: Sequence[Outcome], now: float) -> None:
        pass

    def submit(self, actions: Sequence[Action], now: float) -> None:
        self.planned = tuple(actions)

    def collect(self, now: float) -> list[Outcome]:
        done, self._outcomes = self._outcomes, []
        return done

    is_idle = False

    def dispatch_next(self, now: float) -> None:
        pass

    gaps: tuple[Gap, ...] = ()
    refused_owners: tuple[RefusedOwner, ...] = ()

    # What a test asks for.

    def look(self) -> tuple[Action, ...]:
        """Run one cycle, long after the last one, and return what it wants done."""
        self._now += 1000.0
        self._reconciler.reconcile([Trigger.TIMER])
        return self.planned

    def act(self, kernel: MountKernel | None = None) -> list[Outcome]:
        """Carry out what was planned, with the stage's kernel or one that is disturbed."""
        kernel = kernel or self._stage.kernel
        done: list[Outcome] = []
        try:
            while self.planned:
                done.append(carry_out(kernel, self.planned[0], self._note))
                self.planned = self.planned[1:]
        finally:
            self._outcomes += done
            self.lose_worker()
        return done

    def _note(self, key: TargetKey, layer: OwnLayer) -> None:
        self._journal.append((key, layer))

    def lose_worker(self) -> None:
        """What a worker had in hand when it was killed has failed."""
        for action in self.planned:
            self._outcomes.append(Outcome(action, OutcomeStatus.FAILED, Reason.TIMED_OUT))
        self.planned = ()

    def cycle(self) -> list[Outcome]:
        self.look()
        return self.act()

    def settle(self) -> list[Outcome]:
        """Run cycles until nothing is left to do, or all that is left is refused.

        Then the same is refused again and again, after longer and longer pauses.
        """
        done: list[Outcome] = []
        for _ in range(MOST_CYCLES):
            outcomes = self.cycle()
            done += outcomes
            if all(outcome.status is OutcomeStatus.REFUSED for outcome in outcomes):
                self._reconciler.reconcile([Trigger.TIMER])
                return done
        raise AssertionError(f"the daemon does not come to rest: {outcomes}")

    def replacement(self) -> ReplaceMount:
        """Look, and return the only thing to do."""
        (action,) = self.look()
        assert isinstance(action, ReplaceMount), action
        return action
