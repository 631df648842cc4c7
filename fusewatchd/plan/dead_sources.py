"""Source mounts that are dead themselves, and keep their server from coming back; pure.

After a crash the dead mount stays where the server had put it.  Many servers refuse to start on
it: libfuse looks at the mount point first, and gets ENOTCONN.  Whoever manages the server has to
detach it then, and where nobody does, everybody waits for ever.  So a source that is dead for
longer than a restart takes is a condition of its own.

It is detached only if that is switched on, one layer at a time, and only a mount that is known
as the source of a bind, proven dead, with nothing inside, and that no process can be serving by
several looks in a row.  What lives is never detached, whatever lies on it or below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile

from fusewatchd.config.settings import DeadSourceSettings
from fusewatchd.diagnose import lineage
from fusewatchd.diagnose.exclusions import SWITCHED_OFF
from fusewatchd.diagnose.sources import is_same_kind
from fusewatchd.model.actions import DetachDeadSource, Expect, Outcome, OutcomeStatus
from fusewatchd.model.findings import Finding
from fusewatchd.model.ledger import Facts
from fusewatchd.model.mounts import Mount, TargetKey
from fusewatchd.model.plan import RecoveryMode
from fusewatchd.model.server_actions import DeadSource, SourceWatch
from fusewatchd.model.servers import Connection
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason
from fusewatchd.plan.back_off import BackOff
from fusewatchd.plan.budget import source_of

SURE_COMMAND = 250
"""Of a longer command line the rest may have been cut off, and the path with it."""
BACK_OFF = BackOff(1.0, 60.0)


@dataclass(frozen=True, slots=True)
class Step:
    """The dead sources of one look and what to do about them."""

    sources: tuple[DeadSource, ...]
    watches: Mapping[str, SourceWatch]
    detaches: tuple[DetachDeadSource, ...]
    due_at: float | None
    """When one is dead for long enough."""
    wants_look: bool


@dataclass(frozen=True, slots=True)
class _Found:
    """A dead mount at the path of a source."""

    mount: Mount
    layers: int
    since: float
    connection: Connection
    hit: tuple[Finding, ...]


def step(
    findings: Iterable[Finding],
    snapshot: Snapshot,
    facts: Facts,
    watches: Mapping[str, SourceWatch],
    outcomes: Iterable[Outcome],
    settings: DeadSourceSettings,
    mode: RecoveryMode,
    now: float,
) -> Step:
    """Find the dead sources, and decide about each."""
    watches = _ended(watches, outcomes)
    sources: list[DeadSource] = []
    detaches: list[DetachDeadSource] = []
    after: dict[str, SourceWatch] = {}
    due: list[float] = []
    wants_look = False
    for path, found in _find(findings, snapshot, facts):
        confirmed_from = found.since + settings.grace_seconds
        if now < confirmed_from:
            due.append(confirmed_from)
            continue
        watch = _looked(watches.get(path), found, snapshot, confirmed_from)
        reason = _held_back(found, snapshot, watch, settings, mode, now)
        if reason is Reason.NONE and not watch.is_in_flight:
            detaches.append(DetachDeadSource(TargetKey(0, path), Expect.of(found.mount)))
            watch = replace(watch, is_in_flight=True)
        elif reason is Reason.BACK_OFF:
            due.append(watch.retry_at)
        is_unseen = snapshot.namespaces_looked_at < confirmed_from
        wants_look |= reason is Reason.UNCONFIRMED
        wants_look |= reason is Reason.SERVER_ALIVE and is_unseen
        after[path] = watch
        sources.append(_reported(found, reason))
    after |= {p: w for p, w in watches.items() if w.is_in_flight and p not in after}
    return Step(tuple(sources), after, tuple(detaches), min(due, default=None), wants_look)


def reasons(sources: Iterable[DeadSource], snapshot: Snapshot) -> dict[TargetKey, Reason]:
    """Return what the binds of dead sources wait for.

    That a server may live holds a detach back.  It is told only where something says so: not where
    the end of the server was seen, nor where this run never saw it alive.
    """
    found = {}
    for source in sources:
        may_live = source.held_back in (Reason.SERVER_ALIVE, Reason.SOURCE_DEAD)
        lives = may_live and _seems_alive(source, snapshot)
        reason = Reason.SERVER_ALIVE if lives else Reason.SOURCE_DEAD
        found.update(dict.fromkeys(source.binds, reason))
    return found


def _seems_alive(source: DeadSource, snapshot: Snapshot) -> bool:
    device = source.mount.device
    connection = snapshot.connections.get(device)
    gone_at = connection.server_gone_at if connection is not None else None
    is_listed = bool(snapshot.servers.get(device))
    if gone_at is not None:
        # Who is listed may be the one that ended, until somebody has looked again.
        return is_listed and snapshot.namespaces_looked_at > gone_at
    return is_listed or (connection is not None and connection.was_seen_working)


def _find(
    findings: Iterable[Finding], snapshot: Snapshot, facts: Facts
) -> list[tuple[str, _Found]]:
    by_path: dict[str, list[Finding]] = {}
    for finding in findings:
        path = source_of(finding)
        if path and finding.bind.key.is_host and finding.bind.mount is not None:
            by_path.setdefault(path, []).append(finding)
    found = ((path, _dead_at(path, hit, snapshot, facts)) for path, hit in sorted(by_path.items()))
    return [(path, dead) for path, dead in found if dead is not None]


def _dead_at(path: str, hit: list[Finding], snapshot: Snapshot, facts: Facts) -> _Found | None:
    """Return the dead mount on top of a source's path, if it can be nothing else."""
    stack = snapshot.table.stack_at(path)
    if not stack or not _is_source(stack[-1], hit, facts):
        return None
    top = stack[-1]
    connection = snapshot.connections.get(top.device)
    if connection is None or connection.disconnected_at is None:
        return None
    dead = takewhile(lambda m: m.is_fuse and snapshot.is_dead(m.device), reversed(stack))
    layers = len(tuple(dead))
    return _Found(top, layers, connection.disconnected_at, connection, tuple(hit))


def _is_source(mount: Mount, hit: list[Finding], facts: Facts) -> bool:
    """Return True for what a bind was cloned from: that kind of file system, shown from there.

    Not for a bind or a copy of one, nor for a place that nobody saw serving or has named.
    """
    return mount.is_fuse and any(
        finding.bind.mount is not None
        and lineage.is_source(facts, mount, is_by_name=finding.bind.source.is_by_name)
        and (finding.bind.source.is_seen or finding.bind.source.is_by_name)
        and is_same_kind(finding.bind.source, finding.bind.mount, mount)
        and finding.bind.source.candidates[0].root == mount.root
        for finding in hit
    )


def _looked(
    watch: SourceWatch | None, found: _Found, snapshot: Snapshot, confirmed_from: float
) -> SourceWatch:
    """Count this look at the processes if it is a new one, and found no server."""
    name = found.mount.unique_id or found.mount.mount_id
    if watch is None or watch.mount_id != name:
        watch = SourceWatch(name)
    if _may_be_served(found, snapshot):
        return replace(watch, looks=0)
    looked_at = snapshot.namespaces_looked_at
    if looked_at < confirmed_from or looked_at <= watch.looked_at:
        return watch
    return replace(watch, looks=watch.looks + 1, looked_at=looked_at)


def _held_back(
    found: _Found,
    snapshot: Snapshot,
    watch: SourceWatch,
    settings: DeadSourceSettings,
    mode: RecoveryMode,
    now: float,
) -> Reason:
    if not settings.detach:
        return Reason.SOURCE_DEAD
    for finding in found.hit:
        if finding.refusal in SWITCHED_OFF:
            return finding.refusal
    if mode.withholds is not Reason.NONE:
        return mode.withholds
    if snapshot.table.children_of(found.mount.mount_id):
        return Reason.CHILD_MOUNT
    if _may_be_served(found, snapshot):
        return Reason.SERVER_ALIVE
    if watch.looks < settings.confirmations:
        return Reason.UNCONFIRMED
    return Reason.BACK_OFF if now < watch.retry_at else Reason.NONE


def _may_be_served(found: _Found, snapshot: Snapshot) -> bool:
    """Return True unless it is sure that no process serves this file system.

    A server that reads from a dead file system itself passes that answer on, and lives.  Where
    the kernel does not tell which connection a process serves (before about 6.16), the end of a
    server must have been seen, and none may run that names the path.
    """
    if snapshot.has_gap("namespaces") or snapshot.servers.get(found.mount.device):
        return True
    if snapshot.servers or not snapshot.anonymous_servers:
        return False
    if found.connection.server_gone_at is None:
        return True
    path = found.mount.mount_point
    return any(
        path in server.command or len(server.command) >= SURE_COMMAND
        for server in snapshot.anonymous_servers
    )


def _reported(found: _Found, reason: Reason) -> DeadSource:
    return DeadSource(
        found.mount,
        found.layers,
        found.hit[0].bind.driver,
        found.since,
        frozenset(finding.bind.key for finding in found.hit),
        reason,
    )


def _ended(
    watches: Mapping[str, SourceWatch], outcomes: Iterable[Outcome]
) -> dict[str, SourceWatch]:
    after = dict(watches)
    for outcome in outcomes:
        key = outcome.action.key
        watch = after.pop(key.mount_point, None)
        if watch is None or outcome.status is OutcomeStatus.DETACHED:
            continue
        failures = watch.failures + 1
        retry_at = outcome.finished_at + BACK_OFF.delay(key, failures)
        after[key.mount_point] = replace(
            watch, looks=0, failures=failures, retry_at=retry_at, is_in_flight=False
        )
    return after
