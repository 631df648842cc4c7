"""Mounting a volume over the node's directory that a container has instead; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fusewatchd.model.actions import Expect, NamespaceRef, Propagation, ReplaceMount
from fusewatchd.model.findings import Finding, Underneath
from fusewatchd.model.mounts import Mount, TargetKey
from fusewatchd.model.plan import Refusal
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason
from fusewatchd.plan.child_mounts import plan_children

_RESTRICTS = ("ro", "nosuid", "nodev", "noexec", "nosymfollow", "idmapped")


def cover(
    finding: Finding,
    directory: Underneath,
    source: Mount,
    findings: Mapping[TargetKey, Finding],
    snapshot: Snapshot,
) -> ReplaceMount | Refusal:
    """Return the action that gives a container what a restart would give it.

    The new mount has the flags of the pod's mount on the host, and those with which the runtime
    has mounted the directory.
    """
    bind, below = finding.bind, directory.mount
    origin = findings.get(bind.origin) if bind.origin is not None else None
    if origin is None or origin.bind.mount is None or bind.namespace is None:
        return Refusal(finding, Reason.HOST_BIND_STALE)
    pod = (snapshot.pods or {}).get(bind.path.pod_uid)
    if not snapshot.pods_are_current or pod is None or pod.phase != "Running":
        # Of a pod that may be ending nothing is mounted where nothing was.
        return Refusal(finding, Reason.POD_UNKNOWN)
    if below.master:
        # What is mounted on the host arrives there, and is not seen yet.
        return Refusal(finding, Reason.HOST_BIND_STALE)
    if below.peer_group:
        # A mount on a shared directory would be mounted on the host as well.
        return Refusal(finding, Reason.ON_DISK)
    children = plan_children(replace(bind, mount=below), snapshot, findings, {})
    if children is None:
        return Refusal(finding, Reason.CHILD_MOUNT)
    return ReplaceMount(
        key=bind.key,
        expect=Expect.of(below),
        origin=Expect(origin.bind.key.mount_point, source.device),
        propagation=Propagation.PRIVATE,
        subpath=directory.inside,
        children=children,
        namespace=NamespaceRef.of(bind.namespace),
        pod_uid=bind.path.pod_uid,
        over=_options(origin.bind.mount.options, below.options),
    )


def _options(of_volume: str, of_directory: str) -> str:
    """Return the options of both, the stricter ones where they differ."""
    words = [word for word in of_volume.split(",") if word not in ("rw", "ro")]
    here = of_directory.split(",")
    more = [word for word in _RESTRICTS[1:] if word in here and word not in words]
    is_read_only = "ro" in (*of_volume.split(","), *here)
    return ",".join(["ro" if is_read_only else "rw", *words, *more])
