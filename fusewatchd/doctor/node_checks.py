"""The node and the daemon on it: what is needed of kernel, privileges and limits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from fusewatchd.doctor.findings import Finding, fail, ok, warn
from fusewatchd.model.capabilities import Capability
from fusewatchd.model.degraded import INSTEAD, Degraded
from fusewatchd.model.kubelet import KubeletDirectory
from fusewatchd.model.mount_table import MountTable, below
from fusewatchd.plan.planner import table_limit

CAPABILITIES: Mapping[str, int] = {
    capability.name: capability
    for capability in Capability
    if capability is not Capability.DAC_OVERRIDE
}
"""Those of systemd/fusewatchd.service; without DAC_OVERRIDE only aborting does not work."""
UNIT = "use systemd/fusewatchd.service as shipped"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What was found out about the node; a problem is why something was not."""

    release: str
    """Of the kernel, as uname(2) has it."""
    way: str
    """How mounts would be replaced; empty: they cannot be."""
    way_problem: str
    namespace_shortage: str
    """Why no mount namespace is to be had."""
    daemon_pid: int
    """0: no daemon is running."""
    capabilities: int
    """Those that the daemon and its workers can have, or this process where none is running."""
    own_namespace: int
    """Inode of the mount namespace of the same process."""
    kubelet_namespace: int
    """That in which the kubelet works; the host's, where it has none of its own."""
    place_problem: str
    """Why it is not known which one that is."""
    kubelet: KubeletDirectory
    pods_elsewhere: str
    """Where pods' FUSE mounts are that are not below it; empty: nowhere."""
    table: MountTable
    mount_max: int | None
    max_table_entries: int
    """``recovery.max_table_entries``."""
    watched: int
    unwatched: str
    """How many directories below the kubelet's could not be watched, and why."""
    watch_problem: str
    has_fusectl: bool
    front_remark: str
    """What is to be said of the user that talks with others; empty: nothing."""
    request_timeouts: Mapping[str, int]
    """Seconds by the name in ``fs.fuse``; empty before Linux 6.15."""
    commands: tuple[tuple[int, str], ...]
    """Process id and arguments of everything that runs."""


def node_findings(facts: NodeFacts) -> Iterator[Finding]:
    """Judge the node."""
    yield _daemon(facts)
    yield _kernel(facts)
    yield _privileges(facts)
    yield _front_user(facts)
    yield _namespace(facts)
    yield _kubelet_directory(facts)
    if facts.namespace_shortage:
        yield _namespace_shortage(facts)
    if facts.kubelet.is_found:
        yield _propagation(facts)
    if facts.kubelet.is_found and not facts.daemon_pid:
        yield _inotify(facts)
    yield _fusectl(facts)
    if facts.request_timeouts:
        yield _request_timeout(facts)
    yield _table(facts)
    yield from _recoverers(facts.commands)


def _daemon(facts: NodeFacts) -> Finding:
    if facts.daemon_pid:
        return ok("daemon", f"running, process {facts.daemon_pid}")
    return warn("daemon", "not running", "systemctl enable --now fusewatchd")


def _front_user(facts: NodeFacts) -> Finding:
    if not facts.front_remark:
        return ok("user", "the user fusewatchd talks with kubelet, API server and Prometheus")
    advice = "systemd-sysusers systemd/fusewatchd.sysusers, as the packages do; restart fusewatchd"
    return warn("user", facts.front_remark, advice)


def _kernel(facts: NodeFacts) -> Finding:
    if not facts.way:
        return fail("kernel", facts.way_problem, "run as root on the host, on Linux 5.2 or newer")
    text = f"Linux {facts.release} replaces mounts {facts.way}"
    if facts.way == "beneath":
        return ok("kernel", text)
    advice = "nothing must be done; Linux 6.5 and newer leave no layer behind and are faster"
    return warn("kernel", f"{text}, an older way", advice)


def _privileges(facts: NodeFacts) -> Finding:
    missing = [name for name, bit in CAPABILITIES.items() if not facts.capabilities >> bit & 1]
    if missing:
        names = " ".join(f"CAP_{name}" for name in missing)
        return fail("privileges", f"missing: {names}", f"run as root; {UNIT}")
    return ok("privileges", "every capability that is needed")


def _namespace(facts: NodeFacts) -> Finding:
    if facts.place_problem:
        advice = "start the kubelet; the daemon goes where pods' mounts are once that is one place"
        return fail("namespace", facts.place_problem, advice)
    if facts.own_namespace == facts.kubelet_namespace:
        return ok("namespace", "the kubelet's mounts are seen and changed")
    return fail(
        "namespace",
        "a mount namespace of its own: no pod would see what is mounted there",
        "remove ProtectSystem=, PrivateTmp= and the like from drop-ins: systemctl cat fusewatchd",
    )


def _namespace_shortage(facts: NodeFacts) -> Finding:
    text = f"no mount namespace can be made: {facts.namespace_shortage}"
    advice = "raise it, or find out who makes so many: lsns -t mnt"
    return fail("mount namespaces", f"{text}; {INSTEAD[Degraded.MOUNT_NAMESPACE]}", advice)


def _kubelet_directory(facts: NodeFacts) -> Finding:
    directory = facts.kubelet
    if facts.pods_elsewhere:
        return fail(
            "kubelet root",
            f"pods' FUSE mounts that are not below {directory.pods}: {facts.pods_elsewhere}",
            "set kubelet.root to the --root-dir of the kubelet; unmount what is left over",
        )
    if directory.is_found:
        is_linked = directory.pods != f"{directory.root}/pods"
        pods = f", its pods at {directory.pods}" if is_linked else ""
        return ok("kubelet root", f"{directory.root}{pods}")
    return fail(
        "kubelet root",
        "no directory with pods was found",
        "set kubelet.root to the kubelet's --root-dir",
    )


def _propagation(facts: NodeFacts) -> Finding:
    above = [m for m in facts.table if below(facts.kubelet.pods, m.mount_point) is not None]
    depth = max((len(mount.mount_point) for mount in above), default=0)
    mounts = [mount for mount in above if len(mount.mount_point) == depth]
    if not mounts:
        return fail("propagation", "no mount holds the kubelet's directory", "run it on the host")
    if mounts[-1].peer_group:
        return ok("propagation", f"{mounts[-1].mount_point} is shared")
    return warn(
        "propagation",
        f"{mounts[-1].mount_point} is not shared: what drivers mount in their pods stays there",
        f"mount --make-rshared {mounts[-1].mount_point}",
    )


def _inotify(facts: NodeFacts) -> Finding:
    advice = "raise the limit, or find out who uses it up"
    if facts.watch_problem:
        text = f"nothing can be watched, {facts.watch_problem}"
        return warn("inotify", f"{text}; {INSTEAD[Degraded.INOTIFY]}", advice)
    if facts.unwatched:
        text = f"{facts.unwatched}; {INSTEAD[Degraded.INOTIFY_WATCHES]}"
        return warn("inotify", text, advice)
    if not facts.watched:
        return fail("inotify", f"{facts.kubelet.pods} cannot be opened", "see its permissions")
    return ok("inotify", f"all {facts.watched} of the pods' directories can be watched")


def _fusectl(facts: NodeFacts) -> Finding:
    if facts.has_fusectl:
        return ok("fusectl", "hung servers can be told from slow ones")
    return warn(
        "fusectl",
        "not mounted: hung servers cannot be told from slow ones, nor aborted",
        "mount -t fusectl none /sys/fs/fuse/connections",
    )


def _request_timeout(facts: NodeFacts) -> Finding:
    """Judge the sysctls of Linux 6.15 and newer, fs/fuse/sysctl.c; 0: no timeout."""
    timeouts = facts.request_timeouts
    values = ", ".join(f"fs.fuse.{name} is {value}" for name, value in timeouts.items())
    if not any(timeouts.values()):
        return ok("request timeout", f"the kernel aborts no FUSE connection by itself: {values}")
    return warn(
        "request timeout",
        f"the kernel cuts a FUSE connection whose request waits for too long: {values}",
        "a server that is only slow loses its mounts so: set them to 0, or to more than it needs",
    )


def _table(facts: NodeFacts) -> Finding:
    entries = len(facts.table)
    limit = table_limit(facts.max_table_entries, facts.mount_max)
    if entries < limit:
        return ok("mount table", f"{entries} mounts, below the limit of {limit}")
    key = "recovery.max_table_entries" if limit == facts.max_table_entries else "fs.mount-max"
    text = f"{entries} mounts, the limit is {limit}: nothing would be replaced"
    return fail("mount table", text, f"raise {key}, or find out who mounts so much")


def _recoverers(commands: Iterable[tuple[int, str]]) -> Iterator[Finding]:
    found = [pid for pid, command in commands if has_fuse_recovery(command)]
    for pid in found:
        yield warn(
            "recoverers",
            f"Fluid's FuseRecovery is on (process {pid}): two repair the same binds",
            "take FuseRecovery out of csi.featureGates in Fluid's chart",
        )
    if not found:
        yield ok("recoverers", "no other tool repairs FUSE mounts here")


def has_fuse_recovery(command: str) -> bool:
    """Return True for Fluid's CSI plugin with its own recovery switched on.

    The gate is ``FuseRecovery`` (fluid, pkg/features/features.go), given to the plugin as
    ``--feature-gates`` (charts/fluid/fluid/templates/csi/daemonset.yaml); off by default.
    """
    words = command.replace("--feature-gates=", "--feature-gates ").split()
    for flag, value in pairwise(words):
        if flag != "--feature-gates":
            continue
        for gate in value.split(","):
            name, _, state = gate.partition("=")
            if name == "FuseRecovery" and state.lower() in ("true", "t", "1"):
                return True
    return False
