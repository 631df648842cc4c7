"""The parts of an API server that take Events and name objects, for the demo and for tests.

Refuses what the real one refuses (kubernetes, pkg/apis/core/validation/events.go).
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler
from typing import Any

from fusewatchd.demo.cluster.loopback import Handler, LoopbackServer
from fusewatchd.demo.cluster.rbac import Permission, is_allowed, permission_of
from fusewatchd.demo.cluster.resources import DISCOVERY, event_list

_PATHS = {
    "/apis/events.k8s.io/v1": "events.k8s.io/v1",
    "/api/v1": "v1",
}
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_REQUEST = re.compile(r"(/apis/events\.k8s\.io/v1|/api/v1)/namespaces/([^/]+)/events(?:/([^/]+))?")
_NODE_STATUS = re.compile(r"/api/v1/nodes/[^/]+/status")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"([a-z0-9.-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")

Object = dict[str, Any]


class _Refusal(Exception):
    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class DemoApiServer(LoopbackServer):
    """Keeps Events in memory; delay and refusals can be set at any time."""

    def __init__(
        self, *, token: str = "", certificate: str = "", has_events_v1: bool = True
    ) -> None:
        """Listen on a free port of loopback.

        Args:
            token: the only bearer token that is accepted; empty: everybody is.
            certificate: PEM file with key and chain; plain http without.
            has_events_v1: False for a server that only has core/v1.
        """
        self.token = token
        self.status = 0
        """Not 0: refuse everything with this status."""
        self.retry_after = ""
        self.ahead_seconds = 0.0
        """By which its clock is wrong."""
        self.delay_seconds = 0.0
        self.denied: set[tuple[str, str]] = set()
        """Verb and resource (with its group) that nobody is allowed."""
        self.rules: list[Object] | None = None
        """Of a ClusterRole: all that is allowed; None: everything is."""
        self.missing_namespaces: set[str] = set()
        self.ending_namespaces: set[str] = set()
        self.conditions: dict[str, Object] = {}
        """Of the node, by type, as patches have left them."""
        self.objects: dict[str, Object] = {}
        """What a GET of a path finds."""
        self.forbidden: set[str] = set()
        """Beginnings of the paths that nobody may GET."""
        self.requests: list[tuple[str, str]] = []
        """Method and path of every request so far."""
        self._has_events_v1 = has_events_v1
        self._events: dict[tuple[str, str], Object] = {}
        self._resource_version = 0
        self._lock = threading.Lock()
        super().__init__(self._handler(), certificate)

    def events(self) -> list[Object]:
        """Return the Events that were taken, in the order of their creation."""
        with self._lock:
            events: list[Object] = json.loads(json.dumps(list(self._events.values())))
            return events

    def reasons(self) -> list[str]:
        """Return the reasons of the Events, in the order of their creation."""
        return [event["reason"] for event in self.events()]

    # ----------------------------------------------------------------------- requests

    def answer(self, method: str, path: str, authorization: str, body: bytes) -> tuple[int, Object]:
        """Return status and body for a request."""
        self.requests.append((method, path))
        self._is_over.wait(self.delay_seconds)
        try:
            if self.token and authorization != f"Bearer {self.token}":
                raise _Refusal(401, "Unauthorized", "Unauthorized")
            if self.status:
                raise _Refusal(self.status, "Refused", "refused by the demo")
            wanted = permission_of(method, path)
            if wanted is not None and self.rules is not None and not is_allowed(wanted, self.rules):
                raise _Refusal(403, "Forbidden", wanted.refusal())
            if method == "GET":
                return 200, self._get(path)
            if method == "PATCH" and _NODE_STATUS.fullmatch(path):
                return 200, self._patch_node(json.loads(body))
            if path == _REVIEWS and method == "POST":
                return 201, self._review(json.loads(body))
            found = _REQUEST.fullmatch(path)
            if found is None or (found[1] != "/api/v1" and not self._has_events_v1):
                raise _Refusal(404, "NotFound", "the server could not find the requested resource")
            with self._lock:
                if method == "POST" and not found[3]:
                    return 201, self._create(_PATHS[found[1]], found[2], json.loads(body))
                if method == "PATCH" and found[3]:
                    return 200, self._patch(_PATHS[found[1]], found[2], found[3], json.loads(body))
            raise _Refusal(405, "MethodNotAllowed", "the method is not allowed")
        except _Refusal as exc:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
            return exc.code, {**status, "code": exc.code, "reason": exc.reason, "message": str(exc)}

    def _get(self, path: str) -> Object:
        if any(path.startswith(beginning) for beginning in self.forbidden):
            raise _Refusal(403, "Forbidden", "not allowed by the demo")
        with self._lock:
            shown = event_list(path, self._events.values(), self._resource_version)
        plain = path.partition("?")[0]
        found = shown or self.objects.get(plain) or DISCOVERY.get(plain)
        if found is None:
            raise _Refusal(404, "NotFound", "the server could not find the requested resource")
        return found

    def _patch_node(self, patch: Object) -> Object:
        if "/api/v1/nodes/" in self.forbidden:
            raise _Refusal(403, "Forbidden", "not allowed by the demo")
        for condition in patch["status"]["conditions"]:
            if condition.get("$patch") == "delete":
                self.conditions.pop(condition["type"], None)
            else:
                self.conditions[condition["type"]] = condition
        return {"kind": "Node", "apiVersion": "v1"}

    def _review(self, review: Object) -> Object:
        attributes = review.get("spec", {}).get("resourceAttributes", {})
        if review.get("kind") != "SelfSubjectAccessReview" or not attributes:
            raise _Refusal(422, "Invalid", "SelfSubjectAccessReview is invalid: spec: required")
        verb, group = attributes.get("verb", ""), attributes.get("group", "")
        resource = attributes.get("resource", "")
        part = f"/{attributes['subresource']}" if "subresource" in attributes else ""
        asked = Permission(verb, group, resource + part)
        name = ".".join(filter(None, (resource, group)))
        allowed = (verb, name + part) not in self.denied
        allowed = allowed and (self.rules is None or is_allowed(asked, self.rules))
        return {**review, "status": {"allowed": allowed}}

    def _create(self, version: str, namespace: str, event: Object) -> Object:
        if namespace in self.missing_namespaces:
            raise _Refusal(404, "NotFound", f'namespaces "{namespace}" not found')
        if namespace in self.ending_namespaces:
            message = f"unable to create new content in namespace {namespace} because it is"
            raise _Refusal(403, "Forbidden", f"{message} being terminated")
        problems = _problems(version, namespace, event)
        if problems:
            raise _Refusal(422, "Invalid", f"Event is invalid: {'; '.join(problems)}")
        key = (namespace, event["metadata"]["name"])
        if key in self._events:
            raise _Refusal(409, "AlreadyExists", f'events "{key[1]}" already exists')
        metadata = {
            **event["metadata"],
            "uid": str(uuid.uuid4()),
            "creationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        return self._keep(key, {**event, "metadata": metadata})

    def _keep(self, key: tuple[str, str], event: Object) -> Object:
        self._resource_version += 1
        metadata = {**event["metadata"], "resourceVersion": str(self._resource_version)}
        self._events[key] = kept = {**event, "metadata": metadata}
        return kept

    def _patch(self, version: str, namespace: str, name: str, patch: Object) -> Object:
        event = self._events.get((namespace, name))
        if event is None:
            raise _Refusal(404, "NotFound", f'events "{name}" not found')
        known = event["metadata"].get("resourceVersion")
        if patch.get("metadata", {}).get("resourceVersion", known) != known:
            message = (
                "the object has been modified; please apply your changes to the latest version"
            )
            raise _Refusal(409, "Conflict", message)
        merged = {**event, **patch, "metadata": event["metadata"]}
        immutable = ("eventTime", "reason", "action", "note", "regarding", "reportingController")
        changed = [f for f in immutable if merged.get(f) != event.get(f)]
        problems = _problems(version, namespace, merged)
        if changed or problems:
            what = "; ".join([*(f"{f}: field is immutable" for f in changed), *problems])
            raise _Refusal(422, "Invalid", f"Event is invalid: {what}")
        return self._keep((namespace, name), merged)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class ObjectHandler(Handler):
            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                given = self.headers.get("Authorization", "")
                status, document = server.answer(self.command, self.path, given, body)
                data = json.dumps(document).encode()
                self.respond(status, len(data), {"Retry-After": server.retry_after})
                self.wfile.write(data)

            def date_time_string(self, timestamp: float | None = None) -> str:
                return super().date_time_string(time.time() + server.ahead_seconds)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _serve

        return ObjectHandler


def _problems(version: str, namespace: str, event: Object) -> list[str]:
    metadata = event.get("metadata", {})
    found = []
    if event.get("apiVersion") != version or event.get("kind") != "Event":
        found.append("apiVersion, kind: do not fit the path")
    if not _SUBDOMAIN.fullmatch(metadata.get("name", "")) or len(metadata["name"]) > 253:
        found.append("metadata.name: not a DNS subdomain")
    if metadata.get("namespace") != namespace:
        found.append("metadata.namespace: does not fit the path")
    if version == "v1":
        return found + _core_problems(namespace, event)
    return found + _events_problems(namespace, event)


def _events_problems(namespace: str, event: Object) -> list[str]:
    regarding = event.get("regarding", {})
    checks = {
        "eventTime": bool(_MICRO_TIME.fullmatch(event.get("eventTime") or "")),
        "reportingController": bool(_QUALIFIED.fullmatch(event.get("reportingController", ""))),
        "reportingInstance": 0 < len(event.get("reportingInstance", "")) <= 128,
        "action": 0 < len(event.get("action", "")) <= 128,
        "reason": 0 < len(event.get("reason", "")) <= 128,
        "type": event.get("type") in ("Normal", "Warning"),
        "note": len(event.get("note", "").encode()) <= 1024,
        "regarding.namespace": (regarding.get("namespace") or "default") == namespace,
        "regarding": bool(regarding.get("kind") and regarding.get("name")),
    }
    series = event.get("series")
    if series is not None:
        checks["series.count"] = series.get("count", 0) >= 2
        observed = series.get("lastObservedTime") or ""
        checks["series.lastObservedTime"] = bool(_MICRO_TIME.fullmatch(observed))
    return [f"{field}: not valid" for field, is_fine in checks.items() if not is_fine]


def _core_problems(namespace: str, event: Object) -> list[str]:
    involved = event.get("involvedObject", {})
    checks = {
        "involvedObject.namespace": (involved.get("namespace") or "default") == namespace,
        "firstTimestamp": bool(_TIME.fullmatch(event.get("firstTimestamp") or "")),
        "lastTimestamp": bool(_TIME.fullmatch(event.get("lastTimestamp") or "")),
        "count": event.get("count", 0) >= 1,
        "message": len(event.get("message", "").encode()) <= 1024,
    }
    return [f"{field}: not valid" for field, is_fine in checks.items() if not is_fine]
