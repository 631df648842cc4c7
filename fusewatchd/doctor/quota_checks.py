"""Pods and users that want more of the daemon than one owner may have, from ``status``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fusewatchd.doctor.findings import Finding, ok, warn
from fusewatchd.status.values import owner_name, quota_text

ADVICE = "find out what it does; what is above the quota is not looked at or waits"


def quota_findings(document: Mapping[str, Any]) -> Iterator[Finding]:
    """Name every owner that is refused something."""
    for refused in document["refused_owners"]:
        yield warn("quota", f"{owner_name(refused)}: {quota_text(refused)}", ADVICE)
    if not document["refused_owners"]:
        yield ok("quota", "no pod or user is above its quota")
