"""The answer of a health check."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Health:
    """200 or 503, and a line for people."""

    is_good: bool
    text: str
