"""The adapters to one node, and a single look at it.

The only place that builds them: the daemon runs cycles over a ``Node`` for ever, ``check``
runs a few and changes nothing.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import partial
from typing import Any

from fusewatchd import __version__
from fusewatchd.commandrunner import CommandRunner
from fusewatchd.connections import Connections
from fusewatchd.cycle import CycleReport, Trigger
from fusewatchd.decision import RecoveryMode
from fusewatchd.documents import Clocks
from fusewatchd.errors import NamespaceError, ParseError
from fusewatchd.executor import Executor
from fusewatchd.linux import statmount
from fusewatchd.linux.commands import CommandWorker, serve_commands
from fusewatchd.linux.features import probe_features
from fusewatchd.linux.forkserver import ForkServer
from fusewatchd.linux.holders import HolderScanner, serve_holder_looks
from fusewatchd.linux.kubeletroot import find_kubelet_root
from fusewatchd.linux.layerjournal import LayerJournal, read_journal
from fusewatchd.linux.mounter import MountWorker, mount_worker
from fusewatchd.linux.mountkernel import Way
from fusewatchd.linux.mounttable import MountTableSource
from fusewatchd.linux.namespaces import NamespaceScanner, serve_scans
from fusewatchd.linux.probe import serve_probes
from fusewatchd.linux.probepool import ProbePool
from fusewatchd.linux.workerpages import Pages
from fusewatchd.observer import Observer
from fusewatchd.policies import limits_of, policies_of, timing_of
from fusewatchd.reconciler import Reconciler
from fusewatchd.settings import Settings, override
from fusewatchd.statefile import read_boot_id
from fusewatchd.statekeeper import recall
from fusewatchd.status import status_document

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
        place = (settings.runtime_dir, read_boot_id())
        detached = features.allows_mounts_on_detached(self.way)
        pages = Pages()
        self.forks = ForkServer.start(
            {
                "mount": mount_worker(
                    self.way,
                    pages,
                    mounts_on_detached=detached,
                    journal=partial(LayerJournal, *place),
                ),
                "command": serve_commands,
                "probe": serve_probes,
                "holders": serve_holder_looks,
                "scan": partial(serve_scans, reads_connections=not as_old_kernel),
            }
        )
        self.table = MountTableSource(use_fanotify=not as_old_kernel)
        self.connections = Connections(timing_of(settings))
        self.probes = ProbePool(
            lambda who: self.forks.spawn("probe", who), settings.probe.max_children
        )
        self.scanner = NamespaceScanner(lambda: self.forks.spawn("scan"))
        self.holders = HolderScanner(lambda: self.forks.spawn("holders"))
        self.kubelet_root = find_kubelet_root(settings.kubelet.root)
        self.observer = Observer(
            self.kubelet_root,
            frozenset(settings.ignore_fs_types),
            self.table,
            self.connections,
            self.probes,
            self.scanner,
            limits_of(settings),
        )
        self.executor = Executor(
            lambda: MountWorker(lambda: self.forks.spawn("mount"), pages),
            min(MAX_PARALLEL, os.cpu_count() or 1),
        )
        self.observer.worked_on = self.executor.in_flight
        self.commands = CommandRunner(lambda: CommandWorker(self.forks.spawn("command")))
        self.reconciler = Reconciler(
            self.observer,
            self.executor,
            self.commands,
            policies_of(settings),
            time.monotonic,
            recall=lambda: read_journal(*place),
        )

    def adopt(self, settings: Settings) -> None:
        """Go on with other settings, as far as they can be changed in a running daemon."""
        self.reconciler.policies = policies_of(settings)
        self.connections.timing = timing_of(settings)
        self.observer.adjust(frozenset(settings.ignore_fs_types), limits_of(settings))

    def postpone(self, seconds: float) -> None:
        """Move every deadline that runs on by a time in which nobody could meet it."""
        for each in (self.connections, self.probes, self.scanner, self.commands):
            each.postpone(seconds)
        self.reconciler.ledger = self.reconciler.ledger.postponed(seconds)

    def document(self, cycle: CycleReport, started_wall: float) -> Any:
        """Return the status document of a cycle; ``started_wall`` is in seconds since 1970."""
        clocks = Clocks(time.time(), time.monotonic(), started_wall)
        return status_document(cycle, clocks, version=__version__, way=self.way.value)

    def close(self) -> None:
        """End all workers; nothing that is mounted changes."""
        self.executor.close()
        self.commands.close()
        self.probes.close()
        self.scanner.close()
        self.holders.close()
        self.table.close()
        self.forks.close()


def require_host_namespace() -> None:
    """Make sure that what is mounted here is what the kubelet and the host's init see.

    Raises:
        NamespaceError: this process has a mount namespace of its own.
        OSError: that cannot be found out.
    """
    own, host = (os.stat(f"/proc/{who}/ns/mnt").st_ino for who in ("self", "1"))
    if own != host:
        raise NamespaceError(
            "this process has a mount namespace of its own: no pod would see what it mounts."
            " Start it on the host, by a unit without ProtectSystem=, PrivateTmp= and the like"
        )


def look_once(settings: Settings) -> Any:
    """Look at the node without changing anything; return the status document.

    What an earlier run wrote down is believed as a daemon would believe it.

    Raises:
        FusewatchError: the kernel does not allow a look.
        OSError: /proc cannot be read.
    """
    mode = settings.recovery.mode
    node = Node(override(settings, {"recovery.mode": RecoveryMode.REPORT.value}))
    started_wall, end = time.time(), time.monotonic() + settings.probe.deadline_seconds + 1.0
    try:
        with suppress(ParseError):
            node.reconciler.ledger = recall(settings.state_dir, node.table.table())
        while True:
            cycle = node.reconciler.reconcile([Trigger.TIMER])
            node.observer.take_answers(time.monotonic())
            node.observer.take_scan(time.monotonic())
            asked = all(
                (c.answer and not c.root.is_pending) or c.is_overdue
                for c in cycle.snapshot.connections.values()
            )
            if (asked and cycle.snapshot.namespaces_looked_at) or time.monotonic() > end:
                break
            time.sleep(0.01)
        document = node.document(node.reconciler.reconcile([Trigger.TIMER]), started_wall)
        # What a daemon would do is told by what it is configured to do.
        return {**document, "mode": mode.value}
    finally:
        node.close()
