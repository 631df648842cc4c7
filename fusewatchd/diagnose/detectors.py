"""One rule for each way a bind can be unwell; pure.

``DETECTORS`` is the order in which they are asked.  The first one with an opinion decides; a
bind about which none has one is healthy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fusewatchd.diagnose.proof import about_root
from fusewatchd.diagnose.sources import Resolution
from fusewatchd.errors import assert_never, error_name
from fusewatchd.model.findings import Bind
from fusewatchd.model.ledger import Ledger
from fusewatchd.model.servers import Answer, Connection
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason, Verdict


@dataclass(frozen=True, slots=True)
class Case:
    """One bind and everything that a rule may look at."""

    bind: Bind
    connection: Connection | None
    resolution: Resolution
    snapshot: Snapshot
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class Opinion:
    """A verdict and the words for it."""

    verdict: Verdict
    evidence: str
    refusal: Reason = Reason.NONE
    """Set where this state must never be acted on."""


Detector = Callable[[Case], Opinion | None]
"""Purely computational; None: this rule has nothing to say about the bind."""


def detect_bare(case: Case) -> Opinion | None:
    """Find a volume that was FUSE and is a plain directory of the node now.

    Never repaired: whoever unmounted it may be tearing the pod down.
    """
    if case.bind.mount is not None or case.bind.underneath is not None:
        return None
    return Opinion(Verdict.BARE, "unmounted while its pod goes on", Reason.VANISHED)


def detect_on_disk(case: Case) -> Opinion | None:
    """Find a container that has the node's directory where its volume is mounted, or was.

    It was started while the volume was not mounted, and what it writes is in no volume.
    """
    found = case.bind.underneath
    if found is None:
        return None
    shown = f"{found.mount.root} of {found.mount.fs_type} {found.mount.device}"
    return Opinion(Verdict.ON_DISK, f"its mount shows the node's directory {shown}")


def detect_orphaned(case: Case) -> Opinion | None:
    """Find a bind whose pod the kubelet does not know, by a list newer than the bind."""
    snapshot = case.snapshot
    if snapshot.pods is None or not snapshot.pods_are_current:
        return None
    if case.bind.path.pod_uid in snapshot.pods:
        return None
    return Opinion(Verdict.ORPHANED, "the kubelet has no such pod", Reason.POD_UNKNOWN)


def detect_held(case: Case) -> Opinion | None:
    """Find one that is kept for the successor of its server: neither dead nor hung."""
    connection = case.connection
    if connection is None or connection.held_since is None or connection.obstacle is not None:
        return None
    # Before Linux 6.16, and by a socket alone, it is only known that somebody's has ended.
    whose = "its server ended" if connection.server_gone_at is not None else "a server ended"
    return Opinion(Verdict.HELD, f"{whose}, and something keeps the connection")


def detect_unanswered(case: Case) -> Opinion | None:
    """Tell slow from hung; neither is ever taken for dead."""
    connection = case.connection
    if connection is not None and connection.is_unasked:
        return Opinion(Verdict.UNKNOWN, "not asked: hung file systems hold every probe")
    if connection is not None and connection.obstacle is not None:
        return Opinion(Verdict.UNKNOWN, f"not asked: {connection.obstacle.describe()}")
    if connection is None or not (connection.is_overdue or connection.is_hung):
        return None
    if connection.is_hung:
        waiting = connection.waiting
        if waiting is None:
            return Opinion(Verdict.UNKNOWN, "no answer, and fusectl cannot be read")
        requests = "1 request" if waiting == 1 else f"{waiting} requests"
        times = connection.confirmations
        more = f", confirmed {times} time{'s' if times > 1 else ''}" if times else ""
        return Opinion(Verdict.HUNG, f"no answer, {requests} waiting{more}")
    return Opinion(Verdict.SLOW, "the last probe passed its deadline")


def detect_connection_state(case: Case) -> Opinion | None:
    """Judge by the last ``statfs`` that was answered."""
    connection = case.connection
    if connection is None or connection.answer is None:
        return Opinion(Verdict.UNKNOWN, "not asked yet")
    if connection.is_outdated:
        why = "its server ended after its last answer, and it could not be asked since"
        return Opinion(Verdict.UNKNOWN, why)
    match connection.answer:
        case Answer.ANSWERED:
            return None
        case Answer.DISCONNECTED:
            return Opinion(Verdict.STALE, "Transport endpoint is not connected")
        case Answer.REFUSED:
            return _refused(case, connection)
        case Answer.PENDING:
            return Opinion(Verdict.UNKNOWN, "not answered yet")
        case Answer.NOT_ALLOWED:
            return Opinion(Verdict.UNKNOWN, "the kernel does not let us ask this mount")
        case Answer.ERROR:
            name = error_name(connection.errno)
            return Opinion(Verdict.UNKNOWN, f"statfs failed with {name}")
        case _:
            assert_never(connection.answer)


def _refused(case: Case, connection: Connection) -> Opinion:
    """Judge a server that says ENOTCONN itself: it is not gone, and a new one may be there."""
    words = f"answers {error_name(connection.errno)}, its server lives"
    newer = detect_superseded(case)
    if newer is None:
        return Opinion(Verdict.UNKNOWN, words)
    return Opinion(Verdict.SUPERSEDED, f"{words}; {newer.evidence}")


def detect_failing_root(case: Case) -> Opinion | None:
    """Tell of a server that lives and does not serve its root; nothing is done about it."""
    words = about_root(case.connection.root) if case.connection is not None else ""
    return Opinion(Verdict.HEALTHY, words) if words else None


def detect_superseded(case: Case) -> Opinion | None:
    """Find a bind that works but shows a file system that its source left behind."""
    source = case.resolution.mount
    if source is None or case.bind.mount is None or source.device == case.bind.mount.device:
        return None
    return Opinion(
        Verdict.SUPERSEDED,
        f"the source is device {source.device} now and the old server still answers",
    )


def detect_writable_layer(case: Case) -> Opinion | None:
    """Find a read-only container mount that somebody covered with a writable layer."""
    bind = case.bind
    if bind.mount is None or bind.namespace is None or bind.mount.is_read_only:
        return None
    known = case.ledger.facts_of(bind.namespace, bind.key.mount_point)
    if known is None or not known.is_read_only:
        return None
    refusal = Reason.NONE if case.resolution.mount else Reason.HOST_BIND_STALE
    return Opinion(Verdict.STALE, "a writable layer covers a read-only mount", refusal)


DETECTORS: tuple[Detector, ...] = (
    detect_on_disk,
    detect_bare,
    detect_orphaned,
    detect_held,
    detect_unanswered,
    detect_connection_state,
    detect_writable_layer,
    detect_superseded,
    detect_failing_root,
)
