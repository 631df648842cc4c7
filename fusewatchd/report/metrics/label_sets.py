"""What can become of an action, as far as it is known: series of these begin at 0."""

from __future__ import annotations

from fusewatchd.model.actions import OutcomeStatus
from fusewatchd.model.verdicts import Reason
from fusewatchd.report.reporter import WAITING

_DONE = (OutcomeStatus.RECOVERED, OutcomeStatus.DETACHED)
_NEVER_REFUSED = WAITING | {
    Reason.NONE,
    Reason.SYSTEM_CALL,
    Reason.NAMESPACE_LIMIT,
    Reason.NOT_VERIFIED,
    Reason.RACED,
    Reason.TIMED_OUT,
    Reason.ALREADY_LIVE,
    Reason.NAMESPACE_GONE,
    Reason.ANSWERING,
    Reason.NO_FUSECTL,
    Reason.SERVER_ALIVE,
    Reason.ARGUMENT,
}
RESULTS: tuple[tuple[OutcomeStatus, Reason], ...] = (
    *((status, Reason.NONE) for status in _DONE),
    *(
        (OutcomeStatus.FAILED, reason)
        for reason in (
            Reason.SYSTEM_CALL,
            Reason.NAMESPACE_LIMIT,
            Reason.NOT_VERIFIED,
            Reason.RACED,
            Reason.VANISHED,
            Reason.TIMED_OUT,
        )
    ),
    *(
        (OutcomeStatus.SKIPPED, reason)
        for reason in (
            Reason.VANISHED,
            Reason.RACED,
            Reason.ALREADY_LIVE,
            Reason.NAMESPACE_GONE,
            Reason.SOURCE_CHANGED,
            Reason.HOST_BIND_STALE,
        )
    ),
    *((OutcomeStatus.REFUSED, reason) for reason in Reason if reason not in _NEVER_REFUSED),
)
"""What the executor and the planner are known to answer; others appear when they happen."""

OTHER_GAP = "other"
GAPS = (
    "kubelet",
    "fusectl",
    "front",
    "kubelet_root",
    "kubelet_namespace",
    "other_pods",
    "containers",
    "namespaces",
    "probes",
    OTHER_GAP,
)
"""What of a node may not be seen; the first three cost names or detail only."""

SOURCE_ENDINGS = (
    OutcomeStatus.DETACHED,
    OutcomeStatus.SKIPPED,
    OutcomeStatus.REFUSED,
    OutcomeStatus.FAILED,
)
"""What the executor answers about a dead source."""

ABORT_RESULTS: tuple[tuple[OutcomeStatus, Reason], ...] = (
    (OutcomeStatus.ABORTED, Reason.NONE),
    *(
        (OutcomeStatus.SKIPPED, reason)
        for reason in (Reason.ANSWERING, Reason.VANISHED, Reason.RACED, Reason.NAMESPACE_GONE)
    ),
    *(
        (OutcomeStatus.FAILED, reason)
        for reason in (Reason.NOT_VERIFIED, Reason.TIMED_OUT, Reason.SYSTEM_CALL)
    ),
    *(
        (OutcomeStatus.REFUSED, reason)
        for reason in (
            Reason.NO_FUSECTL,
            Reason.REPORT_ONLY,
            Reason.PAUSED,
            Reason.POD_ENDING,
            Reason.DISABLED,
        )
    ),
)
