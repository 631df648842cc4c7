"""The pod list that a kubelet answers at ``/pods``: a v1 ``PodList`` (core/v1 API); pure.

Only what recovery and reports need is taken.  A pod that cannot be read is left out with a
complaint, and the others stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fusewatchd.errors import ParseError
from fusewatchd.model.pods import Pod, Volume, VolumeMount
from fusewatchd.text import printable

MAX_PODS = 5000
MAX_ENTRIES = 1000
"""Volumes of a pod, containers of a pod, mounts of a container."""
MAX_TEXT = 4096
MAX_COMPLAINTS = 20
SHORT_NAME = 64
"""Of a pod in a complaint, so that there is room for what is wrong with it."""
ANNOTATION_PREFIX = "fusewatchd.io/"

MIRROR = "kubernetes.io/config.mirror"
HASH = "kubernetes.io/config.hash"
SOURCE = "kubernetes.io/config.source"
CONTAINERS = ("initContainers", "containers", "ephemeralContainers")
STATUSES = ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses")

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PodList:
    """The pods of a node."""

    pods: tuple[Pod, ...]
    complaints: tuple[str, ...]
    """One line for each pod that could not be used."""


def parse_pod_list(document: object) -> PodList:
    """Return the pods of a ``/pods`` document.

    Raises:
        ParseError: it is no v1 PodList at all.
    """
    if not isinstance(document, Mapping) or document.get("kind") != "PodList":
        raise ParseError("not a PodList")
    items = document.get("items")
    if items is not None and not isinstance(items, list):
        raise ParseError("items of the PodList: expected a list")
    pods: list[Pod] = []
    complaints: list[str] = []
    for number, item in enumerate((items or ())[:MAX_PODS]):
        try:
            pods.append(_pod(item))
        except ParseError as exc:
            complaints.append(f"{_name_of(item, number)}: {exc}")
    if items and len(items) > MAX_PODS:
        complaints.append(f"{len(items) - MAX_PODS} pods more than {MAX_PODS}")
    return PodList(tuple(pods), tuple(complaints[:MAX_COMPLAINTS]))


def _name_of(item: object, number: int) -> str:
    metadata = item.get("metadata") if isinstance(item, Mapping) else None
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    return f"pod {printable(name, SHORT_NAME)}" if isinstance(name, str) else f"pod number {number}"


def _pod(item: object) -> Pod:
    pod = _object(item, "pod")
    metadata = _object(pod.get("metadata"), "metadata")
    spec = _object(pod.get("spec"), "spec")
    annotations = _object(metadata.get("annotations") or {}, "metadata.annotations")
    uid = _text(metadata, "uid", "metadata")
    status = _object(pod.get("status") or {}, "status")
    static_uid = _static_uid(annotations)
    directory = static_uid or uid
    if "/" in directory or "\0" in directory or directory in (".", ".."):
        # It is looked for below the kubelet's directory, and nowhere else.
        raise ParseError("metadata.uid: expected the name of a directory")
    return Pod(
        # A static pod is known by the hash of its file everywhere but in the API server, and
        # Events about it carry that too: so `kubectl describe pod` looks them up.
        uid=directory,
        directory_uid=directory,
        namespace=_text(metadata, "namespace", "metadata"),
        name=_text(metadata, "name", "metadata"),
        phase=_optional(status, "phase", "status"),
        is_deleting=metadata.get("deletionTimestamp") is not None,
        volumes=tuple(_volume(entry) for entry in _list(spec, "volumes", "spec")),
        volume_mounts=tuple(_volume_mounts(spec)),
        annotations={
            key: value[:MAX_TEXT]
            for key, value in annotations.items()
            if isinstance(key, str) and key.startswith(ANNOTATION_PREFIX) and isinstance(value, str)
        },
        is_static=bool(static_uid),
        containers=dict(_started(status)),
    )


def _static_uid(annotations: Object) -> str:
    """Return the name on disk of a pod that comes from a file: the hash of its configuration."""
    if annotations.get(SOURCE, "api") == "api" and MIRROR not in annotations:
        return ""
    found = annotations.get(MIRROR) or annotations.get(HASH)
    return found if isinstance(found, str) and len(found) <= MAX_TEXT else ""


def _started(status: Object) -> Iterable[tuple[str, str]]:
    """Yield id and name of each container that runs, or ran last: ``<runtime>://<id>``."""
    for kind in STATUSES:
        for entry in _list(status, kind, "status"):
            container = _object(entry, kind)
            container_id = _optional(container, "containerID", kind).rpartition("://")[2]
            if container_id:
                yield container_id, _text(container, "name", kind)


def _volume_mounts(spec: Object) -> Iterable[VolumeMount]:
    for kind in CONTAINERS:
        for entry in _list(spec, kind, "spec"):
            container = _object(entry, kind)
            name = _text(container, "name", kind)
            for mount in _list(container, "volumeMounts", kind):
                yield _volume_mount(name, mount)


def _volume_mount(container: str, entry: object) -> VolumeMount:
    where = "volumeMounts"
    mount = _object(entry, where)
    return VolumeMount(
        container=container,
        volume=_text(mount, "name", where),
        mount_path=_text(mount, "mountPath", where),
        read_only=mount.get("readOnly") is True,
        propagation=_optional(mount, "mountPropagation", where) or "None",
        sub_path=_optional(mount, "subPath", where) or _optional(mount, "subPathExpr", where),
    )


def _volume(entry: object) -> Volume:
    volume = _object(entry, "volumes")
    name = _text(volume, "name", "volumes")
    for kind, details in volume.items():
        if kind == "name" or not isinstance(details, Mapping):
            continue
        return Volume(
            name=name,
            kind=kind[:MAX_TEXT],
            driver=_optional(details, "driver", kind),
            claim=_optional(details, "claimName", kind),
            path=_optional(details, "path", kind),
        )
    return Volume(name, "")


def _object(value: object, what: str) -> Object:
    if not isinstance(value, Mapping):
        raise ParseError(f"{what}: expected an object")
    return value


def _list(parent: Object, name: str, where: str) -> list[Any]:
    value = parent.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MAX_ENTRIES:
        raise ParseError(f"{where}.{name}: expected a list of at most {MAX_ENTRIES}")
    return value


def _text(parent: Object, name: str, where: str) -> str:
    value = _optional(parent, name, where)
    if not value:
        raise ParseError(f"{where}.{name}: expected text")
    return value


def _optional(parent: Object, name: str, where: str) -> str:
    value = parent.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ParseError(f"{where}.{name}: expected text of at most {MAX_TEXT} characters")
    return value
