"""Outages that are over, as far as they are worth remembering; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from fusewatchd.decision import Incident, Outage

MAX_OUTAGES = 256
"""On the whole node, the newest."""
MAX_OF_ONE = 8
"""Of one source."""


def remember(
    known: tuple[Outage, ...], closed: Iterable[Incident], now: float
) -> tuple[Outage, ...]:
    """Add the incidents that have just been closed; the oldest are forgotten."""
    fresh = tuple(_outage(incident, now) for incident in closed)
    if not fresh:
        return known
    kept: list[Outage] = []
    count: Counter[str] = Counter()
    for outage in reversed(known + fresh):
        count[outage.source_path] += 1
        if count[outage.source_path] <= MAX_OF_ONE and len(kept) < MAX_OUTAGES:
            kept.append(outage)
    return tuple(reversed(kept))


def _outage(incident: Incident, now: float) -> Outage:
    return Outage(
        incident.device,
        incident.source_path,
        incident.noticed_at,
        now if incident.recovered_at is None else incident.recovered_at,
        incident.server_gone_at,
        incident.source_up_at,
        incident.recovered_at,
        len(incident.targets),
        len(incident.recovered_targets),
    )
