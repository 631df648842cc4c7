"""Whose container a mount namespace is, after the kubelet's list has had its say; pure.

The cgroup proves that root's own tools made the container.  The list tells its pod and its name.
It also denies: a list that is newer than the container and lacks it makes it nobody's.  Without
such a list the cgroup has to do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from fusewatchd.model.mounts import Device, MountNamespace, NamespaceKind
from fusewatchd.model.pods import Pod
from fusewatchd.parse.kubelet_paths import is_in_a_pod

NOTED_SECONDS = 2.0
"""How long a kubelet may take to note a container that it has started: it looks each second."""
ASKED_FOR_SECONDS = 300.0
"""How long after it was first seen a list is asked for that has a container: the kubelet lists
none of a pod before all of them have been started, and may pull images meanwhile."""


@dataclass(frozen=True, slots=True)
class ListedPods:
    """The kubelet's list, as far as it is known."""

    pods: Mapping[str, Pod] | None = None
    whole_since: float = 0.0
    """When the list was asked for, if it has every pod; 0: it cannot deny anything."""


NO_LIST = ListedPods()

Seen = Mapping[str, float]
"""When each container was first seen, by its id."""


def still_seen(known: Seen, namespaces: Iterable[MountNamespace], now: float) -> dict[str, float]:
    """Return when the containers of a look were first seen."""
    ids = {namespace.container_id for namespace in namespaces}
    return {container_id: known.get(container_id, now) for container_id in ids if container_id}


def settle(
    namespaces: Iterable[MountNamespace],
    listed: ListedPods,
    seen: Seen,
    pods: Collection[str] = (),
) -> tuple[MountNamespace, ...]:
    """Return the namespaces with the pod, the name and the kind that the list gives them.

    ``pods`` are the names of directories of pods.
    """
    names = _by_cgroup({*pods, *(listed.pods or ())})
    by_id = {
        container_id: (uid, name)
        for uid, pod in (listed.pods or {}).items()
        for container_id, name in pod.containers.items()
    }
    return tuple(
        _settled(_with_pod(namespace, names), by_id, listed, seen) for namespace in namespaces
    )


def _by_cgroup(uids: Iterable[str]) -> Mapping[str, str]:
    """Return the uids by what systemd's cgroups have in their place, where that is of one only.

    kubernetes, pkg/kubelet/cm/cgroup_manager_linux.go, ``escapeSystemdCgroupName``.
    """
    found: dict[str, list[str]] = {}
    for uid in uids:
        found.setdefault(uid.replace("-", "_"), []).append(uid)
    return {name: same[0] for name, same in found.items() if len(same) == 1}


def _with_pod(namespace: MountNamespace, names: Mapping[str, str]) -> MountNamespace:
    uid = names.get(namespace.pod_uid, namespace.pod_uid) if "_" in namespace.pod_uid else ""
    return replace(namespace, pod_uid=uid) if uid not in ("", namespace.pod_uid) else namespace


def _settled(
    namespace: MountNamespace,
    by_id: Mapping[str, tuple[str, str]],
    listed: ListedPods,
    seen: Seen,
) -> MountNamespace:
    found = by_id.get(namespace.container_id) if namespace.container_id else None
    if found is not None and namespace.pod_uid in ("", found[0]):
        uid, name = found
        return replace(namespace, kind=NamespaceKind.CONTAINER, pod_uid=uid, container_name=name)
    if namespace.kind is NamespaceKind.FOREIGN:
        return namespace
    first_seen = seen.get(namespace.container_id, 0.0)
    if found is not None or listed.whole_since > first_seen + NOTED_SECONDS:
        # Its pod stays told: where a container may be, nothing is cleaned up.
        return replace(namespace, kind=NamespaceKind.FOREIGN)
    return namespace


def are_all_listed(
    namespaces: Iterable[MountNamespace], listed: ListedPods, seen: Seen, now: float
) -> bool:
    """Return False while a new list is worth asking for: it may have a container that is new."""
    known = {i for pod in (listed.pods or {}).values() for i in pod.containers}
    return all(
        not namespace.container_id
        or namespace.container_id in known
        or now > seen.get(namespace.container_id, now) + ASKED_FOR_SECONDS
        for namespace in namespaces
    )


def of_no_pod(
    namespaces: Iterable[MountNamespace],
    listed: ListedPods,
    seen: Seen,
    devices: Collection[Device],
) -> tuple[str, ...]:
    """Return the ids of containers that show what pods' binds show, and may be any pod's.

    Root's own tools made them, but not where a kubelet has its containers.  Only a list tells
    whose they are, or that they are no pod's.  One that has a copy of the kubelet's tree is an
    agent or a driver, and shows everybody's.

    Args:
        namespaces: settled.
        listed: the kubelet's list.
        seen: when each container was first seen.
        devices: of the pods' binds.
    """
    return tuple(
        sorted(
            namespace.container_id
            for namespace in namespaces
            if namespace.container_id
            and not namespace.pod_uid
            and listed.whole_since <= seen.get(namespace.container_id, 0.0) + NOTED_SECONDS
            and any(mount.is_fuse and mount.device in devices for mount in namespace.mounts)
            and not any(is_in_a_pod(mount.mount_point) for mount in namespace.mounts)
        )
    )
