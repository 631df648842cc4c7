"""How many mounts in the containers of one pod count as ours; pure.

A pod can bind its own volume as often as it likes, and each of these binds would be looked at in
each cycle.  What its spec names in a container's own namespace comes first, then what was known
before, then the oldest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fusewatchd.diagnose.spec_entries import entries_at
from fusewatchd.model import quota
from fusewatchd.model.findings import Bind
from fusewatchd.model.ledger import Ledger
from fusewatchd.model.quota import Collected, RefusedOwner, Resource
from fusewatchd.model.snapshot import Snapshot

Groups = Mapping[tuple[str, str], Sequence[Bind]]
"""Binds by pod uid and container id; no group is empty."""


def within_quota(
    groups: Groups, on_host: Mapping[str, Sequence[Bind]], snapshot: Snapshot, ledger: Ledger
) -> tuple[tuple[Bind, ...], tuple[RefusedOwner, ...]]:
    """Return the binds that count as ours, and the pods that have more of them.

    ``on_host`` are the binds of each pod on the host.  The kubelet makes those by the spec.
    """
    refused = Collected()
    of_pods: dict[str, list[Bind]] = {}
    for (uid, _), binds in groups.items():
        needed = max(_in_spec(binds[0], snapshot), len(on_host.get(uid, ())))
        limit = quota.binds_of_container(needed)
        of_pods.setdefault(uid, []).extend(_first(limit, binds, snapshot, ledger, refused))
    ours: list[Bind] = []
    for uid, binds in of_pods.items():
        pod = (snapshot.pods or {}).get(uid)
        in_spec = len(pod.volume_mounts) if pod is not None else 0
        limit = quota.binds_of_pod(max(in_spec, len(on_host.get(uid, ()))))
        ours += _first(limit, binds, snapshot, ledger, refused)
    return tuple(ours), refused.all()


def _in_spec(bind: Bind, snapshot: Snapshot) -> int:
    """Count the volumeMounts of a bind's container; of all, where its name is not known."""
    pod = (snapshot.pods or {}).get(bind.path.pod_uid)
    name = bind.namespace.container_name if bind.namespace is not None else ""
    if pod is None:
        return 0
    return sum(name in ("", entry.container) for entry in pod.volume_mounts)


def _first(
    limit: int, binds: Sequence[Bind], snapshot: Snapshot, ledger: Ledger, refused: Collected
) -> Iterable[Bind]:
    if len(binds) <= limit:
        return binds
    ranked = sorted(binds, key=lambda bind: _rank(bind, snapshot, ledger))
    owner = quota.pod(binds[0].path.pod_uid)
    example = f"at {ranked[limit].key.mount_point}"
    refused.add(RefusedOwner(owner, Resource.BINDS, limit, len(binds), example))
    return ranked[:limit]


def _rank(bind: Bind, snapshot: Snapshot, ledger: Ledger) -> tuple[bool, bool, bool, int]:
    namespace, mount = bind.namespace, bind.mount
    assert namespace is not None and mount is not None
    pod = (snapshot.pods or {}).get(bind.path.pod_uid)
    is_in_spec = pod is not None and bool(entries_at(pod, namespace, bind.key.mount_point))
    is_known = ledger.facts_of(namespace, bind.key.mount_point) is not None
    age = mount.unique_id or mount.mount_id
    return not namespace.is_own, not is_in_spec, not is_known, age
