"""All that is ever said in Kubernetes Events; when it is said: ``episodes``."""

from __future__ import annotations

from enum import Enum

from fusewatchd.model.pods import Pod
from fusewatchd.model.verdicts import Reason
from fusewatchd.report.events.draft import EventDraft, node_reference, pod_reference

_CROWD_NOTE = (
    "More pods of this node are hit than get an Event each; the others are counted here, and"
    " 'fusewatchd status' on the node lists them. On each:"
)


class EventKind(Enum):
    """All that is ever said about a pod; value: reason, action, type, note."""

    STALE = (
        "FuseMountStale",
        "WatchFuseMount",
        "Warning",
        "The server of a FUSE volume in this pod is gone: files there answer 'Transport"
        " endpoint is not connected' until the volume is bound to a new server.",
    )
    HUNG = (
        "FuseMountHung",
        "WatchFuseMount",
        "Warning",
        "The server of a FUSE volume in this pod does not answer: whoever opens a file there"
        " waits. The volume is left alone while its server lives.",
    )
    ABORTING = (
        "FuseMountAborting",
        "AbortFuseConnection",
        "Warning",
        "The server of a FUSE volume in this pod stands still: unless it answers in the last"
        " second, its connection is aborted, and whoever waits for it gets an error.",
    )
    ABORTED = (
        "FuseMountAborted",
        "AbortFuseConnection",
        "Warning",
        "The hung connection of a FUSE volume in this pod was aborted: files there answer"
        " 'Transport endpoint is not connected' until the volume is bound to a new server.",
    )
    RECOVERED = (
        "FuseMountRecovered",
        "ReplaceFuseMount",
        "Normal",
        "A FUSE volume of this pod answers again. The pod was not restarted; files that were"
        " open while its server was gone have to be opened anew.",
    )
    NARROWER = (
        "FuseMountAllowsLess",
        "ReplaceFuseMount",
        "Warning",
        "The new file system of a FUSE volume of this pod denies what the old one allowed, writing"
        " for instance. 'fusewatchd status' on the node says what.",
    )
    WIDER = (
        "FuseMountAllowsMore",
        "ReplaceFuseMount",
        "Warning",
        "The new file system of a FUSE volume of this pod allows what the old one denied, writing"
        " for instance. 'fusewatchd status' on the node says what.",
    )
    FAILED = (
        "FuseMountRecoveryFailed",
        "ReplaceFuseMount",
        "Warning",
        "A FUSE volume of this pod could not be bound to its new server; it is tried again."
        " 'fusewatchd status' on the node says why.",
    )
    UNRECOVERABLE = (
        "FuseMountUnrecoverable",
        "ReplaceFuseMount",
        "Warning",
        "A FUSE volume of this pod cannot be bound to a new server while the pod runs;"
        " restarting the pod helps. 'fusewatchd status' on the node says why.",
    )
    ON_DISK = (
        "FuseVolumeOnNodeDisk",
        "WatchFuseMount",
        "Warning",
        "A container of this pod was started while its FUSE volume was not mounted: it reads and"
        " writes the node's disk, and what it writes is not in the volume. Save that, then restart"
        " the container or the pod. 'fusewatchd explain' on the node names the directory.",
    )
    LIMITED = (
        "FuseMountQuotaMet",
        "WatchFuseMount",
        "Warning",
        "This pod has more mounts, mount namespaces, open files or the like than fusewatchd looks"
        " at for one pod: what is above the quota is not recovered for now. 'fusewatchd status' on"
        " the node says what.",
    )

    def draft(self, pod: Pod) -> EventDraft:
        """Return the Event about this pod."""
        reason, action, type_, note = self.value
        return EventDraft(pod_reference(pod), reason, action, note, type_)

    def draft_for_node(self, name: str) -> EventDraft:
        """Return the Event that counts the pods which get none of their own."""
        reason, action, type_, note = self.value
        return EventDraft(node_reference(name), reason, action, f"{_CROWD_NOTE} {note}", type_)


NOT_FOR_GOOD = frozenset(
    {
        Reason.NONE,
        Reason.SOURCE_MISSING,
        Reason.SOURCE_UNPROVEN,
        Reason.LAYERS_UNPROVEN,
        Reason.SOURCE_CHANGED,
        Reason.SOURCE_DEAD,
        Reason.SERVER_ALIVE,
        Reason.AWAITS_ACTION,
        Reason.ARGUMENT,
        Reason.HOST_BIND_STALE,
        Reason.POD_ENDING,
        Reason.POD_UNKNOWN,
        Reason.ON_DISK,
        Reason.REPORT_ONLY,
        Reason.PAUSED,
        Reason.DISABLED,
        Reason.OWNER_UNKNOWN,
        Reason.GRACE,
        Reason.BACK_OFF,
        Reason.DEEP_STACK,
        Reason.TABLE_FULL,
        Reason.BUDGET,
        Reason.QUOTA,
        Reason.FORBIDDEN,
        Reason.SOURCE_FLAPPING,
        Reason.NAMESPACE_GONE,
        Reason.VANISHED,
        Reason.RACED,
        Reason.TIMED_OUT,
        Reason.NOT_VERIFIED,
        Reason.SYSTEM_CALL,
        Reason.NAMESPACE_LIMIT,
        Reason.ALREADY_LIVE,
        Reason.UNCONFIRMED,
        Reason.ANSWERING,
        Reason.NO_FUSECTL,
    }
)
"""Reasons that pass, or that are somebody's will; all others last as long as the pod."""
