"""What to say of each verdict to somebody who asks why a mount is not well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fusewatchd.model.verdicts import Verdict


@dataclass(frozen=True, slots=True)
class Advice:
    """Three sentences."""

    meaning: str
    todo: str
    """What a person can do."""
    then: str
    """What fusewatchd does next, and when."""


NOTHING = "Nothing."
BY_ITSELF = "Nothing: it passes by itself."

VERDICTS: Mapping[Verdict, Advice] = {
    Verdict.HEALTHY: Advice("It works.", NOTHING, "It is watched."),
    Verdict.SLOW: Advice(
        "The last question to its server was not answered within probe.deadline_seconds. A slow"
        " server is never taken for a dead one.",
        "Look at the load of the FUSE server and of the storage behind it.",
        "It is asked again. If nothing is answered for hung.after_seconds while requests wait, it"
        " is called hung.",
    ),
    Verdict.HUNG: Advice(
        "Requests wait and nothing was answered for hung.after_seconds. A hung server may go on at"
        " any moment and is never taken for a dead one.",
        "Look at the FUSE server (its log, its threads, its network) and restart it if need be;"
        " with hung.abort: true its connection is aborted after enough confirmations.",
        "It is left alone until it answers, or until its server has ended.",
    ),
    Verdict.STALE: Advice(
        "It cannot be used: its server is gone for good, or something hides it.",
        "Make sure that the FUSE server is started again.",
        "It is replaced as soon as its source is mounted anew and answers.",
    ),
    Verdict.SUPERSEDED: Advice(
        "It works, by an old server that lives on; a newer file system is mounted at its source.",
        "Nothing; recovery.superseded: rebind moves such mounts at once.",
        "It is replaced as soon as the old server has ended.",
    ),
    Verdict.BARE: Advice(
        "It was unmounted while its pod goes on. A container that starts now gets an empty"
        " directory of the node.",
        "Find out who unmounted it, and restart the pod: only its driver may mount it again.",
        "Nothing: whoever unmounted it may be about to end the pod.",
    ),
    Verdict.ON_DISK: Advice(
        "The container was started while its volume was not mounted. It reads and writes a"
        " directory of the node's disk instead, and nothing of that is in the volume: data is lost"
        " without an error.",
        "Save what was written there, then restart the container or the pod: a new container gets"
        " the volume that is mounted now.",
        "It is watched; what was written stays where it is.",
    ),
    Verdict.ORPHANED: Advice(
        "The kubelet has deleted its pod, so no process uses it.",
        "See in the kubelet's log why it does not unmount it; with cleanup.detach_orphans: true"
        " dead mounts of such pods are taken away after a grace.",
        "It is never replaced.",
    ),
    Verdict.HELD: Advice(
        "No process serves it at the moment, and the connection is kept for the next one.",
        "Make sure that the FUSE server is started again.",
        "It is left alone for held.grace_seconds; after that it is hung like any other.",
    ),
    Verdict.UNKNOWN: Advice(
        "It could not be found out whether it works.",
        "See the evidence: it says what could not be asked.",
        "It is asked again, and left alone until there is an answer.",
    ),
}


REFUSED = Advice(
    "Its server lives and answers with an error of its own, as its backend may have done: that is"
    " not a server that is gone.",
    "Look at the FUSE server's log and at the storage behind it.",
    "It is asked again; it is replaced when its server ends, or when a new one is mounted at its"
    " source and serves.",
)
"""Of an unknown state: what is known is who said it."""

FAILING_ROOT = Advice(
    "Its server answers, but not for the root of the volume: pods get this error or wait as well.",
    "Look at the FUSE server's log and at the storage behind it.",
    "It is watched; a server that lives is never replaced because of what it answers.",
)
"""Of a healthy one: it lives, and more is not meant by that."""

DEAD_LAYERS = (
    "{layers} below it: somebody mounts there again and again ('findmnt', the log of the driver)."
    " They cannot be taken away while what covers them works, and go when that is dead."
)

DETACHES = Advice(
    "The mount of the old FUSE server is still at its source and dead, for longer than a restart"
    " takes. It is detached (dead_sources.detach) once it is proven that nobody serves it.",
    "'fusewatchd status' says what prevents that ('Source mount is dead'), or 'umount -l' of the"
    " source's path.",
    "It is replaced within milliseconds once a new file system is mounted at the source.",
)

UNREACHED = Advice(
    "Its server could not be asked: every path to it leads to another mount, or over a file system"
    " that is dead or hangs.",
    "See what is mounted at the directories above it ('findmnt -T'), and take away what should not"
    " be there.",
    "It is asked again, with pauses, and as soon as the mount table changes.",
)

NOT_RUNNING = Advice(
    "Nothing holds it back, but no fusewatchd is running.",
    "Start it: 'systemctl start fusewatchd'.",
    "A running fusewatchd would replace it now.",
)

UNCLAIMED = Advice(
    "It shows nothing that a volume of its pod on the host shows, or was seen to show: it is a"
    " hostPath, a copy of other mounts of the node, something that its pod mounts or serves itself,"
    " or it receives the host's mounts anyway.",
    "If it is a volume that should be repaired: it has to be seen once while it works.",
    "It is left alone.",
)
