"""An order to try now clears what is waited for, and nothing else."""

from __future__ import annotations

from dataclasses import replace

from fusewatchd.model.ledger import Ledger, SourceLife, TargetState
from fusewatchd.model.server_actions import Attempts, ServerMemory
from fusewatchd.model.verdicts import Verdict
from fusewatchd.plan.budget import source_of
from fusewatchd.reconcile.orders import tried_now
from tests.unit.cycles import bind, finding


def test_it_clears_back_off_and_flapping_of_these_alone() -> None:
    one = finding(bind(), Verdict.STALE)
    path, key = source_of(one), one.bind.key
    other = key._replace(mount_point="/other")
    state = TargetState(failures=7, retry_at=99.0, undone=2)
    life = SourceLife(None, unused_mounts=(1.0, 2.0))
    ledger = Ledger(
        states={key: state, other: state},
        sources={path: life, "/elsewhere": life},
        server_actions=ServerMemory(attempts={path: Attempts(3, 99.0), "/x": Attempts(3, 99.0)}),
    )
    after = tried_now(ledger, [one])
    assert after.states == {key: replace(state, retry_at=0.0), other: state}
    assert after.sources == {path: replace(life, unused_mounts=()), "/elsewhere": life}
    assert after.server_actions.attempts == {path: Attempts(3, 0.0), "/x": Attempts(3, 99.0)}


def test_what_was_never_seen_stays_unknown() -> None:
    one = finding(bind(), Verdict.STALE)
    assert tried_now(Ledger(), [one]) == Ledger()
