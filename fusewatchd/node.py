"""The adapters to one node, and a single look at it.

The only place that builds them: the daemon runs cycles over a ``Node`` for ever, ``check``
runs a few and changes nothing.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from fusewatchd import __version__
from fusewatchd.breaker import FlapRule
from fusewatchd.bucket import Rate
from fusewatchd.commandrunner import CommandRunner
from fusewatchd.connections import Connections
from fusewatchd.decision import CycleReport, Trigger
from fusewatchd.diagnosis import Knowledge
from fusewatchd.documents import Clocks
from fusewatchd.drivers import drivers_for
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
from fusewatchd.memory import BackOff
from fusewatchd.observer import Limits, Observer
from fusewatchd.onstale import ActionPolicy
from fusewatchd.planner import Policy
from fusewatchd.programs import find_systemctl
from fusewatchd.questions import Timing
from fusewatchd.reconciler import Reconciler
from fusewatchd.remedying import RemedyPolicy
from fusewatchd.settings import RecoveryMode, Settings, override
from fusewatchd.statefile import read_boot_id
from fusewatchd.statekeeper import recall
from fusewatchd.status import status_document
from fusewatchd.switches import Switches

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
        self.forks = ForkServer.start(
            {
                "mount": mount_worker(
                    self.way, mounts_on_detached=detached, journal=partial(LayerJournal, *place)
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
            lambda: MountWorker(self.forks.spawn("mount")), min(MAX_PARALLEL, os.cpu_count() or 1)
        )
        self.observer.worked_on = self.executor.in_flight
        self.commands = CommandRunner(lambda: CommandWorker(self.forks.spawn("command")))
        self.reconciler = Reconciler(
            self.observer,
            self.executor,
            knowledge_of(settings),
            policy_of(settings),
            back_off_of(settings),
            time.monotonic,
            flap_rule=flap_rule_of(settings),
            rate=rate_of(settings),
            recall=lambda: read_journal(*place),
            commands=self.commands,
            remedy_policy=remedy_policy_of(settings),
        )

    def adopt(self, settings: Settings) -> None:
        """Go on with other settings, as far as they can be changed in a running daemon."""
        reconciler = self.reconciler
        reconciler.policy = policy_of(settings)
        reconciler.back_off = back_off_of(settings)
        reconciler.flap_rule = flap_rule_of(settings)
        reconciler.rate = rate_of(settings)
        reconciler.remedy_policy = remedy_policy_of(settings)
        reconciler.knowledge = knowledge_of(settings)
        self.connections.timing = timing_of(settings)
        self.observer.adjust(frozenset(settings.ignore_fs_types), limits_of(settings))

    def document(self, cycle: CycleReport, started_wall: float) -> Any:
        """Return the status document of a cycle; ``started_wall`` is in seconds since 1970."""
        ledger = self.reconciler.ledger
        clocks = Clocks(time.time(), time.monotonic(), started_wall)
        return status_document(
            cycle,
            tuple(ledger.incidents.values()),
            ledger.states,
            clocks,
            version=__version__,
            way=self.way.value,
            detached=ledger.detached,
            outages=ledger.outages,
            mode=self.reconciler.policy.mode.value,
            superseded=self.reconciler.policy.superseded.value,
        )

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


def node_name_of(settings: Settings) -> str:
    """Return the node's name as the kubelet makes it when it is not told one."""
    return settings.node_name or os.uname().nodename.lower()


def timing_of(settings: Settings) -> Timing:
    """Return how often connections are asked, and for how long they are waited for."""
    return Timing(
        settings.probe.interval_seconds,
        settings.probe.deadline_seconds,
        settings.hung.after_seconds,
        confirms=settings.hung.abort,
        held_grace=settings.held.grace_seconds,
    )


def limits_of(settings: Settings) -> Limits:
    """Return how often the slow looks happen."""
    return Limits(settings.look_seconds, settings.probe.deadline_seconds)


def knowledge_of(settings: Settings) -> Knowledge:
    """Return what diagnosis takes from the configuration."""
    drivers = settings.drivers
    fluid = replace(drivers.fluid, mount_root=os.path.realpath(drivers.fluid.mount_root))
    juicefs = replace(drivers.juicefs, mount_root=os.path.realpath(drivers.juicefs.mount_root))
    return Knowledge(
        drivers_for(replace(drivers, fluid=fluid, juicefs=juicefs)),
        frozenset(settings.ignore_fs_types),
        _switches_of(settings),
    )


def _switches_of(settings: Settings) -> Switches:
    recovery = settings.recovery
    return Switches(recovery.exclude, recovery.containers, recovery.exclude_containers)


def policy_of(settings: Settings) -> Policy:
    """Return what planning takes from the configuration."""
    recovery, hung = settings.recovery, settings.hung
    return Policy(
        recovery.mode,
        recovery.superseded,
        recovery.max_table_entries,
        settings.cleanup,
        abort_after=hung.abort_confirmations if hung.abort else 0,
    )


def remedy_policy_of(settings: Settings) -> RemedyPolicy:
    """Return what may be done so that servers can come back."""
    drivers = settings.drivers
    rate = Rate(drivers.on_stale_per_second, drivers.on_stale_burst)
    systemctl = find_systemctl() if any(rule.unit for rule in drivers.on_stale) else ""
    actions = ActionPolicy(drivers.on_stale, rate, systemctl, _switches_of(settings))
    return RemedyPolicy(settings.recovery.mode, settings.dead_sources, actions)


def back_off_of(settings: Settings) -> BackOff:
    """Return the delays after failures."""
    recovery = settings.recovery
    return BackOff(recovery.back_off_initial_seconds, recovery.back_off_max_seconds)


def rate_of(settings: Settings) -> Rate:
    """Return how many replacements the node may have."""
    recovery = settings.recovery
    return Rate(recovery.budget_per_second, recovery.budget_burst)


def flap_rule_of(settings: Settings) -> FlapRule:
    """Return when a source is left alone."""
    recovery = settings.recovery
    return FlapRule(
        recovery.flap_limit,
        recovery.flap_window_seconds,
        recovery.flap_life_seconds,
        recovery.flap_pause_max_seconds,
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
            asked = all(c.answer or c.is_overdue for c in cycle.snapshot.connections.values())
            if (asked and cycle.snapshot.namespaces_looked_at) or time.monotonic() > end:
                break
            time.sleep(0.01)
        document = node.document(node.reconciler.reconcile([Trigger.TIMER]), started_wall)
        # What a daemon would do is told by what it is configured to do.
        return {**document, "mode": mode.value}
    finally:
        node.close()
