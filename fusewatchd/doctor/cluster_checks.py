"""The kubelet, the API server and the credentials for both."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fusewatchd.doctor.findings import Finding, fail, ok, warn

SKEW_WARN_SECONDS = 5.0
SKEW_FAIL_SECONDS = 60.0
"""Tokens and certificates are valid from a moment to a moment."""
EXPIRES_SOON_SECONDS = 600.0
"""A kubelet renews projected tokens when a fifth of their life is left, at least 10 minutes."""

MAX_EPOCH_SECONDS = 1e12


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """A file with a bearer token."""

    name: str
    """Whose it is."""
    path: str
    problem: str = ""
    expires_at: float | None = None
    """Seconds since the epoch; None: it has no end, or is no JWT."""


@dataclass(frozen=True, slots=True)
class Permission:
    """A request that is made to the API server."""

    verb: str
    group: str
    resource: str
    subresource: str = ""
    without: str = ""
    """What is lost without it; empty: what was configured does not work then."""
    is_allowed: bool = False

    @property
    def text(self) -> str:
        """Write it as ``kubectl auth can-i`` takes it."""
        group = f".{self.group}" if self.group else ""
        subresource = f"/{self.subresource}" if self.subresource else ""
        return f"{self.verb} {self.resource}{group}{subresource}"


EVENTS = (
    Permission("create", "events.k8s.io", "events"),
    Permission("patch", "events.k8s.io", "events"),
    Permission("list", "", "nodes", without="its share of the cluster's writes is a guess"),
)
VOLUME_EVENTS = (
    Permission("get", "", "persistentvolumes", without="no Events on claims"),
    Permission("get", "data.fluid.io", "datasets", without="no Events on Fluid's Datasets"),
)
NODE_CONDITION = (Permission("patch", "", "nodes", "status"),)


def permissions_for(*, volume_events: bool, node_condition: bool) -> tuple[Permission, ...]:
    """Return what the daemon asks of the API server when it is configured like this."""
    volumes = VOLUME_EVENTS if volume_events else ()
    return EVENTS + volumes + (NODE_CONDITION if node_condition else ())


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """How a server answered."""

    url: str
    problem: str = ""
    code: int = 0
    """Status of the answer; 0: there was none."""
    server_time: float | None = None
    """Seconds since the epoch, by its ``Date`` field; half a second off on average."""
    asked_at: float = 0.0
    """Seconds since the epoch, by this node."""
    credentials: str = ""
    """The key of what the daemon shows it, ``apiserver.kubeconfig``."""


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What was found out about both; None: not configured."""

    now: float
    """Seconds since the epoch."""
    tokens: tuple[TokenFacts, ...]
    kubelet: ServerFacts | None
    pods: int
    """How many pods the kubelet told of."""
    apiserver: ServerFacts | None
    permissions: tuple[Permission, ...]


def token_expiry(token: str) -> float | None:
    """Return ``exp`` of a JWT (RFC 7519), seconds since the epoch; None: there is none."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        claims: Any = json.loads(payload)
    except (binascii.Error, ValueError, RecursionError):
        return None
    found = claims.get("exp") if isinstance(claims, dict) else None
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return float(found) if abs(found) < MAX_EPOCH_SECONDS else None


def cluster_findings(facts: ClusterFacts) -> Iterator[Finding]:
    """Judge what is configured; what is not is said, and is no defect."""
    for token in facts.tokens:
        yield _token(token, facts.now)
    yield _kubelet(facts)
    yield from _apiserver(facts)
    yield from _clock(facts)


def _token(token: TokenFacts, now: float) -> Finding:
    renew = "have it renewed before its end, and see who writes the file"
    if token.problem:
        return fail(token.name, token.problem, "chown root and chmod 600, with one token in it")
    if token.expires_at is None:
        return ok(token.name, f"{token.path} has no end")
    left = token.expires_at - now
    if left <= 0:
        return fail(token.name, f"{token.path} expired {_span(-left)} ago", renew)
    if left < EXPIRES_SOON_SECONDS:
        return warn(token.name, f"{token.path} expires in {_span(left)}", renew)
    return ok(token.name, f"{token.path} is good for {_span(left)}")


def _span(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _kubelet(facts: ClusterFacts) -> Finding:
    server = facts.kubelet
    if server is None:
        return ok("kubelet", "not asked (kubelet.url): pods are known by their uid alone")
    if not server.problem:
        return ok("kubelet", f"{server.url} tells of {facts.pods} pods")
    advice = {
        401: f"its token or certificate is not accepted: see {server.credentials}",
        403: "let the account get nodes/pods (before Kubernetes 1.33 nodes/proxy): conf/kubernetes",
    }.get(server.code, "see kubelet.url, kubelet.ca_file and kubelet.server_name")
    return fail("kubelet", server.problem, _of_credentials(server) or advice)


_EXPIRED = "ALERT_CERTIFICATE_EXPIRED"
"""The other side says so of the certificate that it was shown, RFC 8446, 6.2."""


def _of_credentials(server: ServerFacts) -> str:
    """Say what to do where it is the daemon's own credentials that are of no use; else empty."""
    if _EXPIRED in server.problem:
        return (
            f"the client certificate of {server.credentials} has expired; the kubelet keeps a"
            " renewed one of its own: pki/kubelet-client-current.pem below its directory"
        )
    if "not supported; expected a token or certificate" in server.problem:
        return (
            "set apiserver.url and apiserver.token_file, with the token of a ServiceAccount"
            " (conf/kubernetes), in place of apiserver.kubeconfig"
        )
    return ""


def _apiserver(facts: ClusterFacts) -> Iterator[Finding]:
    server = facts.apiserver
    if server is None:
        yield ok(
            "API server", "not told (apiserver.url or apiserver.kubeconfig): no Events are posted"
        )
        return
    if server.problem:
        is_401 = server.code == 401
        keys = server.credentials if is_401 else "apiserver.url and apiserver.ca_file"
        if server.credentials == "apiserver.kubeconfig":
            keys = server.credentials
        yield fail("API server", server.problem, _of_credentials(server) or f"see {keys}")
        return
    denied = [permission for permission in facts.permissions if not permission.is_allowed]
    advice = "kubectl apply the ClusterRole of conf/kubernetes, bound to the token's account"
    for permission in denied:
        text = f"{server.url}: may not {permission.text}"
        if permission.without:
            yield warn("API server", f"{text}: {permission.without}", advice)
        else:
            yield fail("API server", text, advice)
    if not denied:
        allowed = ", ".join(permission.text for permission in facts.permissions)
        yield ok("API server", f"{server.url}: may {allowed}")


def _clock(facts: ClusterFacts) -> Iterator[Finding]:
    advice = "see that the node's time is kept (timedatectl)"
    for name, server in (("kubelet", facts.kubelet), ("API server", facts.apiserver)):
        if server is None or server.server_time is None:
            continue
        skew = server.asked_at - server.server_time
        text = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the {name}"
        if abs(skew) >= SKEW_FAIL_SECONDS:
            yield fail("clock", text, advice)
        elif abs(skew) >= SKEW_WARN_SECONDS:
            yield warn("clock", text, advice)
        else:
            yield ok("clock", f"the {name}'s")
