"""What root may order while the daemon runs: try a recovery now, pause, resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fusewatchd.daemon.pause import Pause
from fusewatchd.daemon.wiring import Node
from fusewatchd.errors import assert_never
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.mounts import TargetKey
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.reconcile.orders import tried_now
from fusewatchd.state.pause import MAX_SECONDS
from fusewatchd.status.find_binds import find
from fusewatchd.status.orders import Order, Tried
from fusewatchd.status.values import Document, rfc3339

MAX_BINDS = 100
"""Of which an answer says one by one what became of them."""


class Orders:
    """Carries them out, in the loop of the daemon."""

    def __init__(
        self,
        node: Node,
        pause: Pause,
        document: Callable[[CycleReport], Document],
        cycle: Callable[[], CycleReport],
    ) -> None:
        """Take what an order needs.

        Args:
            node: whose reconciler is paused.
            pause: keeps that.
            document: makes the status document of a cycle.
            cycle: runs one now and returns it.
        """
        self._node = node
        self._pause = pause
        self._document = document
        self._cycle = cycle

    def obey(self, order: Any) -> Document:
        """Carry an order out; the answer says what became of it."""
        asked = order if isinstance(order, Mapping) else {}
        try:
            which = Order(asked.get("order"))
        except ValueError:
            return _refused("this daemon does not know the order: is it another version?")
        match which:
            case Order.PAUSE:
                return self._begin_pause(asked.get("seconds"))
            case Order.RESUME:
                return self._end_pause()
            case Order.RECOVER:
                return self._recover(asked.get("target"))
            case _:
                assert_never(which)

    def _begin_pause(self, seconds: object) -> Document:
        is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if not is_number or not 0 < float(str(seconds)) <= MAX_SECONDS:
            return _refused("a pause lasts for seven days at most")
        try:
            self._pause.begin(float(str(seconds)))
        except OSError as exc:
            return _refused(f"the pause cannot be kept: {exc.filename}: {exc.strerror}")
        self._cycle()
        assert self._pause.until is not None
        under_way = len(self._node.executor.in_flight())
        return {"ok": True, "until": rfc3339(self._pause.until), "under_way": under_way}

    def _end_pause(self) -> Document:
        was_paused = self._pause.until is not None
        if was_paused:
            try:
                self._pause.end()
            except OSError as exc:
                return _refused(f"the pause goes on: {exc.filename}: {exc.strerror}")
            self._cycle()
        return {"ok": True, "was_paused": was_paused}

    def _recover(self, target: object) -> Document:
        if not isinstance(target, str) or not target:
            return _refused("recover needs a path, NAMESPACE/POD, or a pod's uid")
        # What happened since the last cycle counts as well.
        last = self._cycle()
        document = self._document(last)
        places = {id(bind): number for number, bind in enumerate(document["binds"])}
        wanted = [places[id(bind)] for bind in find(document, target) if id(bind) in places]
        if not wanted:
            return _refused("fusewatchd watches no mount of this name: see 'fusewatchd status'")
        findings = [last.findings[number] for number in wanted]
        reconciler = self._node.reconciler
        reconciler.ledger = tried_now(reconciler.ledger, findings)
        cycle = self._cycle()
        keys = [finding.bind.key for finding in findings]
        binds = [
            {**_named(document["binds"][number]), **became(key, cycle)}
            for number, key in zip(wanted[:MAX_BINDS], keys, strict=False)
        ]
        return {"ok": True, "count": len(wanted), "binds": binds}


def _refused(text: str) -> Document:
    return {"ok": False, "text": text}


def _named(bind: Document) -> Document:
    return {"namespace": bind["namespace"], "mount_point": bind["mount_point"]}


def became(key: TargetKey, cycle: CycleReport) -> Document:
    """Return what a cycle did about one mount, and why it did nothing."""
    if cycle.ledger.state(key).is_in_flight:
        return {"tried": Tried.BEGUN.value, "reason": Reason.NONE.value}
    held_back = next((r for r in cycle.plan.refused if r.finding.bind.key == key), None)
    if held_back is not None:
        return {"tried": Tried.REFUSED.value, "reason": cycle.reason_of(held_back).value}
    finding = next((f for f in cycle.findings if f.bind.key == key), None)
    if finding is None:
        return {"tried": Tried.REFUSED.value, "reason": Reason.VANISHED.value}
    is_fine = finding.verdict in (Verdict.HEALTHY, Verdict.SLOW)
    tried = Tried.NOT_NEEDED if is_fine else Tried.REFUSED
    return {"tried": tried.value, "reason": finding.refusal.value}
