"""Where recovery is switched off: by the configuration, or by the pod itself; pure.

A switch only ever turns something off.  What is switched off is still watched, judged and
told, with the switch that did it in the evidence.

What a pod's namespace and annotations were is remembered as long as the pod has binds, so that
neither a kubelet that does not answer nor a restart of the daemon turns anything on again.  A
pod of which that was never known is recovered, unless namespaces are excluded: then it may be
in one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from fusewatchd.config.settings import ExcludeSettings
from fusewatchd.model.findings import Bind, Finding
from fusewatchd.model.ledger import Owner
from fusewatchd.model.plan import RecoveryMode
from fusewatchd.model.pods import Pod
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.text import printable

RECOVERY_ANNOTATION = "fusewatchd.io/recovery"
CONTAINERS_ANNOTATION = "fusewatchd.io/containers"
"""Of container mounts only."""
_ON = ("", "enabled")
"""Every other value switches off: who writes ``false`` or mistypes ``disabled`` means it."""

SWITCHED_OFF = frozenset({Reason.DISABLED, Reason.OWNER_UNKNOWN})
"""Refusals of what somebody wants left alone, or may want so."""
_ACTED_ON = frozenset({Verdict.STALE, Verdict.SUPERSEDED, Verdict.HUNG, Verdict.ORPHANED})


@dataclass(frozen=True, slots=True)
class Switches:
    """What the configuration leaves alone."""

    exclude: ExcludeSettings = field(default_factory=ExcludeSettings)
    containers: bool = True
    exclude_containers: ExcludeSettings = field(default_factory=ExcludeSettings)


@dataclass(frozen=True, slots=True)
class Scope:
    """What may be changed at all, whatever is decided about a bind or a server."""

    mode: RecoveryMode = RecoveryMode.RECOVER
    switches: Switches = field(default_factory=Switches)


@dataclass(frozen=True, slots=True)
class _Off:
    reason: Reason
    which: str


def owner_of(pod: Pod) -> Owner:
    """Return what of a pod its switches depend on."""
    return Owner(
        pod.namespace,
        pod.annotations.get(RECOVERY_ANNOTATION, ""),
        pod.annotations.get(CONTAINERS_ANNOTATION, ""),
    )


def learn_owners(
    known: Mapping[str, Owner], findings: Iterable[Finding], pods: Mapping[str, Pod] | None
) -> dict[str, Owner]:
    """Return the owners of all binds, by directory uid: as listed now, else as they were."""
    uids = {finding.bind.path.pod_uid for finding in findings}
    current = {uid: owner_of(pods[uid]) for uid in uids if uid in pods} if pods else {}
    return {uid: known[uid] for uid in uids if uid in known} | current


def apply(
    findings: Iterable[Finding], switches: Switches, owners: Mapping[str, Owner]
) -> tuple[Finding, ...]:
    """Refuse what is switched off, whatever else might be done about it or forbid it."""
    return tuple(
        _switched(finding, switches, owners.get(finding.bind.path.pod_uid))
        if finding.verdict in _ACTED_ON
        else finding
        for finding in findings
    )


def _switched(finding: Finding, switches: Switches, owner: Owner | None) -> Finding:
    off = _everything(finding.bind, switches, owner)
    if off is None and not finding.bind.key.is_host:
        off = _containers(finding.bind, switches, owner)
    if off is None:
        return finding
    return replace(finding, refusal=off.reason, evidence=f"{finding.evidence}; {off.which}")


def is_left_alone(bind: Bind, switches: Switches, owner: Owner | None) -> bool:
    """Return True for a bind that is switched off, whether or not something is mounted there."""
    return _everything(bind, switches, owner) is not None


def leaves_containers_alone(bind: Bind, switches: Switches, owner: Owner | None) -> bool:
    """Return True where what a container shows is left alone."""
    return _containers(bind, switches, owner) is not None


def _everything(bind: Bind, switches: Switches, owner: Owner | None) -> _Off | None:
    return _excluded(bind, switches.exclude, owner, "recovery.exclude") or _annotated(
        RECOVERY_ANNOTATION, owner.recovery if owner else ""
    )


def _containers(bind: Bind, switches: Switches, owner: Owner | None) -> _Off | None:
    if not switches.containers:
        return _Off(Reason.DISABLED, "recovery.containers is false")
    exclude = switches.exclude_containers
    return _excluded(bind, exclude, owner, "recovery.exclude_containers") or _annotated(
        CONTAINERS_ANNOTATION, owner.containers if owner else ""
    )


def _excluded(bind: Bind, exclude: ExcludeSettings, owner: Owner | None, key: str) -> _Off | None:
    fs_type = bind.mount.fs_type if bind.mount is not None else ""
    named = (
        ("drivers", exclude.drivers, (bind.driver, fs_type, fs_type.partition(".")[2])),
        ("volumes", exclude.volumes, (bind.path.volume,)),
        ("namespaces", exclude.namespaces, (owner.namespace,) if owner else ()),
    )
    for what, patterns, names in named:
        for pattern in patterns:
            if any(name and fnmatchcase(name, pattern) for name in names):
                return _Off(Reason.DISABLED, f"{key}.{what} has {printable(pattern)}")
    if exclude.namespaces and owner is None:
        which = f"{key}.namespaces is set, and the kubelet has not told of this pod yet"
        return _Off(Reason.OWNER_UNKNOWN, which)
    return None


def _annotated(annotation: str, value: str) -> _Off | None:
    value = value.strip()
    if value.lower() in _ON:
        return None
    return _Off(Reason.DISABLED, f"the pod is annotated {annotation}: {printable(value)}")
