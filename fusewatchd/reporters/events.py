"""Kubernetes Events on the pods whose volumes are hit.

One Event for each pod, reason and outage, however many binds the pod has: what its owner
wants to know is whether the application can read its data.  *Recovered* is said when the last
bind of the pod in that outage was read back, and a look at every mount namespace that began
after that found no further one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from fusewatchd.decision import AbortConnection, CycleReport, Finding, OutcomeStatus
from fusewatchd.model import Device, Pod, Reason, TargetKey, Verdict
from fusewatchd.reporters.base import EventDraft, ObjectReference, is_disconnected
from fusewatchd.reporters.crowd import Crowd

MAX_BACKLOG = 512
"""Events that wait for the names of their pods; the oldest is given up for a new one."""


_CROWD_NOTE = (
    "More pods of this node are hit than get an Event each; the others are counted here, and"
    " 'fusewatchd status' on the node lists them. On each:"
)


class EventKind(Enum):
    """All that is ever said about a pod; value: reason, action, type, note."""

    STALE = (
        "FuseMountStale",
        "WatchFuseMount",
        "Warning",
        "The server of a FUSE volume in this pod is gone: files there answer 'Transport"
        " endpoint is not connected' until the volume is bound to a new server.",
    )
    HUNG = (
        "FuseMountHung",
        "WatchFuseMount",
        "Warning",
        "The server of a FUSE volume in this pod does not answer: whoever opens a file there"
        " waits. The volume is left alone while its server lives.",
    )
    ABORTING = (
        "FuseMountAborting",
        "AbortFuseConnection",
        "Warning",
        "The server of a FUSE volume in this pod stands still: unless it answers in the last"
        " second, its connection is aborted, and whoever waits for it gets an error.",
    )
    ABORTED = (
        "FuseMountAborted",
        "AbortFuseConnection",
        "Warning",
        "The hung connection of a FUSE volume in this pod was aborted: files there answer"
        " 'Transport endpoint is not connected' until the volume is bound to a new server.",
    )
    RECOVERED = (
        "FuseMountRecovered",
        "ReplaceFuseMount",
        "Normal",
        "A FUSE volume of this pod answers again. The pod was not restarted; files that were"
        " open while its server was gone have to be opened anew.",
    )
    FAILED = (
        "FuseMountRecoveryFailed",
        "ReplaceFuseMount",
        "Warning",
        "A FUSE volume of this pod could not be bound to its new server; it is tried again."
        " 'fusewatchd status' on the node says why.",
    )
    UNRECOVERABLE = (
        "FuseMountUnrecoverable",
        "ReplaceFuseMount",
        "Warning",
        "A FUSE volume of this pod cannot be bound to a new server while the pod runs;"
        " restarting the pod helps. 'fusewatchd status' on the node says why.",
    )

    def draft(self, pod: Pod) -> EventDraft:
        """Return the Event about this pod, which carries the uid that the API server knows."""
        reason, action, type_, note = self.value
        regarding = ObjectReference("Pod", pod.namespace, pod.name, pod.uid)
        return EventDraft(regarding, reason, action, note, type_)

    def draft_for_node(self, name: str) -> EventDraft:
        """Return the Event that counts the pods which get none of their own.

        The uid is what the kubelet writes into its Events on the node, and what ``kubectl
        describe node`` looks for.
        """
        reason, action, type_, note = self.value
        regarding = ObjectReference("Node", "", name, name)
        return EventDraft(regarding, reason, action, f"{_CROWD_NOTE} {note}", type_)


NOT_FOR_GOOD = frozenset(
    {
        Reason.NONE,
        Reason.SOURCE_MISSING,
        Reason.SOURCE_UNPROVEN,
        Reason.SOURCE_CHANGED,
        Reason.HOST_BIND_STALE,
        Reason.POD_ENDING,
        Reason.POD_UNKNOWN,
        Reason.REPORT_ONLY,
        Reason.DISABLED,
        Reason.OWNER_UNKNOWN,
        Reason.GRACE,
        Reason.BACK_OFF,
        Reason.TABLE_FULL,
        Reason.BUDGET,
        Reason.SOURCE_FLAPPING,
        Reason.NAMESPACE_GONE,
        Reason.VANISHED,
        Reason.RACED,
        Reason.TIMED_OUT,
        Reason.NOT_VERIFIED,
        Reason.SYSTEM_CALL,
        Reason.ALREADY_LIVE,
        Reason.UNCONFIRMED,
        Reason.ANSWERING,
        Reason.NO_FUSECTL,
    }
)
"""Reasons that pass, or that are somebody's will; all others last as long as the pod."""


_NOT_OVER = (Verdict.STALE, Verdict.SLOW, Verdict.UNKNOWN)
"""Nothing to say by themselves, but while it looks so a trouble has not ended."""


@dataclass(slots=True)
class _Trouble:
    """What one pod goes through with one FUSE connection."""

    said: set[EventKind] = field(default_factory=set)
    last_recovery_at: float | None = None


_Place = tuple[str, Device | None]
"""Directory uid of a pod, and the device; None for bare directories."""


class EventsReporter:
    """Drafts Events and hands them over."""

    def __init__(
        self,
        post: Callable[[EventDraft], None],
        node_name: str = "",
        give_up: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Give every Event to ``post``, which must return at once.

        Args:
            post: takes an Event.
            node_name: the node on which is told what is too much to be told on each pod.
            give_up: is told how many Events were dropped.
        """
        self._post = post
        self._node_name = node_name
        self._give_up = give_up
        self._crowd = Crowd()
        self._troubles: dict[_Place, _Trouble] = {}
        self._in_flight: dict[TargetKey, _Place] = {}
        self._aborts: dict[Device, bool] = {}
        """Connections that are being aborted: True when that is known to have worked."""
        self._backlog: OrderedDict[tuple[_Place, EventKind], None] = OrderedDict()
        self.given_up = 0
        """Events that were dropped because their pod's name never became known."""

    def report(self, cycle: CycleReport) -> None:
        """Draft what this cycle brought; pods that are being deleted are left in peace."""
        self._post_backlog(cycle)
        self._see_aborts(cycle)
        open_places = self._see_verdicts(cycle)
        self._see_outcomes(cycle)
        self._see_refusals(cycle)
        self._end_troubles(cycle, open_places)

    def close(self) -> None:
        """Give up what still waits for a name."""
        self._drop(len(self._backlog))
        self._backlog.clear()

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
                    self._say(cycle, _place(finding), EventKind.ABORTING)

    def _see_verdicts(self, cycle: CycleReport) -> set[_Place]:
        """Say what is wrong, and return where something still is."""
        wrong: set[_Place] = set()
        for finding in cycle.findings:
            kind, place = _kind_of(finding, cycle), _place(finding)
            if kind is EventKind.STALE and place[1] in self._aborts:
                wrong.add(place)
                if self._aborts[place[1]]:
                    self._say(cycle, place, EventKind.ABORTED)
            elif kind is not None:
                wrong.add(place)
                self._say(cycle, place, kind)
            elif finding.verdict in _NOT_OVER:
                wrong.add(place)
        return wrong

    def _see_outcomes(self, cycle: CycleReport) -> None:
        places = {finding.bind.key: finding.bind.path.pod_uid for finding in cycle.findings}
        for outcome in cycle.outcomes:
            if isinstance(outcome.action, AbortConnection):
                continue
            key = outcome.action.key
            place = self._in_flight.pop(key, None)
            if place is None and key in places:
                place = (places[key], outcome.action.expect.device)
            trouble = self._troubles.get(place) if place is not None else None
            if place is None or trouble is None:
                continue
            if outcome.status is OutcomeStatus.RECOVERED:
                trouble.last_recovery_at = max(trouble.last_recovery_at or 0.0, outcome.finished_at)
            elif outcome.status is OutcomeStatus.FAILED:
                self._say(cycle, place, EventKind.FAILED)
            elif outcome.status is OutcomeStatus.REFUSED and outcome.reason not in NOT_FOR_GOOD:
                self._say(cycle, place, EventKind.UNRECOVERABLE)
        self._note_submitted(cycle, places)

    def _note_submitted(self, cycle: CycleReport, places: dict[TargetKey, str]) -> None:
        for action in cycle.plan.actions:
            uid = places.get(action.key)
            if uid is not None and not isinstance(action, AbortConnection):
                self._in_flight[action.key] = (uid, action.expect.device)

    def _see_refusals(self, cycle: CycleReport) -> None:
        for refusal in cycle.plan.refused:
            place = _place(refusal.finding)
            if refusal.reason not in NOT_FOR_GOOD and place in self._troubles:
                self._say(cycle, place, EventKind.UNRECOVERABLE)

    # ------------------------------------------------------------------- what is over

    def _end_troubles(self, cycle: CycleReport, wrong: set[_Place]) -> None:
        busy = wrong | set(self._in_flight.values())
        closed = {incident.device for incident in cycle.incidents_closed}
        well = {_place(f) for f in cycle.findings if f.verdict is Verdict.HEALTHY}
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
            if recovered_at is not None or (was_hung and place in well):
                self._announce(cycle, place, EventKind.RECOVERED)

    # ------------------------------------------------------------------------ posting

    def _say(self, cycle: CycleReport, place: _Place, kind: EventKind) -> None:
        """Announce each kind once in each trouble."""
        trouble = self._troubles.setdefault(place, _Trouble())
        if kind not in trouble.said:
            trouble.said.add(kind)
            self._announce(cycle, place, kind)

    def _announce(self, cycle: CycleReport, place: _Place, kind: EventKind) -> None:
        pod = (cycle.snapshot.pods or {}).get(place[0])
        if pod is None:
            self._wait_for_name((place, kind))
        elif not pod.is_deleting:
            self._tell(cycle, pod, kind)

    def _tell(self, cycle: CycleReport, pod: Pod, kind: EventKind) -> None:
        is_admitted = self._crowd.admits(pod.uid, cycle.started_at)
        self._post(kind.draft(pod) if is_admitted else kind.draft_for_node(self._node_name))

    def _drop(self, count: int) -> None:
        if count:
            self.given_up += count
            self._give_up(count)

    def _wait_for_name(self, event: tuple[_Place, EventKind]) -> None:
        # Said again while it waits: the later moment counts, and the order with it.
        self._backlog.pop(event, None)
        self._backlog[event] = None
        if len(self._backlog) > MAX_BACKLOG:
            self._backlog.popitem(last=False)
            self._drop(1)

    def _post_backlog(self, cycle: CycleReport) -> None:
        pods = cycle.snapshot.pods
        if pods is None or not self._backlog:
            return
        waiting, self._backlog = self._backlog, OrderedDict()
        for place, kind in waiting:
            pod = pods.get(place[0])
            if pod is not None and not pod.is_deleting:
                self._tell(cycle, pod, kind)
            elif pod is None and not cycle.snapshot.pods_are_current:
                self._backlog[place, kind] = None
            elif pod is None:
                self._drop(1)


def _kind_of(finding: Finding, cycle: CycleReport) -> EventKind | None:
    """Return what to say of a bind.

    One that is stale although its server lives (a writable layer that somebody put over a
    read-only mount) does answer: that is for the log.
    """
    if finding.verdict is Verdict.HUNG:
        return EventKind.HUNG
    if finding.verdict is Verdict.BARE:
        return EventKind.UNRECOVERABLE
    return EventKind.STALE if is_disconnected(finding, cycle.snapshot) else None


def _place(finding: Finding) -> _Place:
    mount = finding.bind.mount
    return finding.bind.path.pod_uid, mount.device if mount is not None else None
