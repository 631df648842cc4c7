"""From a snapshot to a verdict on every bind of the node.

Purely computational: no clock, no file, no memory of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from fusewatchd.diagnose import container_roots, exclusions, host_path_binds, lineage, on_disk
from fusewatchd.diagnose.container_binds import find_container_binds
from fusewatchd.diagnose.detectors import DETECTORS, Case, Opinion
from fusewatchd.diagnose.exclusions import Switches
from fusewatchd.diagnose.sources import Resolution, locate, resolve, subpath_of
from fusewatchd.drivers.base import Driver
from fusewatchd.model.findings import Bind, DeadRoot, Finding, Unproven
from fusewatchd.model.ledger import Facts, Ledger, Owner
from fusewatchd.model.mounts import Mount, MountNamespace, NamespaceKind, TargetKey
from fusewatchd.model.pods import BindKind, BindPath
from fusewatchd.model.quota import RefusedOwner
from fusewatchd.model.servers import Answer
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.parse.kubelet_paths import parse_bind_path

HEALTHY = Opinion(Verdict.HEALTHY, "answers")


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What diagnosis knows beside the node: configuration that never changes a fact."""

    drivers: Sequence[Driver]
    ignored_fs_types: frozenset[str]
    switches: Switches = field(default_factory=Switches)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, and what diagnosis learned that the next cycle needs."""

    findings: tuple[Finding, ...]
    facts: Facts
    foreign_stale: int
    """Stale FUSE mounts in namespaces that are never entered."""
    owners: Mapping[str, Owner]
    unproven: tuple[Unproven, ...] = ()
    unclaimed: tuple[tuple[MountNamespace, Mount], ...] = ()
    """FUSE mounts in pods' containers that are none of the volumes that are repaired."""
    dead_roots: tuple[DeadRoot, ...] = ()
    """Containers whose image has a dead layer."""
    uncovered: tuple[Bind, ...] = ()
    """Where a volume is not mounted that was, on the host or for a container."""
    refused_owners: tuple[RefusedOwner, ...] = ()
    """Pods with more binds in their containers than are repaired."""


def diagnose(snapshot: Snapshot, ledger: Ledger, knowledge: Knowledge) -> Diagnosis:
    """Judge every host bind, every container mount that is ours, every vanished bind."""
    stacks = host_stacks(snapshot, knowledge.ignored_fs_types)
    facts = _learn(snapshot, ledger, knowledge)
    binds = [_host_bind(path, stack, snapshot, facts, knowledge) for path, stack in stacks]
    look = find_container_binds(snapshot, binds, ledger)
    of_host_paths, foreign = host_path_binds.find(
        snapshot, look.foreign, ledger, knowledge.ignored_fs_types
    )
    judge = partial(_judge_by_source, snapshot, ledger, facts, knowledge)
    findings = [judge(bind) for bind in binds]
    by_key = {finding.bind.key: finding for finding in findings}
    findings += [_judge_container(bind, by_key, snapshot, ledger) for bind in look.binds]
    findings += [judge(bind) for bind in of_host_paths]
    bare = tuple(_bare_binds(snapshot, ledger, by_key, look.binds))
    findings += bare
    by_key |= {finding.bind.key: finding for finding in bare}
    directories = on_disk.find(snapshot, by_key.values(), ledger.published)
    findings += [_judge_container(bind, by_key, snapshot, ledger) for bind in directories]
    owners = exclusions.learn_owners(ledger.owners, findings, snapshot.pods)
    switched = exclusions.apply(findings, knowledge.switches, owners)
    unproven = _unproven(look.unproven, foreign, snapshot)
    unclaimed = tuple(pair for pair in foreign if pair[0].kind is NamespaceKind.CONTAINER)
    foreign_stale = sum(snapshot.is_dead(mount.device) for _, mount in foreign)
    return Diagnosis(
        switched,
        facts,
        foreign_stale,
        owners,
        unproven,
        unclaimed,
        container_roots.find(snapshot, ledger.dead_roots),
        (*(finding.bind for finding in bare), *directories),
        look.refused_owners,
    )


def _learn(snapshot: Snapshot, ledger: Ledger, knowledge: Knowledge) -> Facts:
    if not snapshot.kubelet.is_found:
        return {}
    working = {d for d, c in snapshot.connections.items() if c.answer is Answer.ANSWERED}
    ignored, pods = knowledge.ignored_fs_types, snapshot.kubelet.pods
    return lineage.learn(
        ledger.facts, snapshot.table, ignored, pods, working, is_ordered=snapshot.is_in_order
    )


def host_stacks(
    snapshot: Snapshot, ignored_fs_types: frozenset[str]
) -> list[tuple[BindPath, list[Mount]]]:
    """Return every FUSE stack at a bind's path below the pods directory, bottom first."""
    if not snapshot.kubelet.is_found:
        return []
    found: dict[str, tuple[BindPath, list[Mount]]] = {}
    for mount in snapshot.table.fuse_mounts():
        if mount.fs_type in ignored_fs_types:
            continue
        known = found.get(mount.mount_point)
        if known is not None:
            known[1].append(mount)
            continue
        path = parse_bind_path(snapshot.kubelet.pods, mount.mount_point)
        if path is not None:
            found[mount.mount_point] = (path, [mount])
    return [(path, _bottom_to_top(stack)) for path, stack in found.values()]


def _bottom_to_top(stack: list[Mount]) -> list[Mount]:
    if len(stack) == 1:
        return stack
    above = {mount.parent_id: mount for mount in stack}
    ids = {mount.mount_id for mount in stack}
    layer: Mount | None = next((m for m in stack if m.parent_id not in ids), stack[0])
    ordered: list[Mount] = []
    while layer is not None and len(ordered) < len(stack):
        ordered.append(layer)
        layer = above.get(layer.mount_id)
    return ordered


def _host_bind(
    path: BindPath,
    stack: list[Mount],
    snapshot: Snapshot,
    facts: Facts,
    knowledge: Knowledge,
) -> Bind:
    top = stack[-1]
    source = locate(path, top, snapshot, facts, knowledge.drivers)
    driver = _driver_of(path, top, snapshot)
    return Bind(TargetKey(0, top.mount_point), path, top, len(stack), driver, source)


def _driver_of(path: BindPath, mount: Mount, snapshot: Snapshot) -> str:
    """Return the name under which a person knows the driver, as well as the node tells."""
    data = snapshot.volume_data.get((path.pod_uid, path.volume))
    if data is not None and path.kind in (BindKind.PUBLISH, BindKind.SUBPATH):
        return data.driver
    if path.kind is BindKind.FLEXVOLUME:
        return path.plugin.replace("~", "/")
    return mount.subtype


def _judge_by_source(
    snapshot: Snapshot, ledger: Ledger, facts: Facts, knowledge: Knowledge, bind: Bind
) -> Finding:
    assert bind.mount is not None
    resolution = resolve(bind.source, bind.mount, snapshot, facts, knowledge.ignored_fs_types)
    if resolution.mount is not None and subpath_of(bind.mount, resolution.mount) is None:
        resolution = Resolution(None, Reason.SOURCE_ROOT, "the bind's root is outside the source")
    return _judge(bind, resolution, snapshot, ledger)


def _judge_container(
    bind: Bind, hosts: dict[TargetKey, Finding], snapshot: Snapshot, ledger: Ledger
) -> Finding:
    """A container shows what its pod's bind on the host shows, or is about to show."""
    origin = hosts.get(bind.origin) if bind.origin else None
    if origin is None and bind.origin is not None:
        resolution = _without_origin(bind.origin, snapshot)
    else:
        resolution = _origin_resolution(bind, origin, snapshot, ledger)
    return _judge(bind, resolution, snapshot, ledger)


def _without_origin(origin: TargetKey, snapshot: Snapshot) -> Resolution:
    """Distinguish an unmounted volume from one that is not looked at (no kubelet, ignored type)."""
    if any(mount.is_fuse for mount in snapshot.table.at(origin.mount_point)):
        return Resolution(None, Reason.HOST_BIND_STALE, "its mount on the host is not looked at")
    unmounted = "its mount on the host was unmounted"
    return Resolution(None, Reason.UNMOUNTED_ON_HOST, unmounted)


def _shows_another_directory(bind: Bind, on_host: Mount, ledger: Ledger) -> bool:
    """Return True unless both show, or showed, the same directory of their file systems."""
    if bind.mount is None:
        return False
    root = lineage.plain_root(bind.mount.root)
    if lineage.plain_root(on_host.root) == root:
        return False
    return (bind.path.pod_uid, bind.mount.device, root) not in ledger.former


def _origin_resolution(
    bind: Bind, origin: Finding | None, snapshot: Snapshot, ledger: Ledger
) -> Resolution:
    if origin is None or origin.bind.mount is None:
        return Resolution(None, Reason.HOST_BIND_STALE, "its mount on the host is gone")
    if _shows_another_directory(bind, origin.bind.mount, ledger):
        changed = "its mount on the host shows another directory now"
        return Resolution(None, Reason.SOURCE_ROOT, changed)
    if origin.verdict in (Verdict.HEALTHY, Verdict.SLOW):
        return Resolution(origin.bind.mount)
    is_useless = bind.mount is None or snapshot.is_dead(bind.mount.device)
    if origin.verdict is Verdict.SUPERSEDED and is_useless:
        # The host may keep its old server as long as that lives; nothing dead waits for it.
        return Resolution(origin.bind.mount)
    if origin.source_mount is not None and origin.refusal is Reason.NONE:
        return Resolution(origin.source_mount)
    refusal = origin.refusal if origin.refusal is not Reason.NONE else Reason.HOST_BIND_STALE
    evidence = f"its mount on the host is {origin.verdict.value}"
    return Resolution(None, refusal, evidence, origin.source_errno)


def _judge(bind: Bind, resolution: Resolution, snapshot: Snapshot, ledger: Ledger) -> Finding:
    connection = snapshot.connections.get(bind.mount.device) if bind.mount else None
    case = Case(bind, connection, resolution, snapshot, ledger)
    opinion = _first_opinion(case)
    refusal = opinion.refusal
    if refusal is Reason.NONE and opinion.verdict in (Verdict.STALE, Verdict.ON_DISK):
        refusal = _pod_refusal(bind, snapshot) or resolution.refusal
    evidence = opinion.evidence
    if refusal is not Reason.NONE and resolution.evidence:
        evidence = f"{evidence}; {resolution.evidence}"
    source = resolution.mount
    source_errno = resolution.errno if refusal is resolution.refusal else 0
    return Finding(bind, opinion.verdict, evidence, source, refusal, source_errno)


def _first_opinion(case: Case) -> Opinion:
    for detector in DETECTORS:
        opinion = detector(case)
        if opinion is not None:
            return opinion
    return HEALTHY


def _pod_refusal(bind: Bind, snapshot: Snapshot) -> Reason | None:
    pod = (snapshot.pods or {}).get(bind.path.pod_uid)
    return Reason.POD_ENDING if pod is not None and pod.is_deleting else None


def _bare_binds(
    snapshot: Snapshot,
    ledger: Ledger,
    present: dict[TargetKey, Finding],
    in_containers: Sequence[Bind],
) -> Iterable[Finding]:
    """Yield a finding for each remembered bind without a mount whose pod lives on."""
    for path, answer in ledger.published.items():
        key = TargetKey(0, path)
        if key in present or not snapshot.pods_are_current:
            continue
        bind_path = parse_bind_path(snapshot.kubelet.pods, path)
        pod = (snapshot.pods or {}).get(bind_path.pod_uid) if bind_path else None
        if bind_path is None or pod is None or pod.is_deleting or pod.phase != "Running":
            continue
        if bind_path.kind is BindKind.EMPTY_DIR:
            continue  # the pod's own, to mount and to unmount
        data = snapshot.volume_data.get((bind_path.pod_uid, bind_path.volume))
        known = next((bind.driver for bind in in_containers if bind.origin == key), "")
        driver = known or (data.driver if data is not None else "")
        bind = Bind(key, bind_path, None, 0, driver, answer)
        yield _judge(bind, Resolution(None), snapshot, ledger)


def _unproven(
    unproven: host_path_binds.Places, foreign: host_path_binds.Places, snapshot: Snapshot
) -> tuple[Unproven, ...]:
    left = {(namespace.inode, mount.mount_id) for namespace, mount in foreign}
    return tuple(
        Unproven(namespace.pod_uid, TargetKey(namespace.inode, mount.mount_point), mount.device)
        for namespace, mount in unproven
        if (namespace.inode, mount.mount_id) in left and snapshot.is_dead(mount.device)
    )
