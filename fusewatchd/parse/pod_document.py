"""Pods written down again as a kubelet lists them, for who does not trust their reader; pure.

What ``parse_pod_list`` takes from a list, and nothing else: it reads what is written here as it
read the list itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from fusewatchd.model.pods import Pod, Volume, VolumeMount
from fusewatchd.parse.pod_list import CONTAINERS, HASH, MAX_ENTRIES, SOURCE, STATUSES


def pod_list_of(pods: Iterable[Pod]) -> dict[str, Any]:
    """Return a v1 PodList of these pods."""
    return {"kind": "PodList", "items": [_item(pod) for pod in pods]}


def _item(pod: Pod) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "uid": pod.uid,
        "namespace": pod.namespace,
        "name": pod.name,
        "annotations": dict(pod.annotations),
    }
    if pod.is_static:
        metadata["annotations"] |= {SOURCE: "file", HASH: pod.directory_uid}
    if pod.is_deleting:
        metadata["deletionTimestamp"] = ""
    statuses = [{"name": n, "containerID": f"://{i}"} for i, n in pod.containers.items()]
    return {
        "metadata": metadata,
        "spec": {
            "volumes": [_volume(volume) for volume in pod.volumes],
            **_in_turn(CONTAINERS, _containers(pod.volume_mounts)),
        },
        "status": {"phase": pod.phase, **_in_turn(STATUSES, statuses)},
    }


def _in_turn(keys: Sequence[str], entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Divide entries among keys that are read one after the other."""
    size = MAX_ENTRIES
    return {key: entries[size * n : size * (n + 1)] for n, key in enumerate(keys)}


def _containers(mounts: Iterable[VolumeMount]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, group in groupby(mounts, key=lambda mount: mount.container):
        own = [_mount(mount) for mount in group]
        for begin in range(0, len(own), MAX_ENTRIES):
            found.append({"name": name, "volumeMounts": own[begin : begin + MAX_ENTRIES]})
    return found


def _mount(mount: VolumeMount) -> dict[str, Any]:
    return {
        "name": mount.volume,
        "mountPath": mount.mount_path,
        "readOnly": mount.read_only,
        "mountPropagation": mount.propagation,
        "subPath": mount.sub_path,
    }


def _volume(volume: Volume) -> dict[str, Any]:
    details = {"driver": volume.driver, "claimName": volume.claim, "path": volume.path}
    return {"name": volume.name, **({volume.kind: details} if volume.kind else {})}
