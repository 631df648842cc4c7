"""The adapters to one node; the only place that builds them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from fusewatchd import __version__
from fusewatchd.act.command_runner import CommandRunner
from fusewatchd.act.executor import Executor
from fusewatchd.act.executors import Executors
from fusewatchd.act.last_word import LastWord
from fusewatchd.act.layer_journal import LayerJournal, read_journal
from fusewatchd.act.mount_worker import MountWorker, mount_worker
from fusewatchd.act.run_command import CommandWorker, serve_commands
from fusewatchd.act.stand_in_journal import NotedStandIns, StandInJournal
from fusewatchd.act.worker_pages import Pages
from fusewatchd.config.settings import Settings
from fusewatchd.daemon.front.user import front_user
from fusewatchd.daemon.policies import hold_policy_of, node_name_of, policies_of, timing_of
from fusewatchd.linux import statmount
from fusewatchd.linux.features import probe_features
from fusewatchd.linux.mount_kernel import Way
from fusewatchd.model.cycle import CycleReport, Trigger
from fusewatchd.model.degraded import Degraded
from fusewatchd.model.mount_table import parse_mount_table
from fusewatchd.model.mounts import Device, Mount
from fusewatchd.observe.connections.probe import serve_probes
from fusewatchd.observe.connections.probe_pool import ProbePool
from fusewatchd.observe.connections.tracker import Connections
from fusewatchd.observe.hidden_files.look import serve_directory_looks
from fusewatchd.observe.hidden_files.watch import HiddenFilesWatch
from fusewatchd.observe.holders.scan import HolderScanner, serve_holder_looks
from fusewatchd.observe.holders.targets import Holdings
from fusewatchd.observe.holders.watch import HolderWatch
from fusewatchd.observe.kubelet.pods_directory import PodsDirectory
from fusewatchd.observe.kubelet.processes import find_kubelet
from fusewatchd.observe.mounts.table_reader import MountTableSource
from fusewatchd.observe.namespaces.proven import ProvenContainers
from fusewatchd.observe.namespaces.scanner import NamespaceScanner, serve_scans
from fusewatchd.observe.namespaces.trial import NamespaceTrial, serve_namespace_trials
from fusewatchd.observe.namespaces.watch import NamespaceWatch
from fusewatchd.observe.observer import Observer
from fusewatchd.plan.stand_ins import next_try
from fusewatchd.reconcile.account_book import AccountBook
from fusewatchd.reconcile.reconciler import Reconciler
from fusewatchd.state.file import read_boot_id
from fusewatchd.state.saver import StateKeeper
from fusewatchd.status.document import status_document
from fusewatchd.status.values import Clocks
from fusewatchd.workers.channel import Channel
from fusewatchd.workers.fork_server import (
    Credentials,
    ForkServer,
    Worker,
    WorkerKind,
    WorkerMain,
)
from fusewatchd.workers.privileges import PRIVILEGES, Kind

if TYPE_CHECKING:
    from fusewatchd.daemon.keeper import Keeper

KEEPER_MARKER = "keeper-in-use"
"""In the state directory, while the keeper may hold something."""
MAX_PARALLEL = 2
"""Mount workers kept ready: the kernel changes one mount table at a time anyway."""


class Node:
    """The adapters to this node and the reconciler over them; no loop, no reporters."""

    def __init__(
        self, settings: Settings, way: Way | None = None, *, as_old_kernel: bool = False
    ) -> None:
        """Build everything; to be called while the process has one thread.

        ``as_old_kernel`` does without what newer kernels (6.8, 6.16) tell of mounts and servers.

        Raises:
            UnsupportedKernelError: nothing can be replaced safely on this kernel.
            OSError: /proc cannot be read.
        """
        if as_old_kernel:
            statmount.do_without()
        features = probe_features()
        self.way = way or features.best_way
        self.name = node_name_of(settings)
        # Before the fork server, whose mount workers touch nothing of the host but these pods.
        self.kubelet = find_kubelet(settings.kubelet.root, _mounts_of_host())
        pods = self.kubelet.pods
        place = (settings.runtime_dir, read_boot_id())
        pages, proven = Pages(), ProvenContainers()
        worker = partial(
            mount_worker,
            self.way,
            pages,
            mounts_on_detached=features.allows_mounts_on_detached(self.way),
            journal=partial(LayerJournal, *place),
            stand_in_journal=partial(StandInJournal, *place),
        )
        mains = {
            kind: worker(last_word=partial(_last_word, pods, proven, aborts=kind is Kind.ABORT))
            for kind in (Kind.MOUNT, Kind.ABORT)
        }
        self.front_user = front_user()
        self.forks = _start_fork_server(mains, pages, proven, reads_connections=not as_old_kernel)
        proven.close()
        self.table = MountTableSource(use_fanotify=not as_old_kernel)
        self.connections = Connections(timing_of(settings))
        most = settings.probe.max_children
        self.probes = ProbePool(self._probe_child, most)
        self.scanner = NamespaceScanner(lambda: self.forks.spawn(Kind.SCAN.value))
        holdings = Holdings()
        self.noted = NotedStandIns(*place)
        self.holders = HolderWatch(
            HolderScanner(lambda: self.forks.spawn(Kind.HOLDERS.value)), holdings
        )
        readers = self.table, self.connections, self.probes, NamespaceWatch(self.scanner), holdings
        self.observer = Observer(self.kubelet, *readers, self.noted)
        self.hidden_files = HiddenFilesWatch(lambda: self.forks.spawn(Kind.DIRECTORIES.value))
        self.observer.hidden_files = self.hidden_files.known
        degraded = self.observer.degraded
        self.pods_directory = PodsDirectory(self.kubelet.pods, degraded)
        # Before that of sockets: where there is one inotify instance left, it is for this.
        self.pods_directory.try_again(time.monotonic())
        self.namespace_trial = NamespaceTrial(lambda: self.forks.spawn(Kind.TRIAL.value), degraded)
        degraded.note(Degraded.MOUNT_NAMESPACE, features.namespace_shortage)
        self.observer.adjust(frozenset(settings.ignore_fs_types), settings.look_seconds)
        self.executor = Executors(
            Executor(
                partial(self._worker, Kind.MOUNT, pages), min(MAX_PARALLEL, os.cpu_count() or 1)
            ),
            Executor(partial(self._worker, Kind.ABORT, pages), is_eager=False),
        )
        self.keeper: Keeper | None = None
        """None as long as nothing was ever to be held."""
        self._keep(settings)
        self.commands = CommandRunner(lambda: CommandWorker(self.forks.spawn(Kind.COMMAND.value)))
        self.reconciler = Reconciler(
            self.observer,
            self.executor,
            self.commands,
            policies_of(settings),
            time.monotonic,
            recall=lambda: read_journal(*place),
        )
        self.accounts = AccountBook(frozenset(settings.ignore_fs_types))

    def recall(self, state: StateKeeper) -> None:
        """Take in what an earlier run knew."""
        ledger = state.remembered(self.table.table(), self.noted.recall())
        self.observer.recall_stand_ins(ledger.stand_ins)
        self.reconciler.ledger = ledger

    def account(self) -> Trigger | None:
        """Make the account of all mounts, if no mount is being replaced."""
        has_changed = self.accounts.turn(time.monotonic(), is_idle=self.executor.is_idle)
        return Trigger.TIMER if has_changed else None

    def _worker(self, kind: Kind, pages: Pages) -> MountWorker:
        return MountWorker(lambda: self.forks.spawn(kind.value), pages)

    def _probe_child(self, who: Credentials | None) -> Worker:
        kind = Kind.PROBE if who is None else Kind.USER_PROBE
        return self.forks.spawn(kind.value, who)

    def spawn_front(self) -> Worker:
        """Start a process that talks with others."""
        return self.forks.spawn(Kind.FRONT.value, self.front_user.credentials)

    def adopt(self, settings: Settings) -> None:
        """Go on with other settings, as far as they can be changed in a running daemon."""
        self.name = node_name_of(settings)
        self.reconciler.policies = policies_of(settings)
        self.accounts.ignored_fs_types = frozenset(settings.ignore_fs_types)
        self.connections.timing = timing_of(settings)
        self.observer.adjust(frozenset(settings.ignore_fs_types), settings.look_seconds)
        self._keep(settings)

    def _keep(self, settings: Settings) -> None:
        """Talk with the keeper, once there is something to hold."""
        policy = hold_policy_of(settings, has_stand_ins=has_stand_ins(self.way))
        if self.keeper is not None:
            self.keeper.policy = policy
            return
        marker = os.path.join(settings.state_dir, KEEPER_MARKER)
        if policy.drivers or os.path.exists(marker):
            # A daemon that holds nothing imports nothing of it.
            from fusewatchd.daemon.keeper import Keeper
            from fusewatchd.keeper.protocol import socket_path

            places = socket_path(settings.runtime_dir), marker
            self.keeper = Keeper(lambda: self.forks.spawn(Kind.KEEPER.value), *places, policy)

    def ask_keeper(self) -> None:
        """Learn what is held, before anything is asked: a question would wait in there."""
        if self.keeper is not None:
            self.keeper.begin()
            self.observer.take_keeper(self.keeper.view, time.monotonic())

    @property
    def keeper_due_at(self) -> float | None:
        """When to call ``on_keeper`` although nothing wakes; None: not at all."""
        return self.keeper.due_at if self.keeper is not None else None

    @property
    def keeper_wants_cycle_at(self) -> float | None:
        """When a cycle is needed for what is held, although nothing wakes."""
        if self.keeper is None:
            return None
        times = (self.keeper.cycle_due_at, next_try(self.reconciler.ledger.placing))
        return min((t for t in times if t is not None), default=None)

    def on_keeper(self) -> Trigger | None:
        """Take in what the keeper says, and say what is to be said."""
        if self.keeper is None:
            return None
        now = time.monotonic()
        trigger = self.keeper.turn(now)
        self.observer.take_keeper(self.keeper.view, now)
        return trigger

    def take_keeper_cycle(self, cycle: CycleReport) -> Trigger | None:
        """Have the keeper hold what a cycle found, and answer what is replaced."""
        if self.keeper is None:
            return None
        self.keeper.take_cycle(cycle)
        if self.keeper.wants_look:
            self.observer.namespaces.expect_containers(time.monotonic())
        return self.on_keeper()

    def ends_held(self, device: Device) -> bool:
        """Take in that a connection lost its server, before anything asks it."""
        if self.keeper is None or not self.keeper.note_exit(device):
            return False
        self.observer.take_keeper(self.keeper.view, time.monotonic())
        return True

    def postpone(self, seconds: float) -> None:
        """Move every deadline that runs on by a time in which nobody could meet it."""
        for each in (self.connections, self.probes, self.scanner, self.commands):
            each.postpone(seconds)
        self.reconciler.ledger = self.reconciler.ledger.postponed(seconds)

    def document(self, cycle: CycleReport, started_wall: float) -> Any:
        """Return the status document of a cycle; ``started_wall`` is in seconds since 1970."""
        clocks = Clocks(time.time(), time.monotonic(), started_wall)
        return status_document(
            cycle, clocks, version=__version__, way=self.way.value, node=self.name
        )

    def close(self) -> None:
        """End all workers; nothing that is mounted changes."""
        self.executor.close()
        self.commands.close()
        self.probes.close()
        self.scanner.close()
        self.holders.close()
        self.hidden_files.close()
        self.namespace_trial.close()
        if self.keeper is not None:
            self.keeper.close()
        self.table.close()
        self.forks.close()


def has_stand_ins(way: Way) -> bool:
    """Return True where a dead mount can take the place of a held one, and be distinguished.

    That is beneath it (Linux 6.5), and by an id that is never used again (6.8).
    """
    return way is Way.BENEATH and statmount.is_supported()


def _last_word(pods: str, proven: ProvenContainers, *, aborts: bool) -> LastWord:
    proven.prepare()
    return LastWord(pods, proven.pod_of, aborts=aborts)


def _start_fork_server(
    changing: Mapping[Kind, WorkerMain],
    pages: Pages,
    proven: ProvenContainers,
    *,
    reads_connections: bool,
) -> ForkServer:
    mains: dict[Kind, WorkerMain] = {
        **changing,
        Kind.COMMAND: serve_commands,
        Kind.PROBE: serve_probes,
        Kind.USER_PROBE: serve_probes,
        Kind.HOLDERS: serve_holder_looks,
        Kind.DIRECTORIES: serve_directory_looks,
        Kind.TRIAL: serve_namespace_trials,
        Kind.SCAN: partial(serve_scans, proven=proven, reads_connections=reads_connections),
        Kind.FRONT: _serve_others,
        Kind.KEEPER: _talk_with_keeper,
    }
    prepared = {Kind.FRONT: _import_front}

    def serve(kind: Kind, channel: Channel) -> None:
        # What others write to is nobody else's.
        if kind not in (*changing, Kind.SCAN):
            proven.close()
        if kind not in changing:
            pages.close()
        mains[kind](channel)

    def kind_of(kind: Kind) -> WorkerKind:
        prepare = prepared.get(kind, lambda: None)
        return WorkerKind(partial(serve, kind), PRIVILEGES[kind], prepare)

    return ForkServer.start({kind.value: kind_of(kind) for kind in mains})


def _import_front() -> None:
    """Import the code of the front, which its user may not be able to read."""
    import fusewatchd.front.main  # noqa: F401


def _serve_others(channel: Channel) -> None:
    from fusewatchd.front.main import serve_others

    serve_others(channel)


def _talk_with_keeper(channel: Channel) -> None:
    from fusewatchd.act.keeper_worker import serve_keeper_jobs

    serve_keeper_jobs(channel)


def _mounts_of_host() -> Iterator[Mount]:
    """Read the mount table if somebody asks for it: what is read here all workers have, too."""
    with open("/proc/self/mountinfo", "rb") as file:
        yield from parse_mount_table(file.read())
