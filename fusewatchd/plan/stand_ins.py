"""Which mounts of the host get a stand-in now; pure.

All that show a held connection whose server has ended, and that a path leads to: no caller gets to
what is covered.  What has a mount inside keeps it, and callers wait there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from fusewatchd.model.actions import Expect, Outcome, OutcomeStatus, PlaceStandIns
from fusewatchd.model.held import Placing
from fusewatchd.model.mounts import Device, Mount, TargetKey
from fusewatchd.model.plan import RecoveryMode
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.plan.back_off import BackOff

Tries = Mapping[Device, Placing]
_FRESH = Placing()
BACK_OFF = BackOff(0.05, 2.0)
"""Each try costs some calls, and the host waits meanwhile."""


def take_outcomes(tries: Tries, outcomes: Iterable[Outcome]) -> Tries:
    """End the attempts that the executor reports as ended."""
    after = dict(tries)
    for outcome in outcomes:
        device = outcome.action.expect.device
        before = after.get(device, _FRESH)
        if outcome.status is OutcomeStatus.PLACED:
            after[device] = replace(before, is_in_flight=False, failures=0, problem="")
            continue
        failures = before.failures + 1
        retry_at = outcome.finished_at + BACK_OFF.delay(outcome.action.key, failures)
        after[device] = Placing(False, failures, retry_at, outcome.detail)
    return after


def plan_stand_ins(
    snapshot: Snapshot, tries: Tries, mode: RecoveryMode, now: float
) -> tuple[tuple[PlaceStandIns, ...], Tries]:
    """Return what is to be placed now, and the attempts as they are with that."""
    dead = snapshot.keeper.dead()
    if not dead:
        return (), {}
    actions: list[PlaceStandIns] = []
    after: dict[Device, Placing] = {d: t for d, t in tries.items() if d in dead or t.is_in_flight}
    if mode is not RecoveryMode.RECOVER:
        return (), after
    for device in sorted(dead):
        attempt = after.get(device, _FRESH)
        if attempt.is_in_flight or now < attempt.retry_at:
            continue
        mounts = _uncovered(device, snapshot)
        if not mounts:
            continue
        known = tuple(s for s in snapshot.stand_ins.values() if s.was.device == device)
        key = TargetKey(0, mounts[0].mount_point)
        actions.append(PlaceStandIns(key, Expect.of(mounts[0]), mounts, known))
        after[device] = replace(attempt, is_in_flight=True)
    return tuple(actions), after


def next_try(tries: Tries) -> float | None:
    """Return when the first attempt is due again; None: none is."""
    waiting = (t.retry_at for t in tries.values() if t.failures and not t.is_in_flight)
    return min(waiting, default=None)


def _uncovered(device: Device, snapshot: Snapshot) -> tuple[Mount, ...]:
    table = snapshot.table
    found = [
        mount
        for mount in table.on_device(device)
        if mount.mount_id not in snapshot.stand_ins and not table.children_of(mount.mount_id)
    ]
    return tuple(m for m in found if table.top_at(m.mount_point) == m)
