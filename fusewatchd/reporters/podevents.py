"""Kubernetes Events on the pods whose volumes are hit, or on the node when they are very many."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from fusewatchd.cycle import CycleReport
from fusewatchd.decision import Finding
from fusewatchd.model import Device, Pod
from fusewatchd.reporters.base import EventDraft
from fusewatchd.reporters.bindfields import device_of
from fusewatchd.reporters.crowd import MAX_PODS, Crowd
from fusewatchd.reporters.endnote import with_end, with_error
from fusewatchd.reporters.events import EventKind
from fusewatchd.reporters.troubles import Troubles

MAX_BACKLOG = 512
"""Events that wait for the names of their pods; the oldest is given up for a new one."""

_Word = tuple[str, Device | None, EventKind]
"""What is said of a pod, which its directory names."""


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
            give_up: is told how many Events were dropped.
            most: how many pods of a storm get Events of their own.
        """
        self._post = post
        self._node_name = node_name
        self._give_up = give_up
        self._crowd = Crowd(most)
        self._troubles: Troubles[str] = Troubles(_pod_uid, self._announce)
        self._backlog: OrderedDict[_Word, None] = OrderedDict()
        self.given_up = 0
        """Events that were dropped because their pod's name never became known."""

    def report(self, cycle: CycleReport) -> None:
        """Draft what this cycle brought; pods that are being deleted are left in peace."""
        self._post_backlog(cycle)
        self._troubles.report(cycle)

    def close(self) -> None:
        """Give up what still waits for a name."""
        self._drop(len(self._backlog))
        self._backlog.clear()

    def _announce(
        self, cycle: CycleReport, uid: str, device: Device | None, kind: EventKind
    ) -> None:
        pod = (cycle.snapshot.pods or {}).get(uid)
        if pod is None:
            self._wait_for_name((uid, device, kind))
        elif not pod.is_deleting:
            self._tell(cycle, pod, device, kind)

    def _tell(self, cycle: CycleReport, pod: Pod, device: Device | None, kind: EventKind) -> None:
        if not self._crowd.admits(pod.uid, cycle.started_at):
            self._post(kind.draft_for_node(self._node_name))
            return
        draft = kind.draft(pod)
        if kind is EventKind.STALE and device is not None:
            draft = with_end(draft, cycle.snapshot.ends.get(device), cycle.snapshot)
        if kind is EventKind.FAILED:
            draft = with_error(draft, [f for f in cycle.findings if device_of(f) == device])
        self._post(draft)

    def _drop(self, count: int) -> None:
        if count:
            self.given_up += count
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


def _pod_uid(cycle: CycleReport, finding: Finding) -> str:
    return finding.bind.path.pod_uid
