"""What became of each volume of late, for the status page; bounded, and lost with the daemon."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.verdicts import Verdict

SPAN_SECONDS = 24 * 3600.0
"""How far back it goes."""
MAX_CHANGES = 60
"""Of one volume; the oldest are forgotten first."""
MAX_VOLUMES = 5000

VolumeKey = tuple[str, str]
"""Directory uid of the pod, name of the volume."""

BY_BADNESS = (
    Verdict.ON_DISK,
    Verdict.STALE,
    Verdict.HUNG,
    Verdict.BARE,
    Verdict.ORPHANED,
    Verdict.SLOW,
    Verdict.HELD,
    Verdict.SUPERSEDED,
    Verdict.UNKNOWN,
    Verdict.HEALTHY,
)
_RANK = {verdict: rank for rank, verdict in enumerate(BY_BADNESS)}


@dataclass(frozen=True, slots=True)
class Spell:
    """From when on a volume was like this."""

    since: float
    """Monotonic seconds."""
    verdict: str


class Timelines:
    """A reporter; may be read from any thread."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._lock = threading.Lock()
        self._volumes: dict[VolumeKey, deque[Spell]] = {}
        self._seen_at: dict[VolumeKey, float] = {}

    def report(self, cycle: CycleReport) -> None:
        """Note the worst verdict of each volume where it changed."""
        now = cycle.finished_at
        worst: dict[VolumeKey, Verdict] = {}
        for finding in cycle.findings:
            path = finding.bind.path
            key = (path.pod_uid, path.volume)
            if key not in worst or _RANK[finding.verdict] < _RANK[worst[key]]:
                worst[key] = finding.verdict
        with self._lock:
            for key, verdict in worst.items():
                self._note(key, verdict.value, now)
            if len(self._volumes) > len(worst):
                self._forget(now)

    def volumes(self) -> Mapping[VolumeKey, tuple[Spell, ...]]:
        """Return what is known, oldest first."""
        with self._lock:
            return {key: tuple(spells) for key, spells in self._volumes.items()}

    def _note(self, key: VolumeKey, verdict: str, now: float) -> None:
        spells = self._volumes.get(key)
        if spells is None:
            if len(self._volumes) >= MAX_VOLUMES:
                return
            spells = self._volumes[key] = deque(maxlen=MAX_CHANGES)
        self._seen_at[key] = now
        if not spells or spells[-1].verdict != verdict:
            spells.append(Spell(now, verdict))
        while len(spells) > 1 and spells[1].since < now - SPAN_SECONDS:
            spells.popleft()

    def _forget(self, now: float) -> None:
        for key in [key for key, at in self._seen_at.items() if now - at > SPAN_SECONDS]:
            del self._volumes[key], self._seen_at[key]
