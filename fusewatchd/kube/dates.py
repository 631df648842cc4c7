"""Moments as servers write them in the fields of HTTP."""

from __future__ import annotations

from datetime import timezone
from email.utils import parsedate_to_datetime

MAX_RETRY_AFTER_SECONDS = 300.0


def http_date(text: str) -> float | None:
    """Return a date (RFC 9110, 5.6.7) in seconds since the epoch; None: it is none."""
    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def retry_after(text: str, now: float) -> float:
    """Return the seconds that a server asks for, as a number or as a date (RFC 9110, 10.2.3).

    Args:
        text: of the field.
        now: seconds since the epoch.
    """
    if text.isascii() and text.isdigit():
        return min(float(text), MAX_RETRY_AFTER_SECONDS)
    until = http_date(text)
    return 0.0 if until is None else max(0.0, min(until - now, MAX_RETRY_AFTER_SECONDS))
