"""Kubernetes Events on what stands for a volume: its claim, and the Dataset where Fluid made it.

One for each volume, node and outage, however many pods use the volume there.  The claim is
known to the API server only, so a draft names the PersistentVolume; a volume without one (an
inline volume of a pod) has no such Events.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.findings import Finding
from fusewatchd.model.mounts import Device
from fusewatchd.model.verdicts import Reason
from fusewatchd.report.events.draft import EventDraft, VolumeObject, VolumeReference
from fusewatchd.report.events.episodes import Troubles
from fusewatchd.report.events.event_limit import MAX_PODS, EventLimit
from fusewatchd.report.events.pods import with_error
from fusewatchd.report.events.wording import EventKind
from fusewatchd.report.log.fields import device_of

FLUID_CSI_DRIVER = "fuse.csi.fluid.io"

ON_CLAIM = {
    EventKind.STALE: "the server of this volume is gone: pods there get 'Transport endpoint is"
    " not connected' until a new server is mounted.",
    EventKind.HUNG: "the server of this volume does not answer: programs that open a file there"
    " wait. fusewatchd leaves the volume alone while its server is alive.",
    EventKind.ABORTING: "the server of this volume hangs. Unless it answers within a second,"
    " fusewatchd aborts its connection, and programs that wait for it get an error.",
    EventKind.ABORTED: "the hung connection of this volume was aborted: pods there get 'Transport"
    " endpoint is not connected' until a new server is mounted.",
    EventKind.RECOVERED: "this volume works again in every pod that uses it. No pod was restarted."
    " Programs have to reopen files that were open while the server was gone.",
    EventKind.NARROWER: "the new file system of this volume denies a pod what the old one allowed,"
    " writing for instance. 'fusewatchd status' on the node says what.",
    EventKind.WIDER: "the new file system of this volume allows a pod what the old one denied,"
    " writing for instance. 'fusewatchd status' on the node says what.",
    EventKind.FAILED: "fusewatchd could not mount the new server of this volume in a pod, and tries"
    " again. 'fusewatchd status' on the node says why.",
    EventKind.UNRECOVERABLE: "fusewatchd cannot repair this volume in a pod while that pod runs."
    " Restart the pod. 'fusewatchd status' on the node says why.",
    EventKind.ON_DISK: "a container was started while this volume was not mounted. It reads and"
    " writes the node's disk, and what it writes is not in the volume. Save that, then restart the"
    " container or its pod. 'fusewatchd status' on the node names it.",
    EventKind.COVERED: "this volume was mounted over the directory of the node that a container had"
    " instead. What was written there stays on the node and is not in the volume.",
    EventKind.HIDDEN: "files were written to the node's disk while this volume was not mounted."
    " They are not in the volume, and are left where they are.",
    EventKind.NEEDS_RESTART: "a process of a pod holds the root directory of a dead mount of this"
    " volume. Restart that pod.",
    EventKind.LIMITED: "a pod that uses this volume has more mounts or mount namespaces than its"
    " quota. 'fusewatchd status' on the node says which.",
}
_ON_DATASET = {
    EventKind.RECOVERED: ("FuseRecoverSucceed", "the FUSE mounts of this dataset work again."),
    EventKind.FAILED: (
        "FuseRecoverFailed",
        "fusewatchd could not mount the new server of this dataset in a pod, and tries again.",
    ),
    EventKind.UNRECOVERABLE: (
        "FuseRecoverFailed",
        "fusewatchd cannot repair a FUSE mount of this dataset while its pod runs.",
    ),
}
"""Fluid's own reasons (fluid-cloudnative/fluid, pkg/common/constants.go), so that ``kubectl
describe dataset`` reads as its users know it."""

_BY_CLAIM = ("persistentVolumeClaim", "ephemeral")
"""Kinds of volumes of a pod (core/v1 ``Volume``) that have a claim."""


@dataclass(frozen=True, slots=True)
class _Volume:
    name: str
    is_fluid: bool


class VolumeEvents:
    """Drafts Events on volumes and hands them over."""

    def __init__(
        self,
        post: Callable[[EventDraft], None],
        node_name: str,
        most: Callable[[], int] = lambda: MAX_PODS,
    ) -> None:
        """Give every Event to ``post``, which must return at once.

        Args:
            post: takes an Event.
            node_name: what an Event on a volume says of where it happened.
            most: how many volumes of a storm get Events.
        """
        self._post = post
        self._node_name = node_name
        self._event_limit = EventLimit(most)
        self._troubles: Troubles[_Volume] = Troubles(_volume_of, self._announce)

    def report(self, cycle: CycleReport) -> None:
        """Draft what this cycle brought."""
        self._troubles.report(cycle)

    def close(self) -> None:
        """Nothing waits here."""

    def _announce(
        self, cycle: CycleReport, volume: _Volume, device: Device | None, kind: EventKind
    ) -> None:
        # Of a storm the node tells, where the pods are counted.
        if not self._event_limit.admits(volume.name, cycle.started_at):
            return
        reason, action, type_, _ = kind.value
        where = f"On node {self._node_name}:"
        claim = VolumeReference(volume.name, VolumeObject.CLAIM)
        draft = EventDraft(claim, reason, action, f"{where} {ON_CLAIM[kind]}", type_)
        if kind is EventKind.FAILED:
            draft = with_error(draft, [f for f in cycle.findings if device_of(f) == device])
        self._post(draft)
        if volume.is_fluid and kind in _ON_DATASET:
            reason, note = _ON_DATASET[kind]
            dataset = VolumeReference(volume.name, VolumeObject.DATASET)
            self._post(EventDraft(dataset, reason, action, f"{where} {note}", type_))


def _volume_of(cycle: CycleReport, finding: Finding) -> _Volume | None:
    """Return the PersistentVolume of a bind.

    The directory of an inline volume is named as the pod likes, which may be the name of
    somebody's PersistentVolume: only the pod can tell, so without it nobody is told.
    """
    path = finding.bind.path
    pod = (cycle.snapshot.pods or {}).get(path.pod_uid)
    if pod is None or pod.is_deleting or finding.refusal is Reason.OWNER_UNKNOWN:
        return None
    inline = {volume.name for volume in pod.volumes if volume.kind not in _BY_CLAIM}
    if path.volume in inline or len(inline) == len(pod.volumes):
        return None
    data = cycle.snapshot.volume_data.get((path.pod_uid, path.volume))
    driver = data.driver if data is not None else finding.bind.driver
    return _Volume(path.volume, driver == FLUID_CSI_DRIVER)
