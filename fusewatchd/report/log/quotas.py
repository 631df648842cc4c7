"""What the log says of owners that want more than one may have: once, and when it is over."""

from __future__ import annotations

from fusewatchd.log import Log, Value
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.quota import Key, OwnerKind, RefusedOwner, Resource
from fusewatchd.model.snapshot import Snapshot

WORDS: dict[Resource, str] = {
    Resource.WALK: "seconds of the walk through /proc",
    Resource.TABLE: "mounts in its mount namespaces",
    Resource.NAMESPACES: "mount namespaces",
    Resource.DESCRIPTORS: "open files of one process",
    Resource.SERVERS: "processes that serve FUSE file systems",
    Resource.BINDS: "binds in its containers",
    Resource.QUESTIONS: "FUSE connections of its own",
    Resource.WORKERS: "workers that its paths hold",
    Resource.BUDGET: "replacements of mounts",
}


class QuotaLog:
    """A part of the log's reporter."""

    def __init__(self, log: Log) -> None:
        """Tell everything to ``log``."""
        self._log = log
        self._told: dict[Key, RefusedOwner] = {}

    def report(self, cycle: CycleReport) -> None:
        """Say who is refused something now, and who is not any more."""
        refused = cycle.ledger.refused_owners
        for key, refusal in refused.items():
            if key not in self._told:
                self._told[key] = refusal.owner
                self._log.warning(
                    f"over its quota: {WORDS[key[1]]}; what is above it waits, nobody else does",
                    event="quota_met",
                    **_whose(refusal.owner, cycle.snapshot),
                    limit=refusal.owner.limit,
                    wanted=refusal.owner.wanted or None,
                    example=refusal.owner.example or None,
                )
        for key in self._told.keys() - refused.keys():
            one = self._told.pop(key)
            self._log.info(
                f"within its quota again: {WORDS[key[1]]}",
                event="quota_over",
                **_whose(one, cycle.snapshot),
            )


def _whose(one: RefusedOwner, snapshot: Snapshot) -> dict[str, Value]:
    pod = (snapshot.pods or {}).get(one.owner.uid)
    return {
        "reason": "quota",
        "resource": one.resource.value,
        "owner": one.owner.kind.value,
        "namespace": pod.namespace if pod is not None else None,
        "pod": pod.name if pod is not None else None,
        "pod_uid": one.owner.uid if one.owner.kind is OwnerKind.POD else None,
    }
