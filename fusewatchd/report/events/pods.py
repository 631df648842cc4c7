"""Kubernetes Events on the pods whose volumes are hit, or on the node when they are very many.

The note of an Event must stay the same from one outage to the next, or no count ever rises.  So of
the end of a server it has a few sentences and the name of a unit, which a restarted service keeps,
and neither processes nor times.  The server's pod is what the Event is *related* to.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace

from fusewatchd.errors import error_name
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.findings import Finding
from fusewatchd.model.held import HoldEnd
from fusewatchd.model.mounts import Device
from fusewatchd.model.pods import Pod
from fusewatchd.model.quota import Key
from fusewatchd.model.servers import OomKill, ServerEnd
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.report.events.draft import EventDraft, pod_reference
from fusewatchd.report.events.episodes import Troubles
from fusewatchd.report.events.event_limit import MAX_PODS, EventLimit
from fusewatchd.report.events.wording import EventKind
from fusewatchd.report.log.fields import device_of
from fusewatchd.report.server_fields import pod_of_server
from fusewatchd.text import counted, printable

MAX_BACKLOG = 512
"""Events that wait for the names of their pods; the oldest is given up for a new one."""

_Word = tuple[str, Device | None, EventKind]
"""What is said of a pod, which its directory names."""
_OUT_OF_MEMORY = " The kernel killed it, or another process of its cgroup (OOM kill)."
MAX_UNIT = 80
_WAIT = (
    "The server of a FUSE volume in this pod is gone: programs that open files there wait for a new"
    " server, up to keeper.hold.grace_seconds."
)
_WAITED = " Programs that opened files meanwhile waited, and got no error."


class PodEvents:
    """Drafts Events on pods and hands them over."""

    def __init__(
        self,
        post: Callable[[EventDraft], None],
        node_name: str = "",
        give_up: Callable[[int], None] = lambda count: None,
        most: Callable[[], int] = lambda: MAX_PODS,
    ) -> None:
        """Give every Event to ``post``, which must return at once.

        Args:
            post: takes an Event.
            node_name: the node on which is told what is too much to be told on each pod.
            give_up: is told how many Events were dropped, since their pod's name never came.
            most: how many pods of a storm get Events of their own.
        """
        self._post = post
        self._node_name = node_name
        self._give_up = give_up
        self._event_limit = EventLimit(most)
        self._troubles: Troubles[str] = Troubles(_pod_uid, self._announce)
        self._backlog: OrderedDict[_Word, None] = OrderedDict()
        self._limited: frozenset[Key] = frozenset()
        self._hidden: frozenset[str] = frozenset()
        self._to_restart: frozenset[str] = frozenset()
        self._held: frozenset[Device] = frozenset()
        """Connections whose callers waited in the present or the last outage of each."""

    def report(self, cycle: CycleReport) -> None:
        """Draft what this cycle brought; pods that are being deleted are left in peace."""
        self._post_backlog(cycle)
        self._troubles.report(cycle)
        self._tell_limits(cycle)
        self._tell_hidden(cycle)
        self._tell_to_restart(cycle)

    def close(self) -> None:
        """Give up what still waits for a name."""
        self._drop(len(self._backlog))
        self._backlog.clear()

    def _announce(
        self, cycle: CycleReport, uid: str, device: Device | None, kind: EventKind
    ) -> None:
        if kind is EventKind.RECOVERED and device is not None:
            left = cycle.accounts.still_showing(device)
            if any(one.pod_uid == uid for one in left):
                kind = EventKind.UNRECOVERABLE  # not all of it: the rest needs a new container
        pod = (cycle.snapshot.pods or {}).get(uid)
        if pod is None:
            self._wait_for_name((uid, device, kind))
        elif not pod.is_deleting:
            self._tell(cycle, pod, device, kind)

    def _tell(self, cycle: CycleReport, pod: Pod, device: Device | None, kind: EventKind) -> None:
        if not self._event_limit.admits(pod.uid, cycle.started_at):
            self._post(kind.draft_for_node(self._node_name))
            return
        draft = kind.draft(pod)
        if kind is EventKind.STALE and device is not None:
            is_held = device in cycle.snapshot.keeper.held
            self._held = self._held | {device} if is_held else self._held - {device}
            draft = replace(draft, note=_WAIT) if is_held else draft
            draft = with_end(draft, cycle.snapshot.ends.get(device), cycle.snapshot)
        is_held = device is not None and device in self._held
        if kind is EventKind.RECOVERED and is_held and _all_waited(device, cycle.snapshot):
            draft = replace(draft, note=draft.note + _WAITED)
        if kind is EventKind.FAILED:
            draft = with_error(draft, [f for f in cycle.findings if device_of(f) == device])
        if kind is EventKind.HIDDEN:
            draft = with_files(draft, pod, cycle.snapshot)
        self._post(draft)

    def _tell_limits(self, cycle: CycleReport) -> None:
        """Say it once of each pod and resource, and again if it begins again."""
        limited = frozenset(cycle.ledger.refused_owners)
        for uid in dict.fromkeys(owner.uid for owner, _ in limited - self._limited):
            if uid:
                self._announce(cycle, uid, None, EventKind.LIMITED)
        self._limited = limited

    def _tell_hidden(self, cycle: CycleReport) -> None:
        """Say it once of each directory, when it was looked at first with files in it."""
        found = cycle.snapshot.hidden_files
        for path in sorted(found.keys() - self._hidden):
            self._announce(cycle, found[path].pod_uid, None, EventKind.HIDDEN)
        self._hidden = frozenset(found)

    def _tell_to_restart(self, cycle: CycleReport) -> None:
        """Say it once of each pod, and again if it begins again."""
        found = cycle.pods_to_restart()
        for uid in found:
            if uid not in self._to_restart:
                self._announce(cycle, uid, None, EventKind.NEEDS_RESTART)
        self._to_restart = frozenset(found)

    def _drop(self, count: int) -> None:
        if count:
            self._give_up(count)

    def _wait_for_name(self, word: _Word) -> None:
        # Said again while it waits: the later moment counts, and the order with it.
        self._backlog.pop(word, None)
        self._backlog[word] = None
        if len(self._backlog) > MAX_BACKLOG:
            self._backlog.popitem(last=False)
            self._drop(1)

    def _post_backlog(self, cycle: CycleReport) -> None:
        pods = cycle.snapshot.pods
        if pods is None or not self._backlog:
            return
        waiting, self._backlog = self._backlog, OrderedDict()
        for word in waiting:
            pod = pods.get(word[0])
            if pod is not None and not pod.is_deleting:
                self._tell(cycle, pod, *word[1:])
            elif pod is None and not cycle.snapshot.pods_are_current:
                self._backlog[word] = None
            elif pod is None:
                self._drop(1)


def _all_waited(device: Device | None, snapshot: Snapshot) -> bool:
    """Return False where a held connection was let go before everything was replaced."""
    ends = [one.end for one in snapshot.keeper.ended if one.device == device]
    return not ends or ends[-1] in (HoldEnd.REPLACED, HoldEnd.GONE)


def _pod_uid(cycle: CycleReport, finding: Finding) -> str:
    return finding.bind.path.pod_uid


def with_end(draft: EventDraft, end: ServerEnd | None, snapshot: Snapshot) -> EventDraft:
    """Add what is known of the end of a server."""
    if end is None or end.server is None:
        return draft
    note = draft.note
    if end.server.unit.endswith(".service"):  # scopes are named anew each time
        note += f" The server was unit {printable(end.server.unit, MAX_UNIT)}."
    if end.oom is OomKill.YES:
        note += _OUT_OF_MEMORY
    pod = pod_of_server(end.server, snapshot)
    related = pod_reference(pod) if pod is not None else None
    return replace(draft, note=note, related=related)


def with_files(draft: EventDraft, pod: Pod, snapshot: Snapshot) -> EventDraft:
    """Add how many files there are."""
    own = [f.count for f in snapshot.hidden_files.values() if f.pod_uid == pod.directory_uid]
    if not own:
        return draft
    files, size = sum(c.files for c in own), sum(c.size for c in own)
    more = "" if all(c.is_whole for c in own) else "at least "
    return replace(draft, note=f"{draft.note} There are {more}{counted(files, 'file')}, {size} B.")


def with_error(draft: EventDraft, hit: Iterable[Finding]) -> EventDraft:
    """Add with what the new server of these binds answers, where that is in the way."""
    number = next((finding.source_errno for finding in hit if finding.source_errno), 0)
    if not number:
        return draft
    return replace(draft, note=f"{draft.note} The new server answers with {error_name(number)}.")
