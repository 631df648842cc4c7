"""Whose container a mount namespace is, after the kubelet's list has had its say; pure.

The cgroup proves that root's own tools made the container.  The list tells its pod and its name.
It also denies: a list that is newer than the container and lacks it makes it nobody's.  Without
such a list the cgroup has to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from fusewatchd.model.mounts import MountNamespace, NamespaceKind
from fusewatchd.model.pods import Pod

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
    namespaces: Iterable[MountNamespace], listed: ListedPods, seen: Seen
) -> tuple[MountNamespace, ...]:
    """Return the namespaces with the pod, the name and the kind that the list gives them."""
    by_id = {
        container_id: (uid, name)
        for uid, pod in (listed.pods or {}).items()
        for container_id, name in pod.containers.items()
    }
    return tuple(_settled(namespace, by_id, listed, seen) for namespace in namespaces)


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
