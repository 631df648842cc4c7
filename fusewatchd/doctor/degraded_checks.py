"""What the daemon goes on without, from ``status``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fusewatchd.doctor.findings import Finding, ok, warn

ADVICE = "raise the limit, or find out who uses it up"


def degraded_findings(document: Mapping[str, Any]) -> Iterator[Finding]:
    """Name everything that is missing, with the limit that was met."""
    for one in document["degraded"]:
        text = f"without {one['what']}: {one['why']}; {one['instead']}"
        yield warn("degraded", text, ADVICE)
    if not document["degraded"]:
        yield ok("degraded", "nothing is missing")
