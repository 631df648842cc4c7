"""Delays that double, and have an end."""

from __future__ import annotations

MOST_DOUBLINGS = 64
"""A float holds a thousand, which a thing that is tried once a minute passes in a day."""


def doubled(first: float, most: float, times: int) -> float:
    """Return ``first`` doubled so many times, and never more than ``most``."""
    return min(most, first * 2.0 ** min(max(0, times), MOST_DOUBLINGS))
