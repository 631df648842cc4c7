"""What can become of an action, as far as it is known: series of these begin at 0."""

from __future__ import annotations

from fusewatchd.model.actions import OutcomeStatus
from fusewatchd.model.verdicts import Reason

_DONE = (OutcomeStatus.RECOVERED, OutcomeStatus.DETACHED)
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
)
"""What alerts look for.  A refusal, or an attempt that others made needless, has no zero."""

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
        (OutcomeStatus.FAILED, reason)
        for reason in (Reason.NOT_VERIFIED, Reason.TIMED_OUT, Reason.SYSTEM_CALL)
    ),
)
