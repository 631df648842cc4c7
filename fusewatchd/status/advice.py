"""What each verdict means, and what to do about it.

In braces: what is filled in from the mount (``values_of``).  The manual shows the names instead.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from fusewatchd.model.verdicts import Verdict
from fusewatchd.status.values import Document


@dataclass(frozen=True, slots=True)
class Advice:
    """Three texts of whole sentences."""

    meaning: str
    todo: str
    """What a person can do; commands are in backquotes."""
    then: str
    """What fusewatchd does next, and when."""


_FIELDS = re.compile(r"\{(mount|namespace|pod|source|volume)\}")


def filled(text: str, values: Mapping[str, str] | None = None) -> str:
    """Return a text with real values in its commands, quoted for a shell; else with names."""
    values = values or {}

    def value(found: re.Match[str]) -> str:
        name = found[1]
        return shlex.quote(values[name]) if values.get(name) else name.upper()

    return _FIELDS.sub(value, text)


def values_of(mount: Document) -> Mapping[str, str]:
    """Return what the texts about a mount of a status document can be filled with."""
    pod, source = mount["pod"], mount.get("source") or {}
    return {
        "mount": mount["mount_point"],
        "namespace": pod["namespace"] or "",
        "pod": pod["name"] or "",
        "source": source.get("path") or "",
        "volume": mount.get("volume") or "",
    }


NOTHING = "Nothing."
IT_PASSES = "Nothing: it passes within a short time."
RESTART = "Restart the pod: `kubectl -n {namespace} delete pod {pod}`."
RETRIES = "fusewatchd tries again, with growing pauses."
WHEN_BACK = "fusewatchd replaces it within milliseconds once a new file system is mounted there."

VERDICTS: Mapping[Verdict, Advice] = {
    Verdict.HEALTHY: Advice("The mount works.", NOTHING, "fusewatchd watches it."),
    Verdict.SLOW: Advice(
        "The FUSE server did not answer the last probe within probe.deadline_seconds. fusewatchd"
        " never treats a slow server as dead.",
        "Check the load of the FUSE server and of the storage behind it.",
        "fusewatchd probes it again. After hung.after_seconds without an answer, while requests"
        " wait, the verdict is hung.",
    ),
    Verdict.HUNG: Advice(
        "Requests wait, and the FUSE server answered nothing for hung.after_seconds. It may resume"
        " at any moment, so fusewatchd never treats it as dead.",
        "Check the FUSE server (log, threads, network) and restart it if needed. With"
        " hung.abort: true fusewatchd aborts its connection after enough confirmations.",
        "fusewatchd leaves it alone until it answers or its server exits.",
    ),
    Verdict.STALE: Advice(
        "The pod cannot use the mount: its FUSE server is gone, or another mount hides it.",
        "Make sure that the FUSE server is started again.",
        "fusewatchd replaces it as soon as its source is mounted again and answers.",
    ),
    Verdict.SUPERSEDED: Advice(
        "The mount works with an old FUSE server, and a newer file system is mounted at its"
        " source.",
        "Nothing. With recovery.superseded: rebind fusewatchd replaces such mounts at once.",
        "fusewatchd replaces it as soon as the old server exits.",
    ),
    Verdict.BARE: Advice(
        "The volume was unmounted while its pod runs. A container that starts now gets an empty"
        " directory of the node.",
        "Find out what unmounted it, because only its driver may mount it again. " + RESTART,
        "Nothing: what unmounted it may be about to end the pod.",
    ),
    Verdict.ON_DISK: Advice(
        "The container was started while its volume was not mounted. It reads and writes a"
        " directory of the node's disk instead. Nothing of that is in the volume: data is lost"
        " without an error.",
        "Save what was written there. Then restart the container or the pod, which gets the volume"
        " that is mounted now: `kubectl -n {namespace} delete pod {pod}`.",
        "fusewatchd mounts the volume over that directory as soon as the pod's mount on the host"
        " works. What was written stays on the node, below the volume.",
    ),
    Verdict.ORPHANED: Advice(
        "The kubelet has deleted its pod, so no process uses the mount.",
        "Check the kubelet's log for why it does not unmount it. With cleanup.detach_orphans: true"
        " fusewatchd detaches dead mounts of deleted pods after a grace period.",
        "fusewatchd never replaces it.",
    ),
    Verdict.HELD: Advice(
        "No process serves the mount now, and its connection is kept for the next server.",
        "Make sure that the FUSE server is started again.",
        "fusewatchd leaves it alone for held.grace_seconds. After that the verdict is hung.",
    ),
    Verdict.UNKNOWN: Advice(
        "fusewatchd could not find out whether the mount works.",
        "See the evidence for what could not be probed.",
        "fusewatchd probes it again, and leaves it alone until there is an answer.",
    ),
}


REFUSED = Advice(
    "The FUSE server is alive and answers with an error of its own, perhaps from its backend. That"
    " is not a dead server.",
    "Check the FUSE server's log and the storage behind it.",
    "fusewatchd probes it again. It replaces the mount when the server exits, or when a new one is"
    " mounted at its source and serves.",
)
"""Of an unknown state: the server itself answered with an error."""

FAILING_ROOT = Advice(
    "The FUSE server answers, but not for the root of the volume. Pods get this error, or wait.",
    "Check the FUSE server's log and the storage behind it.",
    "fusewatchd watches it. It never replaces a live server because of what it answers.",
)
"""Of a healthy one: its server is alive, and the verdict means no more than that."""

DEAD_LAYERS = (
    "{layers} below it: another tool mounts there again and again (`findmnt`, the driver's log)."
    " fusewatchd removes them once what covers them is dead as well."
)

DETACHES = Advice(
    "The dead mount of the old FUSE server is still at its source, for longer than a restart takes."
    " fusewatchd detaches it (dead_sources.detach) once no process serves it.",
    "`fusewatchd status` says what prevents that (`Source mount is dead`). To detach it now, run"
    " `umount -l {source}`.",
    WHEN_BACK,
)

UNREACHED = Advice(
    "fusewatchd could not probe the FUSE server. Every path to it leads to another mount, or over a"
    " file system that is dead or hangs.",
    "Check what is mounted above it: `findmnt -T {mount}`. Unmount what should not be there.",
    "fusewatchd probes it again, with pauses, and as soon as the mount table changes.",
)

NEEDS_RESTART = (
    "a process of this pod holds the root directory of a dead mount, or its image has a dead layer."
    " A new server cannot help: restart the pod"
)
"""As gVisor's gofer does; the line ``holder`` names the process."""

NOT_RUNNING = Advice(
    "Nothing prevents a recovery, but no fusewatchd is running.",
    "Start it: `systemctl start fusewatchd`.",
    "fusewatchd would replace it now.",
)

UNCLAIMED = Advice(
    "The mount shows no volume of its pod on the host, now or earlier. It is a hostPath, a copy of"
    " other mounts of the node, or a mount that its pod made itself. Or it receives the host's"
    " mounts anyway.",
    "If fusewatchd should repair it: it has to be seen once while it works.",
    "fusewatchd leaves it alone.",
)
