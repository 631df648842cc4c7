"""How many mounts may be replaced on the whole node.

The last line of defence: whatever makes mounts stale again and again, and whatever is wrong
with the rules before this one, the node has a rest from it.  A crash, also the worst one, is
far below the burst.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from fusewatchd.model.actions import ReplaceMount
from fusewatchd.model.findings import Finding
from fusewatchd.model.ledger import Ledger
from fusewatchd.model.mounts import TargetKey
from fusewatchd.model.plan import Plan, Refusal
from fusewatchd.model.verdicts import Reason
from fusewatchd.rate_limit import Rate

REST_SECONDS = 0.5
"""Once spent, nothing is replaced for so long, and then what has come together meanwhile: a
cycle for every single token would cost more than the replacements."""
ROUNDING = 1e-6
DEFAULT = Rate(per_second=200.0, burst=5000.0)


def ration(
    todo: Plan, findings: Iterable[Finding], ledger: Ledger, rate: Rate, now: float
) -> tuple[Plan, Ledger]:
    """Refuse what is beyond the budget and spend what is not; return plan and ledger.

    Those that were replaced or tried last come last, so whoever needs it again and again
    never holds up one that needs it once, and all have their turn.
    """
    wanted = [action for action in todo.actions if isinstance(action, ReplaceMount)]
    budget = ledger.budget
    left = 0 if now < budget.resumes_at else int(budget.bucket.left(rate, now) + ROUNDING)
    spent = min(len(wanted), max(0, left))
    if spent:
        budget = replace(budget, bucket=budget.bucket.take(spent, rate, now))
    if spent < len(wanted):
        if now >= budget.resumes_at:
            budget = replace(budget, resumes_at=now + _rest(rate))
        known = {finding.bind.key: finding for finding in findings}
        late = _by_turn(wanted, known, ledger)[spent:]
        todo = todo.without(
            Refusal(known[action.key], Reason.BUDGET, budget.resumes_at) for action in late
        )
    return todo, replace(ledger, budget=budget)


def _rest(rate: Rate) -> float:
    """At least for one token, and never until tokens are lost because the bucket is full."""
    return max(1.0, min(REST_SECONDS * rate.per_second, rate.burst)) / rate.per_second


def _by_turn(
    wanted: Iterable[ReplaceMount], findings: Mapping[TargetKey, Finding], ledger: Ledger
) -> list[ReplaceMount]:
    """Order by who had to wait longest.

    What hangs on one bind of the host stays together and in order: a container is served from
    it.  Of those that wait equally long each source has one in turn.
    """
    groups: dict[TargetKey, list[ReplaceMount]] = {}
    for action in wanted:
        bind = findings[action.key].bind
        groups.setdefault(bind.origin or bind.key, []).append(action)
    places: dict[str, int] = {}
    turns: list[tuple[float, int, list[ReplaceMount]]] = []
    for group in groups.values():
        source = source_of(findings[group[0].key])
        place = places[source] = places.get(source, 0) + 1
        turns.append((min(_tried_at(action, ledger) for action in group), place, group))
    turns.sort(key=lambda turn: turn[:2])
    return [action for _, _, group in turns for action in group]


def _tried_at(action: ReplaceMount, ledger: Ledger) -> float:
    outcome = ledger.state(action.key).last_outcome
    return outcome.finished_at if outcome is not None else float("-inf")


def source_of(finding: Finding) -> str:
    """Return the path of a bind's source; empty when it is not known or not the only one."""
    candidates = finding.bind.source.candidates
    return candidates[0].mount_point if len(candidates) == 1 else ""
