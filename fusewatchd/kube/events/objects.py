"""Events as the API server takes them: events.k8s.io/v1, and core/v1 for older servers; pure.

Rules: kubernetes, pkg/apis/core/validation/events.go; behaviour: client-go, tools/events.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import Any
from urllib.parse import quote

from fusewatchd.report.events.draft import EventDraft, ObjectReference

CONTROLLER = "fusewatchd.io/fusewatchd"
MAX_NOTE_BYTES = 1024
MAX_FIELD = 128
MAX_NAME = 253
_DEFAULT_NAMESPACE = "default"


class EventsApi(Enum):
    """Which API the server has."""

    EVENTS_V1 = "/apis/events.k8s.io/v1"
    CORE_V1 = "/api/v1"


@dataclass(frozen=True, slots=True)
class Occurrences:
    """One Event that happened ``count`` times; seconds since 1970."""

    draft: EventDraft
    regarding: ObjectReference
    """Whom the draft is about, by the name that the API server knows."""
    name: str
    count: int
    first_at: float
    last_at: float


def namespace_of(regarding: ObjectReference) -> str:
    """Return where the Event goes; those on cluster-scoped objects go to ``default``."""
    return regarding.namespace or _DEFAULT_NAMESPACE


def collection_path(api: EventsApi, regarding: ObjectReference) -> str:
    """Return the path to POST to."""
    return f"{api.value}/namespaces/{segment(namespace_of(regarding))}/events"


def object_path(api: EventsApi, event: Occurrences) -> str:
    """Return the path to PATCH."""
    return f"{collection_path(api, event.regarding)}/{segment(event.name)}"


def segment(name: str) -> str:
    """Names come from the kubelet; whatever they are, none leads anywhere else."""
    return quote(name, safe="", errors="backslashreplace")


def event_name(draft: EventDraft, first_at: float, number: int) -> str:
    """Return a name that no other Event of this object has."""
    suffix = f".{int(first_at * 1e9) + number:x}"
    return draft.regarding.name[: MAX_NAME - len(suffix)].rstrip(".-") + suffix


def event_object(api: EventsApi, event: Occurrences, instance: str) -> dict[str, Any]:
    """Return the body of the POST that creates an Event."""
    draft, regarding = event.draft, event.regarding
    reference = _reference(regarding)
    common = {
        **({"related": _reference(draft.related)} if draft.related is not None else {}),
        "metadata": {"name": event.name, "namespace": namespace_of(regarding)},
        "reason": draft.reason[:MAX_FIELD],
        "type": draft.type,
        "reportingInstance": instance[:MAX_FIELD],
    }
    if api is EventsApi.EVENTS_V1:
        return {
            **common,
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "eventTime": micro_time(event.first_at),
            "reportingController": CONTROLLER,
            "action": draft.action[:MAX_FIELD],
            "regarding": reference,
            "note": cut(draft.note),
        }
    return {
        **common,
        "apiVersion": "v1",
        "kind": "Event",
        "reportingComponent": CONTROLLER,
        "source": {"component": CONTROLLER, "host": instance[:MAX_FIELD]},
        "involvedObject": reference,
        "message": cut(draft.note),
        "count": event.count,
        "firstTimestamp": whole_time(event.first_at),
        "lastTimestamp": whole_time(event.last_at),
    }


def _reference(to: ObjectReference) -> dict[str, str]:
    reference = {
        "apiVersion": to.api_version,
        "kind": to.kind,
        "name": to.name,
        "namespace": to.namespace,
        "uid": to.uid,
    }
    return {key: value for key, value in reference.items() if value}


def series_patch(api: EventsApi, event: Occurrences) -> dict[str, Any]:
    """Return the merge patch that raises the count of an Event."""
    if api is EventsApi.EVENTS_V1:
        observed = micro_time(event.last_at)
        return {"series": {"count": event.count, "lastObservedTime": observed}}
    return {"count": event.count, "lastTimestamp": whole_time(event.last_at)}


def cut(note: str) -> str:
    """Bound a note to what the server takes, in bytes of UTF-8."""
    data = note.encode("utf-8", "replace")
    if len(data) <= MAX_NOTE_BYTES:
        return data.decode()
    return data[: MAX_NOTE_BYTES - 3].decode("utf-8", "ignore") + "…"


def micro_time(seconds: float) -> str:
    """Return an RFC 3339 date with microseconds (meta/v1 MicroTime)."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def whole_time(seconds: float) -> str:
    """Return an RFC 3339 date of whole seconds (meta/v1 Time)."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
