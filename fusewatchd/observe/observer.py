"""Fills a snapshot from every reader of the node; the reading side of the shell.

Each reader keeps what it saw last and is asked again only when something says that it may be
out of date, so one look costs what has changed and not what there is.  A reader that fails
leaves a gap in the snapshot and is never a reason not to look.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from fusewatchd.linux import fusectl
from fusewatchd.linux.procfs import read_mount_max
from fusewatchd.model.actions import AbortConnection, Outcome, OutcomeStatus
from fusewatchd.model.findings import Gap
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount, TargetKey
from fusewatchd.model.pods import BindKind, VolumeData
from fusewatchd.model.servers import Connection, FuseServer, Holding
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.observe.connections.probe import RootAnswer
from fusewatchd.observe.connections.probe_pool import ProbePool
from fusewatchd.observe.connections.questions import Question, Shown, credentials_of
from fusewatchd.observe.connections.tracker import Connections
from fusewatchd.observe.kubelet.pod_cache import Pods
from fusewatchd.observe.kubelet.volume_data import read_volume_data
from fusewatchd.observe.mounts.table_reader import MountTableSource
from fusewatchd.observe.namespaces.container_owners import are_all_listed
from fusewatchd.observe.namespaces.scanner import NamespaceScanner, ScanResult
from fusewatchd.observe.namespaces.schedule import ScanSchedule
from fusewatchd.observe.namespaces.view import NamespaceView
from fusewatchd.observe.servers.exit_record import ExitRecord
from fusewatchd.parse.kubelet_paths import (
    directory_named_by_volume,
    parse_bind_path,
    publish_directory,
)

AUDIT_SECONDS = 30.0
AUDIT_REST_FACTOR = 2000
"""After an audit that took t, the next one is 2000 t later: at most a two-thousandth of one
processor, however many mounts there are."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How often the slow looks happen, in seconds."""

    look: float
    deadline: float


class Observer:
    """Owns the readers; ``observe`` is cheap and never waits."""

    def __init__(
        self,
        kubelet_root: str,
        ignored_fs_types: frozenset[str],
        table: MountTableSource,
        connections: Connections,
        probes: ProbePool,
        scanner: NamespaceScanner,
        limits: Limits,
    ) -> None:
        """Take the readers; nothing is read before the first ``observe``."""
        self.connections = connections
        self.pods = Pods()
        self.pods_wanted: Callable[[], None] = lambda: None
        """Called when a bind came or went: a new pod list is worth asking for."""
        self.worked_on: Callable[[], Collection[TargetKey]] = tuple
        """Returns the targets that are being replaced."""
        self.servers: dict[Device, tuple[FuseServer, ...]] = {}
        self.ends = ExitRecord()
        self.holdings: tuple[Holding, ...] = ()
        self._anonymous_servers: tuple[FuseServer, ...] = ()
        self._root = kubelet_root
        self._ignored = ignored_fs_types
        self._table_source = table
        self._probes = probes
        self._scanner = scanner
        self._limits = limits
        self._table: MountTable | None = None
        self._host_table: MountTable | None = None
        self._view = NamespaceView()
        self._schedule = ScanSchedule()
        self.expect_containers: Callable[[float], None] = self._schedule.expect_containers
        """Call it (with the time) when a container may have been started."""
        self._audit_due = 0.0
        self._seen_at: dict[Device, float] = {}
        self._volume_data: dict[tuple[str, str], VolumeData] = {}
        self._staging_data: dict[str, VolumeData] = {}
        self._staged: dict[Mount, VolumeData] = {}
        self._scan_gaps: tuple[Gap, ...] = ()
        self._held: frozenset[Device] = frozenset()

    def adjust(self, ignored_fs_types: frozenset[str], limits: Limits) -> None:
        """Go on with other settings from the next look on, which is now; what was seen stays."""
        self._ignored, self._limits = ignored_fs_types, limits
        self._table = None  # the devices to ask may be others
        self._schedule.want_now()

    # ------------------------------------------------------------------ what arrived

    def take_scan(self, now: float) -> ScanResult | None:
        """Take in a finished look at the other namespaces, if there is one."""
        try:
            result = self._scanner.collect(now)
        except TimeoutError as exc:
            self._scan_gaps = (Gap("namespaces", str(exc)),)
            return None
        if result is None:
            return None
        self._scan_gaps = result.gaps
        self._schedule.end(result.started_at, result.elapsed)
        in_flight = {key.namespace for key in self.worked_on()}
        if self._view.take_look(result.namespaces, result.started_at, in_flight, now):
            self.expect_containers(now)
        if not are_all_listed(self._view.namespaces, self.pods.listed, self._view.seen, now):
            self.pods_wanted()
        self.servers, self._anonymous_servers = result.servers, result.anonymous
        self._table = None  # the devices to ask may have changed
        if result.servers and not result.anonymous and result.has_everybody:
            # The kernel tells who serves what, and everybody was seen.
            self.connections.note_served(result.servers.keys(), result.started_at)
        return result

    def take_answers(self, now: float) -> bool:
        """Take in the answers of probes; True when there was something new in them."""
        is_news = False
        for answer in self._probes.collect(now):
            if isinstance(answer, RootAnswer):
                if self.connections.take_root(answer.device, answer.errno, now):
                    is_news = True
            elif answer.answer is None:
                self.connections.take_back(answer.device, now)
                is_news = True
            elif self.connections.take_answer(
                answer.device,
                answer.answer,
                answer.errno,
                answer.asked_at,
                now,
                root_follows=answer.root_follows,
            ):
                is_news = True
        return is_news

    def take_outcomes(self, outcomes: Sequence[Outcome], now: float) -> None:
        """Note what the executor changed in other namespaces, and plan a look at the rest."""
        for outcome in outcomes:
            if isinstance(outcome.action, AbortConnection):
                # Whatever it came to: the evidence for it is used up.
                self.connections.doubt(outcome.action.expect.device)
                self.connections.ask_again([outcome.action.expect.device])
        self._view.take_outcomes(outcomes)
        if not any(outcome.status is OutcomeStatus.RECOVERED for outcome in outcomes):
            return
        self.connections.ask_doubtful()
        self._table_source.refresh()
        self._schedule.expect_late_births(now)

    def look_at_mounts(self, now: float) -> bool:
        """Bring the host's table up to date; True when a FUSE mount came, went or changed.

        Everything else that a node mounts concerns nobody here, but may be the sign of a
        new container.
        """
        before = self._host_table
        table = self._host_table = self._table_source.table()
        if table is before:
            return False
        self.expect_containers(now)
        return before is None or table.fuse_mounts() != before.fuse_mounts()

    @property
    def fuse_mounts(self) -> Sequence[Mount]:
        """The FUSE mounts of the host, as they were at the last look."""
        return self._host_table.fuse_mounts() if self._host_table is not None else ()

    @property
    def mounts_due(self) -> float | None:
        """When to ``look_at_mounts`` although nothing wakes; None: never."""
        return self._table_source.due_at

    # ----------------------------------------------------------------------- errands

    def ask(self, now: float) -> None:
        """Send out what is to be asked."""
        self._current_table(now)
        self._send_questions(now)

    def errands_due(self, now: float) -> float:
        """Return when to ``run_errands``: none of them needs a cycle before it has a result."""
        question_at = self.connections.next_question(now)
        times = [self._audit_due, self._schedule.due_at]
        return min(times if question_at is None else [*times, question_at])

    def run_errands(self, now: float) -> bool:
        """Ask and look where it is time to; the result is that of ``look_at_mounts``."""
        self._audit_if_due(now)
        has_changed = self.look_at_mounts(now)
        self.ask(now)
        self._look_if_due(now)
        return has_changed

    def _audit_if_due(self, now: float) -> None:
        if now < self._audit_due:
            return
        if self._host_table is not None:  # or it is the first look, which reads everything
            self._table_source.audit()
        rest = AUDIT_REST_FACTOR * self._table_source.audit_seconds
        self._audit_due = now + max(AUDIT_SECONDS, rest)

    def _send_questions(self, now: float) -> None:
        for question in self.connections.due(now):
            self._probes.submit(question, now)
        for question in self.connections.ask_held_anew(now):
            self._probes.forget(question.device)
            self._probes.submit(question, now)

    def _current_table(self, now: float) -> MountTable:
        table = self._table_source.table()
        if table is not self._table:
            self._take_table(table, now)
        return table

    # -------------------------------------------------------------------------- look

    def observe(self, now: float) -> Snapshot:
        """Return the node as it is known now, and send out what is to be asked."""
        self._audit_if_due(now)
        table = self._host_table = self._current_table(now)
        self._look_if_due(now)
        self.take_answers(now)
        self._send_questions(now)
        self.connections.note_unasked(self._probes.unasked, self._probes.withdrawn, now)
        waiting = {device: fusectl.waiting(device) for device in self.connections.overdue(now)}
        self.connections.count_requests(waiting, now)
        connections = self.connections.view(now, waiting)
        self._note_held(connections, now)
        return Snapshot(
            taken_at=now,
            table=table,
            is_in_order=self._table_source.is_in_order,
            kubelet_root=self._root,
            connections=connections,
            servers=self.servers,
            namespaces=self._view.settled(self.pods.listed),
            pods=self.pods.known,
            pods_are_current=self.pods.are_current,
            pods_asked_at=self.pods.asked_at,
            volume_data=self._volume_data,
            staging_data=self._staging_data,
            seen_at=self._seen_at,
            namespaces_looked_at=self._schedule.looked_at,
            mount_max=read_mount_max(),
            ends=self.ends.view(connections),
            holdings=self.holdings,
            gaps=self._gaps(connections.values()),
            anonymous_servers=self._anonymous_servers,
        )

    def _note_held(self, connections: Mapping[Device, Connection], now: float) -> None:
        """Look for the process that took a connection over: its end must be seen as well."""
        held = frozenset(d for d, c in connections.items() if c.held_since is not None)
        if held != self._held:
            self.expect_containers(now)
        self._held = held

    def _gaps(self, connections: Collection[Connection]) -> tuple[Gap, ...]:
        no_pods = self.pods.gap()
        gaps = [*self._scan_gaps, *([no_pods] if no_pods is not None else [])]
        if not self._root:
            gaps.append(Gap("kubelet_root", "the kubelet's directory was not found"))
        if any(connection.is_unasked for connection in connections):
            gaps.append(Gap("probes", "hung file systems hold every probe that others may use"))
        is_blind = any(c.is_overdue and c.waiting is None for c in connections)
        if is_blind and not fusectl.is_available():
            gaps.append(Gap("fusectl", "not mounted: hung cannot be told from drained"))
        return tuple(gaps)

    def _look_if_due(self, now: float) -> None:
        if self._schedule.due_at > now:
            return
        self._schedule.begin(now, self._limits.look)
        self._scanner.request(now)
        if not self._scanner.is_running:
            self._scan_gaps = (Gap("namespaces", "there is nothing to make a worker of"),)

    def _take_table(self, table: MountTable, now: float) -> None:
        self._table = table
        questions: dict[Device, Question] = {}
        hidden: dict[Device, Question] = {}
        on_host: dict[Device, set[int]] = {}
        elsewhere: dict[Device, set[int]] = {}
        self._show(table.fuse_mounts(), 0, questions, hidden, on_host)
        for namespace in self._view.namespaces:
            if namespace.pid:
                mounts = [m for m in namespace.mounts if m.is_fuse]
                self._show(mounts, namespace.pid, questions, hidden, elsewhere)

        covered = {d: replace(question, is_covered=True) for d, question in hidden.items()}
        shown = {
            device: Shown(
                question,
                frozenset(on_host.get(device, ())),
                frozenset(elsewhere.get(device, ())),
            )
            for device, question in (covered | questions).items()
        }
        for device in self.connections.set_shown(shown):
            self._probes.forget(device)
            self.ends.forget(device)
            self._seen_at.pop(device, None)  # the number may be another's from here on
        self._seen_at = {device: self._seen_at.get(device, now) for device in on_host}
        self._take_binds(table, now)

    def _show(
        self,
        mounts: Sequence[Mount],
        pid: int,
        questions: dict[Device, Question],
        hidden: dict[Device, Question],
        ids: dict[Device, set[int]],
    ) -> None:
        """Add the devices of these mounts, with the first path at which each one could be asked.

        ``hidden`` takes those at paths that lead to another mount.
        """
        places = {mount.mount_id: mount.mount_point for mount in mounts}
        covered = {m.parent_id for m in mounts if places.get(m.parent_id) == m.mount_point}
        for mount in mounts:
            if mount.fs_type in self._ignored:
                continue
            ids.setdefault(mount.device, set()).add(mount.unique_id or mount.mount_id)
            found = hidden if mount.mount_id in covered else questions
            if mount.device not in found:
                uid, gid = credentials_of(mount)
                found[mount.device] = Question(mount.device, mount.mount_point, pid, uid, gid)

    def _take_binds(self, table: MountTable, now: float) -> None:
        data: dict[tuple[str, str], VolumeData] = {}
        paths: set[str] = set()
        for mount in table.fuse_mounts() if self._root else ():
            path = parse_bind_path(self._root, mount.mount_point)
            if path is None:
                continue
            paths.add(mount.mount_point)
            key = (path.pod_uid, path.volume)
            if path.kind is BindKind.PUBLISH and key not in data:
                found = self._volume_data.get(key) or read_volume_data(
                    publish_directory(self._root, path.pod_uid, path.volume)
                )
                if found is not None:
                    data[key] = found
        self._volume_data = data
        self._staging_data = self._read_staging(table) if self._root else {}
        if self.pods.take_binds(paths, now):
            self.pods_wanted()

    def _read_staging(self, table: MountTable) -> dict[str, VolumeData]:
        """Read what stands beside staged volumes: a path alone may be another volume's by now."""
        data: dict[str, VolumeData] = {}
        staged: dict[Mount, VolumeData] = {}
        for mount in table.fuse_mounts():
            directory = directory_named_by_volume(self._root, mount.mount_point)
            if directory is None:
                continue
            found = self._staged.get(mount) or read_volume_data(directory)
            if found is not None:
                data[mount.mount_point] = staged[mount] = found
        self._staged = staged
        return data

    def next_due(self, now: float) -> float | None:
        """Return when a cycle is needed although nothing wakes it."""
        times = [
            self.connections.next_change(now),
            self._probes.next_deadline(),
            self._scanner.next_deadline(),
        ]
        return min((time for time in times if time is not None), default=None)
