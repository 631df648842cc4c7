"""All that is ever said in Kubernetes Events; when it is said: ``episodes``."""

from __future__ import annotations

from enum import Enum

from fusewatchd.model.pods import Pod
from fusewatchd.model.verdicts import Reason
from fusewatchd.report.events.draft import EventDraft, node_reference, pod_reference

_CROWD_NOTE = (
    "Too many pods of this node are affected to post an Event on each. This Event counts the"
    " others; 'fusewatchd status' on the node lists them. On each:"
)


class EventKind(Enum):
    """All that is ever said about a pod; value: reason, action, type, note."""

    STALE = (
        "FuseMountStale",
        "WatchFuseMount",
        "Warning",
        "The server of a FUSE volume in this pod is gone: files there answer 'Transport"
        " endpoint is not connected' until a new server is mounted.",
    )
    HUNG = (
        "FuseMountHung",
        "WatchFuseMount",
        "Warning",
        "The server of a FUSE volume in this pod does not answer: programs that open a file there"
        " wait. fusewatchd leaves the volume alone while its server is alive.",
    )
    ABORTING = (
        "FuseMountAborting",
        "AbortFuseConnection",
        "Warning",
        "The server of a FUSE volume in this pod hangs. Unless it answers within a second,"
        " fusewatchd aborts its connection, and programs that wait for it get an error.",
    )
    ABORTED = (
        "FuseMountAborted",
        "AbortFuseConnection",
        "Warning",
        "The hung connection of a FUSE volume in this pod was aborted. Files there answer"
        " 'Transport endpoint is not connected' until a new server is mounted.",
    )
    RECOVERED = (
        "FuseMountRecovered",
        "ReplaceFuseMount",
        "Normal",
        "A FUSE volume of this pod works again. The pod was not restarted. Programs have to reopen"
        " files that were open while the server was gone.",
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
        "fusewatchd could not mount the new server of a FUSE volume in this pod, and tries again."
        " 'fusewatchd status' on the node says why.",
    )
    UNRECOVERABLE = (
        "FuseMountUnrecoverable",
        "ReplaceFuseMount",
        "Warning",
        "fusewatchd cannot repair a FUSE volume of this pod while the pod runs. Restart the pod."
        " 'fusewatchd status' on the node says why.",
    )
    ON_DISK = (
        "FuseVolumeOnNodeDisk",
        "WatchFuseMount",
        "Warning",
        "A container of this pod was started while its FUSE volume was not mounted. It reads and"
        " writes the node's disk, and what it writes is not in the volume. Save that, then restart"
        " the container or the pod. 'fusewatchd explain' on the node names the directory.",
    )
    COVERED = (
        "FuseVolumeMounted",
        "ReplaceFuseMount",
        "Warning",
        "A FUSE volume of this pod was mounted over the directory of the node that a container had"
        " instead. What was written there stays on the node and is not in the volume. 'fusewatchd"
        " explain' on the node names the directory.",
    )
    HIDDEN = (
        "FuseVolumeHidesFiles",
        "WatchFuseMount",
        "Warning",
        "Files were written to the node's disk while a FUSE volume of this pod was not mounted."
        " They are not in the volume, and are left where they are. 'fusewatchd explain' on the node"
        " names the directory.",
    )
    NEEDS_RESTART = (
        "FuseMountNeedsRestart",
        "ReplaceFuseMount",
        "Warning",
        "A new FUSE server cannot help this pod. A process holds the root of a dead mount,"
        " as gVisor's gofer does, or a layer of its image is dead. Restart the pod. 'fusewatchd"
        " status' on the node says which.",
    )
    LIMITED = (
        "FuseMountQuotaMet",
        "WatchFuseMount",
        "Warning",
        "This pod has more mounts, mount namespaces or open files than its quota. fusewatchd does"
        " not recover what is above the quota. 'fusewatchd status' on the node says what.",
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
