"""What the documents that are handed out have in common: dates, and escaped text; pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from fusewatchd.text import LIMIT, printable

Document = dict[str, Any]
"""JSON-able: dicts with text keys, lists, text, numbers, booleans and None."""

PATH_LIMIT = 4 * 4096
"""``PATH_MAX`` of four-character escapes: paths are never cut in the document."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """The present, and when the daemon started, for turning cycle times into dates."""

    now_wall: float
    """Seconds since the epoch."""
    now_monotonic: float
    started_wall: float

    def date(self, monotonic: float | None) -> str | None:
        """Return a time of the monotonic clock as RFC 3339 in UTC."""
        if monotonic is None:
            return None
        return rfc3339(self.now_wall - (self.now_monotonic - monotonic))


def rfc3339(wall: float) -> str:
    """Return seconds since the epoch as a date in UTC with milliseconds."""
    moment = datetime.fromtimestamp(wall, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def shown(text: str, limit: int = LIMIT) -> str:
    """Escape text; nearly all of it needs nothing, and there is much of it."""
    if len(text) <= limit and text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return printable(text, limit)


def pod_name(pod: Document) -> str:
    """Return ``namespace/name`` of a pod in the document; its uid where no list has it."""
    return f"{pod['namespace']}/{pod['name']}" if pod["name"] else str(pod["uid"])


def owner_name(refused: Document) -> str:
    """Return whom an entry of ``refused_owners`` is about."""
    if refused["pod"] is not None:
        return f"pod {pod_name(refused['pod'])}"
    return "local users" if refused["owner"] == "foreign" else "node agents"


def quota_text(refused: Document) -> str:
    """Return of what an entry of ``refused_owners`` wants more than it may have, and how much."""
    wanted = f"{refused['wanted']:g} wanted, " if refused["wanted"] else ""
    example = f" ({refused['example']})" if refused["example"] else ""
    return f"{refused['resource']}, {wanted}the limit is {refused['limit']:g}{example}"


def clock(date: str, now: str) -> str:
    """Return a date in UTC of the document, without the day if that is the day of ``now``."""
    time = f"{date[11:19]}Z"
    return time if date[:10] == now[:10] else f"{date[:10]} {time}"


def fit(text: str, width: int) -> str:
    """Cut at the end."""
    return text if len(text) <= max(0, width) else text[: max(0, width - 1)] + "…"


def shorten(path: str, width: int) -> str:
    """Cut in the middle: both the top directory and the last name tell things apart."""
    if len(path) <= width:
        return path
    if width < 2:
        return fit(path, width)
    head = (width - 1) // 3
    return f"{path[:head]}…{path[len(path) - (width - 1 - head) :]}"
