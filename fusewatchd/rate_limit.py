"""Limits of how often something is done: a token bucket, and delays that double; pure."""

from __future__ import annotations

from dataclasses import dataclass

MOST_DOUBLINGS = 64
"""A float holds a thousand, which a thing that is tried once a minute passes in a day."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What is allowed: ``burst`` at once, ``per_second`` for ever."""

    per_second: float
    burst: float


@dataclass(frozen=True, slots=True)
class Bucket:
    """How much is left; begins full."""

    missing: float = 0.0
    """Up to ``burst``; what was taken and has not come back by ``at``."""
    at: float = 0.0

    def left(self, rate: Rate, now: float) -> float:
        """Return how much may be taken now; below 0 after more was taken than there was."""
        return rate.burst - self._missing(rate, now)

    def take(self, amount: float, rate: Rate, now: float) -> Bucket:
        """Return the bucket after ``amount`` was taken from it."""
        return Bucket(self._missing(rate, now) + amount, max(now, self.at))

    def _missing(self, rate: Rate, now: float) -> float:
        return max(0.0, self.missing - max(0.0, now - self.at) * rate.per_second)


def doubled(first: float, most: float, times: int) -> float:
    """Return ``first`` doubled so many times, and never more than ``most``."""
    return min(most, first * 2.0 ** min(max(0, times), MOST_DOUBLINGS))
