"""What an API server shows to those who read: its resources, and Events in both versions.

Events are kept as they were written and shown as asked for, converted as the real server does
(kubernetes, pkg/apis/events/v1/conversion.go).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]

_EVENTS = re.compile(r"(?:/apis/(events\.k8s\.io/v1)|/api/(v1))(?:/namespaces/([^/]+))?/events")
_RENAMED = {
    "regarding": "involvedObject",
    "note": "message",
    "reportingController": "reportingComponent",
}


def _resources(version: str, kinds: dict[str, str]) -> Object:
    same = {"singularName": "", "namespaced": True, "verbs": ["get", "list"]}
    resources = [{**same, "name": name, "kind": kind} for name, kind in kinds.items()]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}


_EVENTS_V1 = {"groupVersion": "events.k8s.io/v1", "version": "v1"}
DISCOVERY: dict[str, Object] = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [
            {"name": "events.k8s.io", "versions": [_EVENTS_V1], "preferredVersion": _EVENTS_V1}
        ],
    },
    "/api/v1": _resources("v1", {"pods": "Pod", "events": "Event"}),
    "/apis/events.k8s.io/v1": _resources("events.k8s.io/v1", {"events": "Event"}),
}


def event_list(path: str, events: Iterable[Object], resource_version: int) -> Object | None:
    """Return the Events that the path of a GET asks for; None when it asks for something else."""
    asked = urlsplit(path)
    found = _EVENTS.fullmatch(asked.path)
    if found is None:
        return None
    version = found[1] or found[2]
    fields = parse_qs(asked.query).get("fieldSelector", [""])[0]
    wanted = [field.partition("=") for field in fields.split(",") if field]
    items = [
        event if event["apiVersion"] == version or version != "v1" else as_core(event)
        for event in events
        if found[3] in (None, event["metadata"]["namespace"])
    ]
    return {
        "kind": "EventList",
        "apiVersion": version,
        "metadata": {"resourceVersion": str(resource_version)},
        "items": [e for e in items if all(_field(e, key) == value for key, _, value in wanted)],
    }


def as_core(event: Object) -> Object:
    """Return an Event of events.k8s.io/v1 as core/v1 has it."""
    same = {key: value for key, value in event.items() if key not in _RENAMED}
    renamed = {new: event[old] for old, new in _RENAMED.items() if old in event}
    return {
        **same,
        **renamed,
        "apiVersion": "v1",
        "source": {},
        "firstTimestamp": None,
        "lastTimestamp": None,
    }


def _field(event: Object, path: str) -> str:
    value: Any = event
    for name in path.split("."):
        value = value.get(name, "")
    return str(value)
