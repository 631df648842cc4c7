"""When something is said of whom: the troubles of pods, or of volumes, with FUSE connections.

Each kind of thing is said once in a trouble, however many binds the subject has in it: what
its owner wants to know is whether the data can be read.  *Recovered* is said when the last
bind of the subject in that outage was read back, and a look at every mount namespace that
began after that found no further one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fusewatchd.model.actions import AbortConnection, Action, OutcomeStatus, ReplaceMount
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.findings import Finding
from fusewatchd.model.mounts import Device, TargetKey
from fusewatchd.model.verdicts import Verdict
from fusewatchd.report.events.wording import NOT_FOR_GOOD, EventKind
from fusewatchd.report.reporter import is_disconnected

_NOT_OVER = (Verdict.STALE, Verdict.SLOW, Verdict.UNKNOWN)
"""Nothing to say by themselves, but while it looks so a trouble has not ended."""

S = TypeVar("S", bound=Hashable)
"""Who is told of: a pod, a volume."""


@dataclass(slots=True)
class _Trouble:
    """What one subject goes through with one FUSE connection."""

    said: set[EventKind] = field(default_factory=set)
    last_recovery_at: float | None = None


class Troubles(Generic[S]):
    """Finds in each cycle what is to be said; a place is a subject and one connection of it."""

    def __init__(
        self,
        subject_of: Callable[[CycleReport, Finding], S | None],
        say: Callable[[CycleReport, S, Device | None, EventKind], None],
    ) -> None:
        """Tell ``say`` what is new.

        Args:
            subject_of: whom a bind belongs to; None: nobody is told of it.
            say: takes cycle, subject, connection (None for bare directories) and what it is.
        """
        self._subject_of = subject_of
        self._announce = say
        self._troubles: dict[tuple[S, Device | None], _Trouble] = {}
        self._in_flight: dict[TargetKey, tuple[S, Device | None]] = {}
        self._aborts: dict[Device, bool] = {}
        """Connections that are being aborted: True when that is known to have worked."""

    def report(self, cycle: CycleReport) -> None:
        """Say what this cycle brought, in the order in which it happened."""
        self._see_aborts(cycle)
        open_places = self._see_verdicts(cycle)
        self._see_outcomes(cycle)
        self._see_refusals(cycle)
        self._end_troubles(cycle, open_places)

    # -------------------------------------------------------------------- what is seen

    def _see_aborts(self, cycle: CycleReport) -> None:
        """Say it before it happens; that it has happened is said once a probe has proven it."""
        for outcome in cycle.outcomes:
            if isinstance(outcome.action, AbortConnection):
                device = outcome.action.expect.device
                self._aborts.pop(device, None)
                if outcome.status is OutcomeStatus.ABORTED:
                    self._aborts[device] = True
        for device in self._aborts.keys() - cycle.snapshot.connections.keys():
            del self._aborts[device]
        for action in cycle.plan.actions:
            if not isinstance(action, AbortConnection):
                continue
            self._aborts[action.expect.device] = False
            for finding in cycle.findings:
                mount = finding.bind.mount
                if mount is not None and mount.device == action.expect.device:
                    self._say(cycle, self._place(cycle, finding), EventKind.ABORTING)

    def _see_verdicts(self, cycle: CycleReport) -> set[tuple[S, Device | None]]:
        """Say what is wrong, and return where something still is."""
        wrong: set[tuple[S, Device | None]] = set()
        for finding in cycle.findings:
            if finding.verdict is Verdict.HEALTHY:
                continue
            kind, place = _kind_of(finding, cycle), self._place(cycle, finding)
            if place is None:
                continue
            device = place[1]
            if kind is EventKind.STALE and device in self._aborts:
                wrong.add(place)
                if self._aborts[device]:
                    self._say(cycle, place, EventKind.ABORTED)
            elif kind is not None:
                wrong.add(place)
                self._say(cycle, place, kind)
            elif finding.verdict in _NOT_OVER:
                wrong.add(place)
        return wrong

    def _see_outcomes(self, cycle: CycleReport) -> None:
        if not cycle.outcomes and not cycle.plan.actions:
            return
        subjects = {f.bind.key: self._subject_of(cycle, f) for f in cycle.findings}
        for outcome in cycle.outcomes:
            if isinstance(outcome.action, AbortConnection):
                continue
            key = outcome.action.key
            place = self._in_flight.pop(key, None)
            subject = subjects.get(key)
            if place is None and subject is not None:
                place = (subject, _device_of(outcome.action))
            trouble = self._troubles.get(place) if place is not None else None
            if place is None or trouble is None:
                continue
            if outcome.status is OutcomeStatus.RECOVERED:
                trouble.last_recovery_at = max(trouble.last_recovery_at or 0.0, outcome.finished_at)
                if outcome.narrower:
                    self._say(cycle, place, EventKind.NARROWER)
                if outcome.wider:
                    self._say(cycle, place, EventKind.WIDER)
            elif outcome.status is OutcomeStatus.FAILED:
                self._say(cycle, place, EventKind.FAILED)
            elif outcome.status is OutcomeStatus.REFUSED and outcome.reason not in NOT_FOR_GOOD:
                self._say(cycle, place, EventKind.UNRECOVERABLE)
        self._note_submitted(cycle, subjects)

    def _note_submitted(self, cycle: CycleReport, subjects: dict[TargetKey, S | None]) -> None:
        for action in cycle.plan.actions:
            subject = subjects.get(action.key)
            if subject is not None and not isinstance(action, AbortConnection):
                self._in_flight[action.key] = (subject, _device_of(action))

    def _see_refusals(self, cycle: CycleReport) -> None:
        for refusal in cycle.plan.refused:
            place = self._place(cycle, refusal.finding)
            if place not in self._troubles:
                continue
            if refusal.reason not in NOT_FOR_GOOD:
                self._say(cycle, place, EventKind.UNRECOVERABLE)
            elif refusal.finding.source_errno:
                self._say(cycle, place, EventKind.FAILED)

    # ------------------------------------------------------------------- what is over

    def _end_troubles(self, cycle: CycleReport, wrong: set[tuple[S, Device | None]]) -> None:
        if not self._troubles:
            return
        busy = wrong | set(self._in_flight.values())
        closed = {incident.device for incident in cycle.incidents_closed}
        well = {self._place(cycle, f) for f in cycle.findings if f.verdict is Verdict.HEALTHY}
        for place, trouble in tuple(self._troubles.items()):
            if place in busy:
                continue
            recovered_at = trouble.last_recovery_at
            looked = cycle.snapshot.namespaces_looked_at
            if recovered_at is not None and looked < recovered_at and place[1] not in closed:
                continue
            del self._troubles[place]
            was_dead = trouble.said & {EventKind.STALE, EventKind.ABORTED}
            was_hung = not was_dead and EventKind.HUNG in trouble.said
            if EventKind.ON_DISK in trouble.said:
                if recovered_at is not None:
                    self._announce(cycle, *place, EventKind.COVERED)
                continue
            if recovered_at is not None or (was_hung and place in well):
                self._announce(cycle, *place, EventKind.RECOVERED)

    def _say(
        self, cycle: CycleReport, place: tuple[S, Device | None] | None, kind: EventKind
    ) -> None:
        """Announce each kind once in each trouble."""
        if place is None:
            return
        trouble = self._troubles.setdefault(place, _Trouble())
        if kind not in trouble.said:
            trouble.said.add(kind)
            self._announce(cycle, *place, kind)

    def _place(self, cycle: CycleReport, finding: Finding) -> tuple[S, Device | None] | None:
        subject = self._subject_of(cycle, finding)
        if subject is None:
            return None
        mount = finding.bind.mount
        return subject, mount.device if mount is not None else None


def _device_of(action: Action) -> Device | None:
    """Return the connection that an action is about; None for a directory of the node."""
    is_over = isinstance(action, ReplaceMount) and action.over
    return None if is_over else action.expect.device


def _kind_of(finding: Finding, cycle: CycleReport) -> EventKind | None:
    """Return what to say of a bind.

    One that is stale although its server lives (a writable layer that somebody put over a
    read-only mount) does answer: that is for the log.
    """
    if finding.verdict is Verdict.HUNG:
        return EventKind.HUNG
    if finding.verdict is Verdict.ON_DISK:
        return EventKind.ON_DISK
    if finding.verdict is Verdict.BARE:
        return EventKind.UNRECOVERABLE
    return EventKind.STALE if is_disconnected(finding, cycle.snapshot) else None
