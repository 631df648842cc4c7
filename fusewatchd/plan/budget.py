"""How many mounts may be replaced on the whole node, and for one pod.

The last line of defence: whatever makes mounts stale again and again, and whatever is wrong
with the rules before this one, the node has a rest from it.  A crash, also the worst one, is
far below the burst.  One pod never spends more than its share of that, however many binds it
has or makes, so that something is left for the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from fusewatchd.model.actions import ReplaceMount
from fusewatchd.model.findings import Finding
from fusewatchd.model.ledger import Budget, Ledger, Spent
from fusewatchd.model.mounts import TargetKey
from fusewatchd.model.plan import Plan, Refusal
from fusewatchd.model.quota import RefusedOwner, Resource, pod
from fusewatchd.model.verdicts import Reason
from fusewatchd.rate_limit import Rate

REST_SECONDS = 0.5
"""Once spent, nothing is replaced for so long, and then what has come together meanwhile: a
cycle for every single token would cost more than the replacements."""
ROUNDING = 1e-6
DEFAULT = Rate(per_second=200.0, burst=5000.0)
SHARES = 4
"""A pod has a quarter of what the node has."""
LEAST_BURST_OF_POD = 512.0
"""Twice the binds that a pod may have in its containers at least (``model.quota``), if the node
has as many."""


def share_of_pod(rate: Rate) -> Rate:
    """Return what one pod may have of what the node may have."""
    burst = min(rate.burst, max(rate.burst / SHARES, LEAST_BURST_OF_POD))
    return Rate(rate.per_second / SHARES, burst)


def ration(
    todo: Plan, findings: Iterable[Finding], ledger: Ledger, rate: Rate, now: float
) -> tuple[Plan, Ledger]:
    """Refuse what is beyond the budget and spend what is not; return plan and ledger.

    Pods have one replacement each in turn.  Those of the same turn that were replaced or tried
    last come last, so whoever needs it again and again never holds up one that needs it once.
    """
    wanted = [action for action in todo.actions if isinstance(action, ReplaceMount)]
    if not wanted:
        return todo, ledger
    books = _Books(ledger.budget, rate, now)
    if books.spend_on(wanted):
        return todo, replace(ledger, budget=books.budget())
    known = {finding.bind.key: finding for finding in findings}
    refused = [
        Refusal(known[action.key], *books.why_not(action.pod_uid))
        for action in _by_turn(wanted, known, ledger, books)
        if not books.take(action.pod_uid)
    ]
    return todo.without(refused), replace(ledger, budget=books.budget())


def over_their_share(budget: Budget, rate: Rate, now: float) -> tuple[RefusedOwner, ...]:
    """Name the pods that have spent their share and wait for more of it."""
    limit = share_of_pod(rate).burst
    return tuple(
        RefusedOwner(pod(uid), Resource.BUDGET, limit)
        for uid, spent in budget.pods.items()
        if now < spent.resumes_at
    )


@dataclass(slots=True)
class _Account:
    """What the node, or one pod, has and has spent in this cycle."""

    spent: Spent
    rate: Rate
    left: int
    taken: int = 0
    is_short: bool = False


class _Books:
    """Who has spent how much."""

    def __init__(self, before: Budget, rate: Rate, now: float) -> None:
        self._before = before
        self._now = now
        self._share = share_of_pod(rate)
        self._node = self._account(before.node, rate)
        self._pods: dict[str, _Account] = {}

    def _account(self, spent: Spent, rate: Rate) -> _Account:
        is_resting = self._now < spent.resumes_at
        return _Account(
            spent, rate, 0 if is_resting else int(spent.bucket.left(rate, self._now) + ROUNDING)
        )

    def _of(self, pod_uid: str) -> _Account:
        if pod_uid not in self._pods:
            spent = self._before.pods.get(pod_uid, Spent())
            self._pods[pod_uid] = self._account(spent, self._share)
        return self._pods[pod_uid]

    def spend_on(self, wanted: Collection[ReplaceMount]) -> bool:
        """Spend what all of these need; False, and nothing spent, when that is not there."""
        counts = Counter(action.pod_uid for action in wanted)
        if len(wanted) > self._node.left or any(n > self.left_of(p) for p, n in counts.items()):
            return False
        self._node.taken = len(wanted)
        for uid, count in counts.items():
            self._of(uid).taken = count
        return True

    def left_of(self, pod_uid: str) -> int:
        """Return how many a pod may have now, as far as the pod itself is concerned."""
        return self._of(pod_uid).left

    def take(self, pod_uid: str) -> bool:
        """Spend one replacement; False when there is none."""
        own = self._of(pod_uid)
        for account in (own, self._node):
            if account.taken >= account.left:
                account.is_short = True
                return False
        own.taken += 1
        self._node.taken += 1
        return True

    def why_not(self, pod_uid: str) -> tuple[Reason, float]:
        """Say why ``take`` said no, and when there is more."""
        own = self._of(pod_uid)
        if own.is_short:
            return Reason.QUOTA, _resumes_at(own, self._now)
        return Reason.BUDGET, _resumes_at(self._node, self._now)

    def budget(self) -> Budget:
        """Return the budget after this cycle."""
        pods = dict(self._before.pods)
        pods.update((uid, _after(own, self._now)) for uid, own in self._pods.items())
        owing = {
            uid: spent
            for uid, spent in pods.items()
            if spent.bucket.left(self._share, self._now) < self._share.burst
        }
        return Budget(_after(self._node, self._now), owing)


def _after(account: _Account, now: float) -> Spent:
    spent = account.spent
    if account.taken:
        spent = replace(spent, bucket=spent.bucket.take(account.taken, account.rate, now))
    if account.is_short:
        spent = replace(spent, resumes_at=_resumes_at(account, now))
    return spent


def _resumes_at(account: _Account, now: float) -> float:
    """At least for one token, and never until tokens are lost because the bucket is full."""
    if now < account.spent.resumes_at:
        return account.spent.resumes_at
    rate = account.rate
    return now + max(1.0, min(REST_SECONDS * rate.per_second, rate.burst)) / rate.per_second


def _by_turn(
    wanted: Iterable[ReplaceMount],
    findings: Mapping[TargetKey, Finding],
    ledger: Ledger,
    books: _Books,
) -> list[ReplaceMount]:
    """Order by turns: each pod has one in each.

    What hangs on one bind of the host stays in order: a container is served from it.  Within a
    turn those come first that had to wait longest, and of those that wait equally long each
    source has one after the other.  What a pod cannot have now takes no turn.
    """
    pods: dict[str, dict[TargetKey, list[ReplaceMount]]] = {}
    for action in wanted:
        bind = findings[action.key].bind
        groups = pods.setdefault(action.pod_uid, {})
        groups.setdefault(bind.origin or bind.key, []).append(action)
    places: dict[str, int] = {}
    turns: list[tuple[int, float, int, ReplaceMount]] = []
    late: list[ReplaceMount] = []
    for uid, groups in pods.items():
        oldest_first = sorted(
            ((min(_tried_at(a, ledger) for a in group), group) for group in groups.values()),
            key=lambda one: one[0],
        )
        own = [(tried, action) for tried, group in oldest_first for action in group]
        left = books.left_of(uid)
        late += [action for _, action in own[left:]]
        for turn, (tried, action) in enumerate(own[:left]):
            source = source_of(findings[action.key])
            place = places[source] = places.get(source, 0) + 1
            turns.append((turn, tried, place, action))
    turns.sort(key=lambda one: one[:3])
    return [*(action for *_, action in turns), *late]


def _tried_at(action: ReplaceMount, ledger: Ledger) -> float:
    outcome = ledger.state(action.key).last_outcome
    return outcome.finished_at if outcome is not None else float("-inf")


def source_of(finding: Finding) -> str:
    """Return the path of a bind's source; empty when it is not known or not the only one."""
    candidates = finding.bind.source.candidates
    return candidates[0].mount_point if len(candidates) == 1 else ""
