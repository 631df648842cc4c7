"""Fills a snapshot from every reader of the node; the reading side of the shell.

Each reader keeps what it saw last and is asked again only when something says that it may be
out of date, so one look costs what has changed and not what there is.  A reader that fails
leaves a gap in the snapshot and is never a reason not to look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from fusewatchd.linux import fusectl
from fusewatchd.linux.procfs import read_mount_max
from fusewatchd.model.actions import AbortConnection, Outcome, OutcomeStatus, PlaceStandIns
from fusewatchd.model.degraded import Degraded
from fusewatchd.model.findings import Gap
from fusewatchd.model.held import NO_KEEPER, KeeperView
from fusewatchd.model.hidden_files import HiddenFiles
from fusewatchd.model.kubelet import KubeletDirectory
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount, MountNamespace, TargetKey
from fusewatchd.model.quota import AGENT, Collected, Owner, RefusedOwner, Resource, limits_of
from fusewatchd.model.servers import Connection
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.stand_in import StandIn
from fusewatchd.model.verdicts import Reason
from fusewatchd.observe.connections.places import Asked, Places
from fusewatchd.observe.connections.probe import RootAnswer
from fusewatchd.observe.connections.probe_pool import ProbePool
from fusewatchd.observe.connections.tracker import Connections
from fusewatchd.observe.degradations import Degradations
from fusewatchd.observe.holders.targets import Holdings
from fusewatchd.observe.kubelet.directory import pods_elsewhere
from fusewatchd.observe.kubelet.pod_cache import Pods
from fusewatchd.observe.kubelet.volume_data import VolumeDataReader
from fusewatchd.observe.mounts.stand_in_table import NotedStandIns, StandInTable
from fusewatchd.observe.mounts.table_reader import MountTableSource
from fusewatchd.observe.namespaces.scanner import ScanResult
from fusewatchd.observe.namespaces.watch import NamespaceWatch
from fusewatchd.observe.servers.exit_record import ExitRecord
from fusewatchd.text import counted

MAX_TOLD = 3
SHOWN_ID = 12
"""Characters of a container's id, as runtimes show it."""
AUDIT_SECONDS = 30.0
AUDIT_REST_FACTOR = 2000
"""After an audit that took t, the next one is 2000 t later: at most a two-thousandth of one
processor, however many mounts there are."""

LEAST_SWEEP_SECONDS = 1.0
"""Whatever is configured, a question that waits for less than this is not late."""


class Observer:
    """Owns what was seen of the node; ``observe`` is cheap and never waits."""

    def __init__(
        self,
        kubelet: KubeletDirectory,
        table: MountTableSource,
        connections: Connections,
        probes: ProbePool,
        namespaces: NamespaceWatch,
        holdings: Holdings,
        noted: NotedStandIns,
    ) -> None:
        """Take the readers; nothing is read before the first ``observe``."""
        self.connections = connections
        self.namespaces = namespaces
        self.pods = Pods()
        self.ends = ExitRecord()
        self.degraded = Degradations()
        self.front_gap: Gap | None = None
        """There is nobody who talks with others."""
        self.ignored_fs_types: Collection[str] = frozenset()
        self.place_problem = ""
        """Why it is not known in which mount namespace the kubelet works."""
        self.hidden_files: Mapping[str, HiddenFiles] = {}
        self._kubelet = kubelet
        self._table_source = table
        self._probes = probes
        self._holdings = holdings
        self._volumes = VolumeDataReader(kubelet)
        self._elsewhere = ""
        self._pods_devices: frozenset[Device] = frozenset()
        """What pods' binds show, or have shown and something shows still."""
        self._of_no_pod: tuple[str, ...] = ()
        self._judged: tuple[object, frozenset[Device]] = ((), frozenset())
        """What ``_of_no_pod`` was found out from."""
        self._table: MountTable | None = None
        self._host_table: MountTable | None = None
        self._places: Places | None = None
        self._audit_due = 0.0
        self._seen_at: dict[Device, float] = {}
        self._held: frozenset[Device] = frozenset()
        self._keeper = NO_KEEPER
        self._stand_ins = StandInTable(noted)

    def adjust(self, ignored_fs_types: Collection[str], look_seconds: float) -> None:
        """Go on with these settings from the next look on, which is now; what was seen stays."""
        self.ignored_fs_types, self.namespaces.period = ignored_fs_types, look_seconds
        self._table = None  # the devices to ask may be others
        self.namespaces.want_now()

    # ------------------------------------------------------------------ what arrived

    def take_keeper(self, view: KeeperView, now: float) -> None:
        """Take in what the keeper holds: what outlives its server is never asked."""
        before, self._keeper = self._keeper.dead(), view
        self.namespaces.keeper = view
        lost = view.dead()
        if lost != before:
            self.connections.set_lost(lost, now)
            for device in lost - before:
                self._probes.forget(device)

    def take_scan(self, in_flight: Collection[TargetKey], now: float) -> ScanResult | None:
        """Take in a finished look at the other namespaces, if there is one.

        ``in_flight`` are the targets that are being replaced.
        """
        result = self.namespaces.collect({key.namespace for key in in_flight}, now)
        if result is None:
            return None
        if not self.namespaces.are_all_listed(self.pods.listed, now):
            self.pods.want_list()
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
                assert self._places is not None  # or nothing was asked
                elsewhere = self._places.other_than
                self.connections.take_back(answer.device, answer.errno, now, elsewhere)
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
            if outcome.reason is Reason.NAMESPACE_LIMIT:
                self.degraded.note(Degraded.MOUNT_NAMESPACE, outcome.detail)
        self.namespaces.take_outcomes(outcomes)
        placed = [o for o in outcomes if isinstance(o.action, PlaceStandIns)]
        if placed:
            self._stand_ins.take(one for outcome in placed for one in outcome.stand_ins)
            self._table_source.refresh()
        if not any(outcome.status is OutcomeStatus.RECOVERED for outcome in outcomes):
            return
        self.connections.ask_doubtful()
        self._table_source.refresh()
        self.namespaces.expect_late_births(now)

    def recall_stand_ins(self, known: Iterable[StandIn]) -> None:
        """Take in the stand-ins that an earlier run knew."""
        self._stand_ins.take(known)

    def expect_stand_ins(self) -> None:
        """Look into what workers write down, with each table, until an outcome comes."""
        self._stand_ins.expect()

    def look_at_mounts(self, now: float) -> bool:
        """Bring the host's table up to date; True when a FUSE mount came, went or changed.

        Everything else that a node mounts concerns nobody here, but may be the sign of a
        new container.
        """
        before = self._host_table
        table = self._host_table = self._stand_ins.shown(self._table_source.table())
        if table is before:
            return False
        self.namespaces.expect_containers(now)
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
        times = [self._audit_due, self.namespaces.due_at]
        return min(times if question_at is None else [*times, question_at])

    def run_errands(self, now: float) -> bool:
        """Ask and look where it is time to; the result is that of ``look_at_mounts``."""
        self._audit_if_due(now)
        has_changed = self.look_at_mounts(now)
        self.ask(now)
        self.namespaces.look_if_due(now)
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
        for question in self.connections.ask_anew(now):
            self._probes.forget(question.device)
            self._probes.submit(question, now)

    def _current_table(self, now: float) -> MountTable:
        table = self._stand_ins.shown(self._table_source.table())
        if table is not self._table:
            self._take_table(table, now)
        return table

    # -------------------------------------------------------------------------- look

    def observe(self, now: float) -> Snapshot:
        """Return the node as it is known now, and send out what is to be asked."""
        self._audit_if_due(now)
        table = self._host_table = self._current_table(now)
        self.namespaces.look_if_due(now)
        self.take_answers(now)
        self._send_questions(now)
        self.degraded.note(Degraded.FANOTIFY, self._table_source.fanotify_shortage)
        self.connections.note_unasked(self._probes.unasked, self._probes.withdrawn, now)
        waiting = {device: fusectl.waiting(device) for device in self.connections.overdue(now)}
        self.connections.count_requests(waiting, now)
        connections = self.connections.view(now, waiting)
        self._note_held(connections, now)
        late = self._late_owners(now)
        return Snapshot(
            taken_at=now,
            table=table,
            is_in_order=self._table_source.is_in_order,
            kubelet=self._kubelet,
            connections=connections,
            servers=self.namespaces.servers,
            namespaces=self._settle(),
            pods=self.pods.known,
            pods_are_current=self.pods.are_current and not self.pods.is_overdue(now),
            pods_asked_at=self.pods.asked_at,
            volume_data=self._volumes.published,
            staging_data=self._volumes.staged,
            seen_at=self._seen_at,
            namespaces_looked_at=self.namespaces.looked_at,
            mount_max=read_mount_max(),
            ends=self.ends.view(connections),
            holdings=self._holdings.view(),
            gaps=self._gaps(connections.values(), late, now),
            degraded=self.degraded.all,
            anonymous_servers=self.namespaces.anonymous_servers,
            tables=self.namespaces.tables,
            hidden_files=dict(self.hidden_files),
            keeper=self._keeper,
            stand_ins=self._stand_ins.present,
            refused_owners=self._refused_owners(late),
        )

    def _settle(self) -> tuple[MountNamespace, ...]:
        """Return the other namespaces; note the containers of which nothing tells the pod."""
        listed = self.pods.listed
        settled = self.namespaces.settled(listed, self._volumes.pods)
        if self._judged[0] is not settled or self._judged[1] != self._pods_devices:
            self._judged = settled, self._pods_devices
            self._of_no_pod = self.namespaces.of_no_pod(settled, listed, self._pods_devices)
        return settled

    def _note_held(self, connections: Mapping[Device, Connection], now: float) -> None:
        """Look for the process that took a connection over: its end must be seen as well."""
        held = frozenset(d for d, c in connections.items() if c.held_since is not None)
        if held != self._held:
            self.namespaces.expect_containers(now)
        self._held = held

    def _gaps(
        self, connections: Collection[Connection], late: Mapping[Owner, int], now: float
    ) -> tuple[Gap, ...]:
        no_pods = self.pods.gap(now)
        gaps = [*self.namespaces.gaps, *([no_pods] if no_pods is not None else [])]
        if self.front_gap is not None:
            gaps.append(self.front_gap)
        if not self._kubelet.is_found:
            gaps.append(Gap("kubelet_root", "the kubelet's directory was not found"))
        if self.place_problem:
            gaps.append(Gap("kubelet_namespace", self.place_problem))
        if self._elsewhere:
            text = f"not below {self._kubelet.pods}, and not repaired: {self._elsewhere}"
            gaps.append(Gap("other_pods", f"pods' FUSE mounts are below another directory, {text}"))
        if self._of_no_pod:
            gaps.append(Gap("containers", _without_pod(self._of_no_pod)))
        if AGENT in late:
            gaps.append(Gap("probes", "hung file systems hold every probe that others may use"))
        is_blind = any(c.is_overdue and c.waiting is None for c in connections)
        if is_blind and not fusectl.is_available():
            gaps.append(Gap("fusectl", "not mounted: hung cannot be told from drained"))
        return tuple(gaps)

    def _late_owners(self, now: float) -> Counter[Owner]:
        """Return whose connections wait for longer than a sweep to be asked."""
        timing = self.connections.timing
        sweep = max(LEAST_SWEEP_SECONDS, min(timing.interval, timing.hung_after))
        return self._probes.late_owners(now - sweep)

    def _refused_owners(self, late: Mapping[Owner, int]) -> tuple[RefusedOwner, ...]:
        refused = Collected()
        of_places = self._places.refused_owners if self._places is not None else ()
        for one in (*self.namespaces.refused_owners, *of_places):
            refused.add(one)
        for owner, count in late.items():
            if owner != AGENT:
                limit = limits_of(owner).stuck_workers
                example = "connections that do not answer hold its probes"
                refused.add(RefusedOwner(owner, Resource.QUESTIONS, limit, count, example))
        return refused.all()

    def _take_table(self, table: MountTable, now: float) -> None:
        self._table = table
        asked = Asked(
            self.ignored_fs_types,
            f"{self._kubelet.pods}/" if self._kubelet.is_found else "",
            self.pods.known or {},
        )
        self._places = Places(table, self.namespaces.all, asked, self.namespaces.tables)
        shown = self._places.shown()
        for device in self.connections.set_shown(shown):
            self._probes.forget(device)
            self.ends.forget(device)
            self._seen_at.pop(device, None)  # the number may be another's from here on
        on_host = (device for device, where in shown.items() if where.on_host)
        self._seen_at = {device: self._seen_at.get(device, now) for device in on_host}
        self._elsewhere = pods_elsewhere(table, self._kubelet)
        self.pods.take_binds(self._volumes.read(table.fuse_mounts()), now)
        # What a bind has shown may still be shown in containers when the bind itself is replaced.
        self._pods_devices = self._pods_devices & shown.keys() | self._volumes.devices

    def next_due(self, now: float) -> float | None:
        """Return when a cycle is needed although nothing wakes it."""
        times = [
            self.connections.next_change(now),
            self._probes.next_deadline(),
            self.namespaces.next_deadline(),
        ]
        return min((time for time in times if time is not None), default=None)


def _without_pod(ids: Sequence[str]) -> str:
    shown = ", ".join(container_id[:SHOWN_ID] for container_id in ids[:MAX_TOLD])
    more = f" and {len(ids) - MAX_TOLD} more" if len(ids) > MAX_TOLD else ""
    what = counted(len(ids), "container")
    return (
        f"{what} outside of kubepods may show volumes of pods and cannot be repaired: only the"
        f" kubelet's list tells whose they are (kubelet.url): {shown}{more}"
    )
