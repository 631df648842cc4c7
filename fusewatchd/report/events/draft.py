"""What a Kubernetes Event says, and which object it is about."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fusewatchd.model.pods import Pod


@dataclass(frozen=True, slots=True)
class ObjectReference:
    """The Kubernetes object that an Event is about (core/v1 ``ObjectReference``)."""

    kind: str
    namespace: str
    name: str
    uid: str
    api_version: str = "v1"


def pod_reference(pod: Pod) -> ObjectReference:
    """Return what names a pod, with the uid that the API server knows."""
    return ObjectReference("Pod", pod.namespace, pod.name, pod.uid)


def node_reference(name: str) -> ObjectReference:
    """Return what names a node.

    The uid is what the kubelet writes into its Events on the node, and what ``kubectl describe
    node`` looks for.
    """
    return ObjectReference("Node", "", name, name)


class VolumeObject(Enum):
    """What stands for a PersistentVolume in a namespace."""

    CLAIM = "PersistentVolumeClaim"
    DATASET = "Dataset"
    """Fluid's (data.fluid.io), which has the name of its claim."""


@dataclass(frozen=True, slots=True)
class VolumeReference:
    """An object that only the API server can name: whoever posts the Event asks for it."""

    volume: str
    """Name of the PersistentVolume."""
    object: VolumeObject

    @property
    def name(self) -> str:
        """Return what is known of the name."""
        return self.volume

    @property
    def kind(self) -> str:
        """Return the kind of the object, not of the volume."""
        return self.object.value


Regarding = ObjectReference | VolumeReference


@dataclass(frozen=True, slots=True)
class EventDraft:
    """What an Event says; who says it and when is added by whoever posts it.

    For one object and reason everything here is constant, so that the API server counts a
    repetition in the series of the first Event instead of keeping a second one.
    """

    regarding: Regarding
    reason: str
    action: str
    note: str
    type: str
    """``Normal`` or ``Warning``."""
    related: ObjectReference | None = None
    """What else it is about: the pod of the server."""
