"""How fast one node writes, so that all nodes together are no burden; pure.

A storage that dies, dies on every node that uses it, in the same second.  A node cannot see
that it is one of thousands; so it knows how many there are, and each keeps to its share of
what the API server is to bear: everything at once in a small cluster, one write in half a
minute in one of thousands, from a moment of its own.  How much is written about one object is
limited as client-go's spam filter (tools/record) does it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from fusewatchd.rate_limit import Bucket, Rate
from fusewatchd.report.events.draft import Regarding
from fusewatchd.report.events.event_limit import MAX_PODS, WINDOW_SECONDS

CLUSTER_PER_SECOND = 20.0
"""Of all nodes together, for ever, while they are few."""
NODE_PER_SECOND = 0.025
"""Of one node of very many: 25 a second of a thousand, and not 50 by the accident of chance."""
MAX_PER_SECOND = 5.0
MIN_TOLD = 3
CLUSTER_BURST = 200.0
"""Of all nodes together at once."""
PER_OBJECT = Rate(per_second=1 / 300.0, burst=25.0)
"""For each object: so many new Events at once, then one in five minutes."""
MAX_OBJECTS = 1024


def share(nodes: int) -> Rate:
    """Return what one of so many nodes may write."""
    per_second = min(MAX_PER_SECOND, max(NODE_PER_SECOND, CLUSTER_PER_SECOND / nodes))
    return Rate(per_second, max(1.0, CLUSTER_BURST / nodes))


def most_told(rate: Rate) -> int:
    """Return of how many objects a storm can be told one by one.

    Two Events on each of them, and as much again that is told on others, within the window in
    which a storm is one.
    """
    return max(MIN_TOLD, min(MAX_PODS, int(rate.per_second * WINDOW_SECONDS / 4)))


class Pace:
    """When the next write may be; the time is an argument, in seconds of a monotonic clock."""

    def __init__(self, chance: Callable[[], float], rate: Rate | None = None) -> None:
        """Begin as the only node.

        Args:
            chance: between 0 and 1.
            rate: keep to this one, however many nodes there are.
        """
        self._chance = chance
        self._fixed = rate
        self.rate = rate or share(1)
        self._bucket = Bucket()
        self._starts_at: float | None = None

    def take_nodes(self, nodes: int) -> None:
        """Take the number of nodes of the cluster, at least 1."""
        self.rate = self._fixed or share(max(1, nodes))

    def write_at(self, now: float) -> float:
        """Return when something that waits now may be written.

        After a rest the first write has a moment of its own: where the whole cluster has
        something to say, not all nodes begin at once.
        """
        lacking = 1 - self._bucket.left(self.rate, now)
        if lacking > 0:
            return now + lacking / self.rate.per_second
        if self.rate.burst > 1:
            return now
        if self._starts_at is None:
            self._starts_at = now + self.spread()
        return max(now, self._starts_at)

    @property
    def seconds_between(self) -> float:
        """From one write to the next when there is much to say; requests that fail count too."""
        return 0.0 if self.rate.burst >= CLUSTER_BURST else 1 / self.rate.per_second

    def spread(self) -> float:
        """Return a delay by chance, in seconds, that spreads one write of every node."""
        return self._chance() * self.seconds_between

    def take(self, count: int, now: float) -> None:
        """Note so many writes."""
        self._bucket = self._bucket.take(count, self.rate, now)
        self._starts_at = None


class SpamFilter:
    """Remembers how much was said of each object lately; bounded."""

    def __init__(self) -> None:
        """Begin with nothing said."""
        self._buckets: OrderedDict[Regarding, Bucket] = OrderedDict()

    def admits(self, regarding: Regarding, now: float) -> bool:
        """Return True when one more may be said of this object; ``now`` is monotonic."""
        bucket = self._buckets.pop(regarding, Bucket())
        is_admitted = bucket.left(PER_OBJECT, now) >= 1
        self._buckets[regarding] = bucket.take(1, PER_OBJECT, now) if is_admitted else bucket
        if len(self._buckets) > MAX_OBJECTS:
            self._buckets.popitem(last=False)
        return is_admitted
