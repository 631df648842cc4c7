"""Questions that wait for a probe child: owners have their turn one after the other; pure.

What the node needs, the connections of its sources and of what pods see on the host, waits in lines
of its own.  Each step costs the same, however many questions wait.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from fusewatchd.model.mounts import Device
from fusewatchd.model.quota import AGENT, Owner
from fusewatchd.observe.connections.questions import Question

User = tuple[int, int] | None
"""User and group id as which a child asks; None: as the daemon."""

FIRST = (False, False)
"""The rank of the lane for which children are kept free."""


@dataclass(slots=True)
class Asking:
    """A question that was accepted and has no answer."""

    question: Question
    asked_at: float
    """When it was submitted."""
    withdrawals: int = 0
    """How often a child had it without an answer and was ended for another question."""


@dataclass(frozen=True, slots=True)
class Lane:
    """Questions that may be asked by the same children."""

    user: User
    is_urgent: bool
    is_of_node: bool
    """The node itself needs the answer: no pod and no user can be in this lane."""

    @classmethod
    def of(cls, question: Question) -> Lane:
        """Return the lane of a question."""
        user = None
        if question.uid is not None and question.gid is not None:
            user = question.uid, question.gid
        return cls(user, question.is_urgent, question.owner == AGENT)

    @property
    def rank(self) -> tuple[bool, bool]:
        """Tell which lanes have the first choice of a child; the lowest has it."""
        return not self.is_urgent, not self.is_of_node


class QuestionLines:
    """All questions that wait, one for each device."""

    def __init__(self) -> None:
        """Begin with none."""
        self._lanes: dict[Lane, dict[Owner, dict[Device, Asking]]] = {}
        self._places: dict[Device, tuple[Lane, Owner]] = {}

    def __iter__(self) -> Iterator[Asking]:
        for lane in self._lanes.values():
            for line in lane.values():
                yield from line.values()

    @property
    def lanes(self) -> list[Lane]:
        """Return the lanes in which questions wait, in the order in which they have a choice."""
        return sorted(self._lanes, key=lambda lane: lane.rank)

    def put(self, asking: Asking) -> Lane:
        """Put a question at the end of its owner's line."""
        question = asking.question
        lane, owner = Lane.of(question), question.owner
        self._places[question.device] = lane, owner
        self._lanes.setdefault(lane, {}).setdefault(owner, {})[question.device] = asking
        return lane

    def take_out(self, device: Device) -> Asking | None:
        """Take the question about a device out, wherever it waits; None: it does not wait."""
        place = self._places.pop(device, None)
        if place is None:
            return None
        lane, owner = place
        asking = self._lanes[lane][owner].pop(device)
        self._clean(lane, owner)
        return asking

    def next(self, lane: Lane, full: Collection[Owner]) -> Asking | None:
        """Return whose turn it is in a lane, without those of owners that have their share."""
        for owner, line in self._lanes.get(lane, {}).items():
            if owner not in full:
                return next(iter(line.values()))
        return None

    def take(self, asking: Asking) -> None:
        """Take the next one out; its owner's turn is over."""
        lane, owner = self._places.pop(asking.question.device)
        line = self._lanes[lane].pop(owner)
        del line[asking.question.device]
        self._lanes[lane][owner] = line
        self._clean(lane, owner)

    def _clean(self, lane: Lane, owner: Owner) -> None:
        owners = self._lanes[lane]
        if not owners[owner]:
            del owners[owner]
        if not owners:
            del self._lanes[lane]
