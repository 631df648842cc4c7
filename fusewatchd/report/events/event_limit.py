"""Limits per-pod Events when many pods are hit.

An outage of a few dozen pods is told on each of them.  When more than ``MAX_PODS`` are hit
within ``WINDOW_SECONDS``, all further ones are told on the node, where one Event for each
reason counts them: an API server has more to do than to hear of each pod of a storm.  In a
large cluster, where each node has little to say, they are fewer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

MAX_PODS = 100
WINDOW_SECONDS = 600.0


class EventLimit:
    """Remembers who has been told of lately; bounded."""

    def __init__(self, most: Callable[[], int] = lambda: MAX_PODS) -> None:
        """Begin with nobody; ``most`` says how many there may be now."""
        self._most = most
        self._told: OrderedDict[str, float] = OrderedDict()

    def admits(self, uid: str, now: float) -> bool:
        """Return True when this pod gets an Event of its own.

        Whoever got one gets the next ones as well, so that no outage begins on a pod and
        ends on the node; ``now`` is in seconds of a clock that does not go back.
        """
        while self._told and now - next(iter(self._told.values())) > WINDOW_SECONDS:
            self._told.popitem(last=False)
        if uid not in self._told and len(self._told) >= self._most():
            return False
        self._told[uid] = now
        self._told.move_to_end(uid)
        return True
