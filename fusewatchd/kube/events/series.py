"""One Event and how much of it the server knows; kept over a restart of the daemon."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from fusewatchd.errors import ParseError
from fusewatchd.kube.events.objects import Occurrences
from fusewatchd.report.events.draft import (
    EventDraft,
    ObjectReference,
    VolumeObject,
    VolumeReference,
)

PATCH_REST_SECONDS = 2.0
"""Between two rises of one count; twice as long after each of them."""
VERSION = 1


@dataclass(slots=True)
class Series:
    """What is to be said, how often it happened, and how often the server was told."""

    draft: EventDraft
    first_at: float
    last_at: float
    """Both in seconds since 1970."""
    name: str
    began: float
    """Monotonic; when it happened last."""
    count: int = 1
    posted: int = 0
    """The count that the server has; 0: it was not created yet."""
    due: float = 0.0
    rest: float = PATCH_REST_SECONDS
    regarding: ObjectReference | None = None
    """As the API server names it, once that is known."""

    @property
    def is_waiting(self) -> bool:
        """True while the server does not know all of it."""
        return self.count > self.posted

    def occurrences(self, regarding: ObjectReference) -> Occurrences:
        """Return what to write now."""
        return Occurrences(
            self.draft, regarding, self.name, self.count, self.first_at, self.last_at
        )


def document_of(series: Iterable[Series]) -> dict[str, Any]:
    """Return the Events as JSON values."""
    return {"version": VERSION, "events": [_entry(one) for one in series]}


def _entry(series: Series) -> dict[str, Any]:
    return {
        **draft_document(series.draft),
        "first_at": series.first_at,
        "last_at": series.last_at,
        "name": series.name,
        "count": series.count,
        "posted": series.posted,
        "rest": series.rest,
    }


def draft_document(draft: EventDraft) -> dict[str, Any]:
    """Return what an Event says as JSON values."""
    about: dict[str, Any] = asdict(draft.regarding)
    if isinstance(draft.regarding, VolumeReference):
        about["object"] = draft.regarding.object.value
    return {
        "about": about,
        "related": None if draft.related is None else asdict(draft.related),
        "reason": draft.reason,
        "action": draft.action,
        "note": draft.note,
        "type": draft.type,
    }


def series_from(document: Any, now: float, wall: float) -> list[Series]:
    """Read what ``document_of`` wrote.

    Args:
        document: a JSON value of whatever kind.
        now: monotonic seconds.
        wall: seconds since 1970.

    Raises:
        ParseError: it is not what it should be.
    """
    try:
        if document["version"] != VERSION:
            raise ParseError(f"events of version {document['version']!r}")
        return [_series(entry, now, wall) for entry in document["events"]]
    except (KeyError, TypeError, ValueError, OverflowError) as exc:
        raise ParseError(f"events: {exc!r} is not expected") from exc


def draft_from(entry: Any) -> EventDraft:
    """Read what ``draft_document`` wrote.

    Raises:
        KeyError, TypeError, ValueError: it is not what it should be.
    """
    about = dict(entry["about"])
    regarding: ObjectReference | VolumeReference
    if "object" in about:
        regarding = VolumeReference(_text(about["volume"]), VolumeObject(about["object"]))
    else:
        regarding = _object(about)
    related = _object(entry["related"]) if entry.get("related") is not None else None
    reason, action, note, type_ = (_text(entry[k]) for k in ("reason", "action", "note", "type"))
    return EventDraft(regarding, reason, action, note, type_, related)


def _series(entry: Any, now: float, wall: float) -> Series:
    draft = draft_from(entry)
    first_at, last_at, rest = (float(entry[key]) for key in ("first_at", "last_at", "rest"))
    if not all(map(isfinite, (first_at, last_at, rest))):
        raise ValueError("a time that is none")
    # Whatever the clock of the wall did meanwhile, nothing has happened in the future.
    age = max(0.0, wall - last_at)
    count, posted = int(entry["count"]), int(entry["posted"])
    if not 0 <= posted <= count:
        raise ValueError(f"posted {posted} of {count}")
    return Series(
        draft, first_at, last_at, _text(entry["name"]), now - age, count, posted, rest=rest
    )


def _object(fields: Any) -> ObjectReference:
    return ObjectReference(**{key: _text(value) for key, value in dict(fields).items()})


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text, not {type(value).__name__}")
    return value
