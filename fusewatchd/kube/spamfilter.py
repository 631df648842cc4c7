"""How much is written about one object, as client-go's spam filter (tools/record) has it."""

from __future__ import annotations

from collections import OrderedDict

from fusewatchd.bucket import Bucket, Rate
from fusewatchd.reporters.base import Regarding

PER_OBJECT = Rate(per_second=1 / 300.0, burst=25.0)
"""For each object: so many new Events at once, then one in five minutes."""
MAX_OBJECTS = 1024


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
