"""From the settings to what each part of the daemon takes from them."""

from __future__ import annotations

import os
from dataclasses import replace

from fusewatchd.act.programs import find_systemctl
from fusewatchd.config.settings import Settings
from fusewatchd.diagnose.diagnosis import Knowledge
from fusewatchd.diagnose.exclusions import Switches
from fusewatchd.drivers import drivers_for
from fusewatchd.observe.connections.questions import Timing
from fusewatchd.plan.back_off import BackOff
from fusewatchd.plan.flapping import FlapRule
from fusewatchd.plan.hold import HoldPolicy
from fusewatchd.plan.planner import Policy
from fusewatchd.plan.server_recovery import ServerPolicy
from fusewatchd.plan.server_restart import ActionPolicy
from fusewatchd.rate_limit import Rate
from fusewatchd.reconcile.reconciler import Policies


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


def policies_of(settings: Settings) -> Policies:
    """Return what the configuration says to each step of a cycle."""
    recovery = settings.recovery
    return Policies(
        diagnosis=_knowledge_of(settings),
        planning=_planning_of(settings),
        servers=_servers_of(settings),
        back_off=BackOff(recovery.back_off_initial_seconds, recovery.back_off_max_seconds),
        flapping=FlapRule(
            recovery.flap_limit,
            recovery.flap_window_seconds,
            recovery.flap_life_seconds,
            recovery.flap_pause_max_seconds,
        ),
        budget=Rate(recovery.budget_per_second, recovery.budget_burst),
    )


def _knowledge_of(settings: Settings) -> Knowledge:
    """Return what diagnosis takes from the configuration."""
    drivers, recovery = settings.drivers, settings.recovery
    fluid = replace(drivers.fluid, mount_root=os.path.realpath(drivers.fluid.mount_root))
    juicefs = replace(drivers.juicefs, mount_root=os.path.realpath(drivers.juicefs.mount_root))
    return Knowledge(
        drivers_for(replace(drivers, fluid=fluid, juicefs=juicefs)),
        frozenset(settings.ignore_fs_types),
        Switches(recovery.exclude, recovery.containers, recovery.exclude_containers),
    )


def _planning_of(settings: Settings) -> Policy:
    """Return what planning takes from the configuration."""
    recovery, hung = settings.recovery, settings.hung
    return Policy(
        recovery.mode,
        recovery.superseded,
        recovery.max_table_entries,
        settings.cleanup,
        abort_after=hung.abort_confirmations if hung.abort else 0,
        keep_read_only=recovery.keep_read_only,
        on_disk=recovery.on_disk,
    )


def _servers_of(settings: Settings) -> ServerPolicy:
    """Return what may be done so that servers can come back."""
    drivers = settings.drivers
    rate = Rate(drivers.on_stale_per_second, drivers.on_stale_burst)
    systemctl = find_systemctl() if any(rule.unit for rule in drivers.on_stale) else ""
    return ServerPolicy(settings.dead_sources, ActionPolicy(drivers.on_stale, rate, systemctl))


def hold_policy_of(settings: Settings, *, has_stand_ins: bool) -> HoldPolicy:
    """Return which connections are held, and for how long."""
    recovery, hold = settings.recovery, settings.keeper.hold
    return HoldPolicy(
        hold.drivers,
        hold.grace_seconds,
        recovery.mode,
        Switches(recovery.exclude, recovery.containers, recovery.exclude_containers),
        has_stand_ins,
    )
