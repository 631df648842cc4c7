"""Leaving out steps as long as what is left still fails."""

from __future__ import annotations

import time

from tests.model.episode import SHORT_SETTLE_SECONDS, Result, replay

SHRINK_SECONDS = 300.0


def shrink(failed: Result) -> Result:
    """Return the shortest failing sequence that was found in the time there is."""
    best = failed
    end = time.monotonic() + SHRINK_SECONDS
    size = max(1, len(best.steps) // 2)
    while time.monotonic() < end:
        start, is_shorter = 0, False
        while start < len(best.steps) and time.monotonic() < end:
            rest = best.steps[:start] + best.steps[start + size :]
            result = replay(best.scenario, rest, SHORT_SETTLE_SECONDS)
            if result.failure and len(result.steps) < len(best.steps):
                best, is_shorter = result, True
                print(f"  {len(best.steps)} steps still fail", flush=True)
            else:
                start += size
        if size == 1 and not is_shorter:
            break
        size = max(1, size // 2)
    return best
