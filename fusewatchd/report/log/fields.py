"""What log entries say of a bind, and how binds that share a fate are told together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from fusewatchd.log import Value
from fusewatchd.model.actions import Outcome
from fusewatchd.model.findings import Finding
from fusewatchd.model.mounts import Device
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.report.reporter import pod_of

MAX_VALUES = 16
"""Of one field."""
_WHOSE = ("volume", "namespace", "pod", "pod_uid")

_Item = TypeVar("_Item")
_Key = TypeVar("_Key", bound=Hashable)


def bind_fields(finding: Finding, snapshot: Snapshot) -> dict[str, Value]:
    """Return the fields of one bind; its pod's names as far as they are known."""
    bind = finding.bind
    pod = pod_of(finding, snapshot)
    candidates = bind.source.candidates
    return {
        "verdict": finding.verdict.value,
        "device": str(bind.mount.device) if bind.mount is not None else None,
        "driver": bind.driver or None,
        "source": candidates[0].mount_point if candidates else None,
        "kind": bind.path.kind.value,
        "namespace": pod.namespace if pod is not None else None,
        "pod": pod.name if pod is not None else None,
        "pod_uid": bind.path.pod_uid,
        "volume": bind.path.volume,
        "container": bind.path.container or None,
        "mount_point": bind.key.mount_point,
        "mount_namespace": bind.key.namespace or None,
        "directory": bind.underneath.host_path if bind.underneath is not None else None,
    }


def group_fields(findings: Sequence[Finding], snapshot: Snapshot) -> dict[str, Value]:
    """Return the fields of binds that are told together: whose they are, each one to be found."""
    fields = bind_fields(findings[0], snapshot)
    return {**fields, **whose(findings, snapshot)} if len(findings) > 1 else fields


def whose(findings: Iterable[Finding], snapshot: Snapshot) -> dict[str, Value]:
    """Return volumes, pods and namespaces of several binds, as far as there is room."""
    seen: dict[str, dict[str, None]] = {name: {} for name in _WHOSE}
    for finding in findings:
        fields = bind_fields(finding, snapshot)
        for name, values in seen.items():
            value = fields[name]
            if value is not None and len(values) < MAX_VALUES:
                values[str(value)] = None
    return {name: one_or_more(values) for name, values in seen.items()}


def why(outcome: Outcome) -> dict[str, Value]:
    """Return why an action ended as it did."""
    return {
        "reason": outcome.reason.value,
        "errno": outcome.errno or None,
        "detail": outcome.detail or None,
    }


def one_or_more(values: Iterable[str]) -> Value:
    """Return one text as itself, several as several values of a field, none as no field."""
    several = tuple(values)
    return several if len(several) > 1 else next(iter(several), None)


def device_of(finding: Finding) -> Device | None:
    """Return the device that a bind shows; None for a bare directory."""
    return finding.bind.mount.device if finding.bind.mount is not None else None


def grouped(items: Iterable[_Item], key: Callable[[_Item], _Key]) -> dict[_Key, list[_Item]]:
    """Return the items by their key, in order."""
    groups: dict[_Key, list[_Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def milliseconds(seconds: float) -> float:
    """Return a duration as log entries have it."""
    return round(max(0.0, seconds) * 1000, 3)
