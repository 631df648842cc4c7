"""Mounts of a status document grouped by what is wrong with them; pure.

The table, the page and ``explain`` show a cause once, and below it the mounts that it concerns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from fusewatchd.model.verdicts import ALARMING, Reason, Verdict
from fusewatchd.status.values import Document, pod_name

_ALARMING = frozenset(verdict.value for verdict in ALARMING)
_KINDS = {"subpath": 1, "container": 2}
"""Order of a pod's mounts; all other kinds come first."""


class Severity(IntEnum):
    """How urgent a cause is; the most urgent one is the smallest."""

    BROKEN = 0
    """The pod cannot use its volume."""
    UNWELL = 1
    WARNING = 2
    """The mount works, and something about it is unusual."""
    HEALTHY = 3


@dataclass(frozen=True, slots=True)
class Cause:
    """What some mounts have in common."""

    severity: Severity
    name: str
    """The reason, or the verdict where there is no reason; a token."""
    source: str | None
    """Path of the source."""
    mounts: tuple[Document, ...]
    """By pod, then kind."""

    @property
    def first(self) -> Document:
        """Return the mount that stands for all of them."""
        return self.mounts[0]


def causes_of(document: Document) -> list[Cause]:
    """Return the causes, the most urgent one and the one with most mounts first."""
    groups: dict[tuple[Severity, str, str | None], list[Document]] = {}
    for mount in document["binds"]:
        severity = severity_of(mount)
        name = _name(mount, severity)
        groups.setdefault((severity, name, mount["source"]["path"]), []).append(mount)
    causes = [Cause(*key, tuple(sorted(mounts, key=_order))) for key, mounts in groups.items()]
    return sorted(causes, key=lambda one: (one.severity, -len(one.mounts), one.source or "~"))


def severity_of(mount: Document) -> Severity:
    """Return how urgent the state of a mount is."""
    if mount["verdict"] in _ALARMING:
        return Severity.BROKEN
    if mount["verdict"] != Verdict.HEALTHY.value:
        return Severity.UNWELL
    recovery = mount["last_recovery"] or {}
    is_odd = mount.get("dead_layers") or recovery.get("narrower") or recovery.get("wider")
    return Severity.WARNING if is_odd else Severity.HEALTHY


def pods_of(mounts: Iterable[Document]) -> list[str]:
    """Return the names of pods, each once."""
    return list(dict.fromkeys(pod_name(mount["pod"]) for mount in mounts))


def _name(mount: Document, severity: Severity) -> str:
    if severity >= Severity.WARNING:
        return str(mount["verdict"])
    reason = mount["refusal"]
    return reason if reason and reason != Reason.NONE.value else str(mount["verdict"])


def _order(mount: Document) -> tuple[str, str, int, str]:
    pod = mount["pod"]
    name = pod["name"] or pod["uid"]
    kind = _KINDS.get(mount["kind"], 0)
    return pod["namespace"] or "~", name, kind, mount["mount_point"]
