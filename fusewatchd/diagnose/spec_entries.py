"""What the spec of a pod puts at a path of one of its containers; pure."""

from __future__ import annotations

from fusewatchd.model.mounts import MountNamespace
from fusewatchd.model.pods import Pod, VolumeMount


def entries_at(pod: Pod, namespace: MountNamespace, mount_point: str) -> tuple[VolumeMount, ...]:
    """Return what a container has at a path; what all have, where its name is not known."""
    return tuple(
        entry
        for entry in pod.volume_mounts
        if entry.mount_path.rstrip("/") == mount_point
        and namespace.container_name in ("", entry.container)
    )
