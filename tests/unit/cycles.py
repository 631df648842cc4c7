"""Hand-made cycles for tests of what is made of finished ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from fusewatchd.model.actions import Expect, Outcome, OutcomeStatus, Propagation, ReplaceMount
from fusewatchd.model.cycle import CycleReport, Trigger
from fusewatchd.model.degraded import Degradation, Degraded
from fusewatchd.model.findings import Bind, Finding, Gap, SourceAnswer, SourcePath, Unproven
from fusewatchd.model.kubelet import NOT_FOUND, plain_directory
from fusewatchd.model.ledger import NOTHING_DETACHED, Detached, Ledger, TargetState
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount, MountNamespace, TargetKey
from fusewatchd.model.outages import Incident, Outage
from fusewatchd.model.plan import Plan, Refusal
from fusewatchd.model.pods import BindKind, BindPath, Pod
from fusewatchd.model.quota import Refused
from fusewatchd.model.servers import Answer, Connection, Service
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason, Verdict

OLD = Device(0, 133)
NEW = Device(0, 140)
SOURCE = "/var/lib/driver/volume-1"
ROOT = "/var/lib/kubelet"
NAMESPACE = 4026532001


def pod(uid: str, name: str, *, is_deleting: bool = False) -> Pod:
    return Pod(f"api-{uid}", uid, "shop", name, "Running", is_deleting)


PODS = {"uid-a": pod("uid-a", "web-0"), "uid-b": pod("uid-b", "web-1")}


def mount(point: str, device: Device = OLD, mount_id: int = 100) -> Mount:
    return Mount(
        mount_id, 1, device, "/", point, "rw,relatime", 7, 0, "fuse.juicefs", "JuiceFS:x", "rw"
    )


def bind(
    uid: str = "uid-a",
    kind: BindKind = BindKind.PUBLISH,
    device: Device | None = OLD,
    *,
    driver: str = "csi.juicefs.com",
    volume: str = "pv-1",
    depth: int = 1,
) -> Bind:
    point = f"{ROOT}/pods/{uid}/volumes/kubernetes.io~csi/{volume}/mount"
    key = TargetKey(0, point)
    if kind is BindKind.CONTAINER:
        key = TargetKey(NAMESPACE, "/data")
    return Bind(
        key,
        BindPath(kind, uid, volume, container="app" if kind is not BindKind.PUBLISH else ""),
        mount(key.mount_point, device) if device is not None else None,
        depth,
        driver,
        SourceAnswer("lineage", "mounted there while healthy", (SourcePath(SOURCE),)),
    )


def finding(
    of: Bind,
    verdict: Verdict = Verdict.HEALTHY,
    *,
    source: Device | None = None,
    refusal: Reason = Reason.NONE,
    evidence: str = "answers",
) -> Finding:
    source_mount = mount(SOURCE, source, 7) if source is not None else None
    return Finding(of, verdict, evidence, source_mount, refusal)


def replace_action(of: Bind, new: Device = NEW) -> ReplaceMount:
    assert of.mount is not None
    expect = Expect(of.key.mount_point, of.mount.device, of.mount.mount_id)
    return ReplaceMount(
        of.key, expect, Expect(SOURCE, new, 7), Propagation.OWN_GROUP, pod_uid=of.path.pod_uid
    )


def outcome(
    of: Bind,
    status: OutcomeStatus = OutcomeStatus.RECOVERED,
    reason: Reason = Reason.NONE,
    *,
    at: float = 20.0,
    detail: str = "",
    narrower: str = "",
    wider: str = "",
    type_change: str = "",
) -> Outcome:
    shown = mount(of.key.mount_point, NEW, 200) if status is OutcomeStatus.RECOVERED else None
    return Outcome(
        replace(replace_action(of), type_change=type_change),
        status,
        reason,
        detail=detail,
        mount=shown,
        narrower=narrower,
        wider=wider,
        started_at=at - 0.002,
        finished_at=at,
    )


def incident(*binds: Bind, open_binds: Sequence[Bind] | None = None) -> Incident:
    keys = frozenset(b.key for b in binds)
    open_keys = keys if open_binds is None else frozenset(b.key for b in open_binds)
    return Incident(
        OLD,
        "csi.juicefs.com",
        SOURCE,
        noticed_at=10.001,
        server_gone_at=10.0,
        targets=keys,
        open_targets=open_keys,
    )


def closed(of: Incident, recovered_at: float | None = 20.0) -> Incident:
    return replace(
        of,
        source_up_at=19.9969,
        open_targets=frozenset(),
        recovered_targets=of.targets if recovered_at is not None else frozenset(),
        last_recovery_at=recovered_at,
        recovered_at=recovered_at,
    )


def cycle(
    *findings: Finding,
    at: float = 10.0,
    pods: Mapping[str, Pod] | None = PODS,
    are_current: bool = True,
    looked_at: float = 0.0,
    namespaces: tuple[MountNamespace, ...] = (),
    refused: Iterable[Refusal] = (),
    actions: Iterable[ReplaceMount] = (),
    outcomes: Iterable[Outcome] = (),
    opened: Iterable[Incident] = (),
    closed: Iterable[Incident] = (),
    gaps: Iterable[Gap] = (),
    foreign_stale: int = 0,
    unproven: tuple[Unproven, ...] = (),
    kubelet_root: str = ROOT,
    number: int = 1,
) -> CycleReport:
    shown = [f.bind.mount for f in findings if f.bind.mount is not None]
    connections = {NEW: Connection(NEW, Answer.ANSWERED)}
    for found in findings:
        if found.bind.mount is not None:
            is_dead = found.verdict is Verdict.STALE
            answer = Answer.DISCONNECTED if is_dead else Answer.ANSWERED
            device = found.bind.mount.device
            connections[device] = Connection(device, answer)
    snapshot = Snapshot(
        at,
        MountTable.of([replace(m, mount_id=100 + n) for n, m in enumerate(shown)]),
        plain_directory(kubelet_root) if kubelet_root else NOT_FOUND,
        connections=connections,
        namespaces=namespaces,
        pods=pods,
        pods_are_current=are_current,
        seen_at={OLD: 1.0, NEW: 19.9969},
        namespaces_looked_at=looked_at,
        gaps=tuple(gaps),
    )
    return CycleReport(
        number,
        (Trigger.TIMER,),
        at,
        at + 0.001,
        snapshot,
        findings,
        Plan(tuple(actions), tuple(refused)),
        tuple(outcomes),
        (),
        Ledger(),
        incidents_opened=tuple(opened),
        incidents_closed=tuple(closed),
        foreign_stale=foreign_stale,
        unproven=unproven,
    )


def without(*missing: Degraded) -> CycleReport:
    """Return a cycle of a daemon that goes on without these."""
    degraded = tuple(Degradation(what, "used up") for what in missing)
    report = cycle()
    return replace(report, snapshot=replace(report.snapshot, degraded=degraded))


def with_ledger(
    of: CycleReport,
    *,
    incidents: Iterable[Incident] = (),
    outages: Iterable[Outage] = (),
    states: Mapping[TargetKey, TargetState] | None = None,
    services: Mapping[str, Service] | None = None,
    detached: Detached = NOTHING_DETACHED,
    refused_owners: Refused | None = None,
) -> CycleReport:
    """Return a cycle after which this is remembered."""
    ledger = Ledger(
        incidents={incident.device: incident for incident in incidents},
        outages=tuple(outages),
        states=states or {},
        services=services or {},
        refused_owners=refused_owners or {},
        detached=detached,
    )
    return replace(of, ledger=ledger)


def outage(pods: Mapping[str, Pod] | None = PODS, *, are_current: bool = True) -> list[CycleReport]:
    """Two pods with three binds: healthy, server gone, waiting, source back, replaced, over."""
    binds = [bind("uid-a"), bind("uid-a", BindKind.CONTAINER), bind("uid-b")]
    stale = [finding(b, Verdict.STALE, evidence="not connected") for b in binds]
    back = [finding(b, Verdict.STALE, source=NEW) for b in binds]
    new = [replace(b, mount=mount(b.key.mount_point, NEW, 200)) for b in binds]
    healed = [finding(b) for b in new]
    began = incident(*binds)
    waiting = [Refusal(f, Reason.SOURCE_MISSING) for f in stale]
    view = {"pods": pods, "are_current": are_current}

    def step(*findings: Finding, at: float, **rest: object) -> CycleReport:
        return cycle(*findings, at=at, **view, **rest)  # type: ignore[arg-type]

    return [
        step(*map(finding, binds), at=9.0),
        step(*stale, at=10.002, opened=[began], refused=waiting),
        step(*stale, at=15.0, refused=waiting),
        step(*back, at=19.997, actions=[replace_action(b) for b in binds]),
        step(*healed, at=20.001, outcomes=[outcome(b) for b in binds]),
        step(*healed, at=20.1, looked_at=20.05, closed=[closed(began)]),
    ]
