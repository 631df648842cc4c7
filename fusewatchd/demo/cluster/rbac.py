"""What roles allow, as an API server decides it (kubernetes, rbac.authorization.k8s.io/v1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/[^/]+"
    r"(?:/namespaces/[^/]+)?/(?P<resource>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<part>[^/]+))?"
)
_VERBS = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
_OPEN_TO_ALL = "authorization.k8s.io"
"""Everybody may ask what he is allowed (``system:basic-user``)."""


@dataclass(frozen=True, slots=True)
class Permission:
    """One thing that somebody wants to do."""

    verb: str
    group: str
    resource: str
    """With its part, ``nodes/status``."""

    def refusal(self) -> str:
        """Say it as the API server does."""
        name = f"{self.resource}.{self.group}" if self.group else self.resource
        what = f'{self.verb} resource "{self.resource}" in API group "{self.group}"'
        return f'{name} is forbidden: User "demo" cannot {what}'


def permission_of(method: str, path: str) -> Permission | None:
    """Return what a request needs; None: discovery, which everybody may read."""
    found = _PATH.fullmatch(path.partition("?")[0])
    if found is None:
        return None
    verb = _VERBS.get(method) or ("get" if found["name"] else "list")
    resource = found["resource"] + (f"/{found['part']}" if found["part"] else "")
    return Permission(verb, found["group"] or "", resource)


def is_allowed(permission: Permission, rules: Iterable[Mapping[str, Any]]) -> bool:
    """Return True when one of the rules of a ClusterRole allows it."""
    return permission.group == _OPEN_TO_ALL or any(
        permission.group in rule["apiGroups"]
        and permission.resource in rule["resources"]
        and permission.verb in rule["verbs"]
        for rule in rules
    )
