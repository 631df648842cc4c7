"""Who stands for a PersistentVolume in a namespace, as the API server tells."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from fusewatchd.kube.errors import AnswerError, ForbiddenError, NoOwnerError, NotFoundError
from fusewatchd.kube.events.objects import segment
from fusewatchd.kube.http import Client
from fusewatchd.report.events.draft import ObjectReference, VolumeObject, VolumeReference

MAX_KNOWN = 1024
KNOWN_SECONDS = 300.0
"""A claim that was deleted and made again has another uid."""
FORBIDDEN_SECONDS = 600.0
"""Who is not allowed to look does not ask all the time."""
_DATASETS = "data.fluid.io/v1alpha1"


class VolumeOwners:
    """Asks for claims and Datasets, and remembers the answers for a while."""

    def __init__(self, client: Client, clock: Callable[[], float]) -> None:
        """Ask through ``client``; ``clock`` is monotonic."""
        self._client = client
        self._clock = clock
        self._known: OrderedDict[VolumeReference, tuple[float, ObjectReference | None]] = (
            OrderedDict()
        )
        self._forbidden: dict[str, float] = {}
        self.requests = 0
        """How many were sent so far."""

    def find(self, reference: VolumeReference) -> ObjectReference:
        """Return the object that an Event on a volume is about.

        Raises:
            NoOwnerError: there is none, or it may not be looked at.
            KubeError: nobody can tell now.
        """
        until, owner = self._known.get(reference, (0.0, None))
        if self._clock() >= until:
            owner = self._ask(reference)
            self._known.pop(reference, None)
            self._known[reference] = (self._clock() + KNOWN_SECONDS, owner)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        if owner is None:
            raise NoOwnerError(f"no {reference.kind} of volume {reference.volume}")
        return owner

    def _ask(self, reference: VolumeReference) -> ObjectReference | None:
        path = f"/api/v1/persistentvolumes/{segment(reference.volume)}"
        volume = self._get("persistentvolumes", path)
        claim = _claim_of(volume) if volume is not None else None
        if claim is None or reference.object is VolumeObject.CLAIM:
            return claim
        # Fluid gives a Dataset, its claim and their namespace the same names (pkg/utils/
        # dataset/volume/create.go).
        path = f"namespaces/{segment(claim.namespace)}/datasets/{segment(claim.name)}"
        dataset = self._get("datasets.data.fluid.io", f"/apis/{_DATASETS}/{path}")
        if dataset is None:
            return None
        uid = _text(dataset, "metadata", "uid")
        return ObjectReference("Dataset", claim.namespace, claim.name, uid, _DATASETS)

    def _get(self, resource: str, path: str) -> object | None:
        now = self._clock()
        if now < self._forbidden.get(resource, 0.0):
            raise NoOwnerError(f"not allowed to get {resource}", resource)
        self.requests += 1
        try:
            found: object = self._client.request("GET", path)
        except NotFoundError:
            return None
        except ForbiddenError as exc:
            self._forbidden[resource] = now + FORBIDDEN_SECONDS
            raise NoOwnerError(f"not allowed to get {resource}", resource) from exc
        return found


def _claim_of(volume: object) -> ObjectReference | None:
    """Return the claim that a PersistentVolume is bound to (core/v1 ``spec.claimRef``)."""
    namespace, name, uid = (
        _text(volume, "spec", "claimRef", key) for key in ("namespace", "name", "uid")
    )
    if not namespace or not name:
        return None
    return ObjectReference("PersistentVolumeClaim", namespace, name, uid)


def _text(document: object, *keys: str) -> str:
    value: Any = document
    for key in keys:
        if not isinstance(value, dict):
            raise AnswerError(f"{'.'.join(keys)}: expected an object")
        value = value.get(key, {} if key != keys[-1] else "")
    if not isinstance(value, str):
        raise AnswerError(f"{'.'.join(keys)}: expected text")
    return value
