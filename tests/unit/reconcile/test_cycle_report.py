"""A finished cycle is one moment, for threads too that ask while the next one runs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

from fusewatchd.diagnose.diagnosis import Knowledge
from fusewatchd.model.actions import Action, DetachOrphan, Expect, Outcome, OutcomeStatus
from fusewatchd.model.cycle import CycleReport, Trigger
from fusewatchd.model.findings import Gap
from fusewatchd.model.kubelet import plain_directory
from fusewatchd.model.ledger import TargetState
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, TargetKey
from fusewatchd.model.outages import Phase
from fusewatchd.model.quota import RefusedOwner
from fusewatchd.model.server_actions import CommandEnd, RunCommand
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.plan.back_off import BackOff
from fusewatchd.plan.budget import DEFAULT
from fusewatchd.plan.flapping import FlapRule
from fusewatchd.plan.planner import Policy
from fusewatchd.plan.server_recovery import ServerPolicy
from fusewatchd.reconcile.reconciler import Policies, Reconciler
from fusewatchd.status.document import status_document
from fusewatchd.status.values import Clocks

POLICIES = Policies(
    Knowledge((), frozenset()), Policy(), ServerPolicy(), BackOff(), FlapRule(), DEFAULT
)
ORPHAN = DetachOrphan(TargetKey(0, "/pods/x"), Expect("/pods/x", Device(0, 9)))
CYCLES = 30


class Node:
    """Every cycle of this node hears that one more layer was detached."""

    def observe(self, now: float) -> Snapshot:
        return Snapshot(now, MountTable.of([]), plain_directory("/var/lib/kubelet"))

    def take_outcomes(self, outcomes: Sequence[Outcome], now: float) -> None: ...

    def submit(self, actions: Sequence[Action], now: float) -> None: ...

    def collect(self, now: float) -> list[Outcome]:
        return [Outcome(ORPHAN, OutcomeStatus.DETACHED, finished_at=now)]

    is_idle = True

    def dispatch_next(self, now: float) -> None: ...

    gaps: tuple[Gap, ...] = ()
    refused_owners: tuple[RefusedOwner, ...] = ()


class Commands:
    """Nothing is ever run."""

    def submit(self, commands: Sequence[RunCommand], now: float) -> None: ...

    def collect(self, now: float) -> list[CommandEnd]:
        return []


def next_cycle(reconciler: Reconciler) -> CycleReport:
    states = {ORPHAN.key: TargetState(Phase.RECOVERING, is_in_flight=True)}
    reconciler.ledger = replace(reconciler.ledger, states=states)
    return reconciler.reconcile([Trigger.TIMER])


def test_an_answer_never_mixes_a_cycle_with_the_memory_of_the_next_one() -> None:
    node = Node()
    reconciler = Reconciler(node, node, Commands(), POLICIES, lambda: 1.0, tuple)
    last: list[CycleReport] = [next_cycle(reconciler)]
    wrong: list[tuple[object, object]] = []
    is_over = threading.Event()
    answered = threading.Semaphore(0)

    def ask() -> None:
        while not is_over.is_set():
            made = status_document(last[0], Clocks(1e9, 1.0, 1e9), version="1", way="beneath")
            told = made["cycle"], made["orphans_detached"]["layers"]
            if told[0] != told[1]:
                wrong.append(told)
            answered.release()

    client = threading.Thread(target=ask)
    client.start()
    try:
        for _ in range(CYCLES):
            cycle = next_cycle(reconciler)
            # Reporters run between the end of a cycle and its publication: clients ask then, too.
            while answered.acquire(blocking=False):
                pass
            for _ in range(2):
                assert answered.acquire(timeout=10)
            last[0] = cycle
    finally:
        is_over.set()
        client.join(10)
    assert not client.is_alive()
    assert (last[0].number, last[0].ledger.detached.layers) == (CYCLES + 1, CYCLES + 1)
    assert not wrong
