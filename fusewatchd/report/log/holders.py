"""What the log says of processes that still hold files of dead mounts: once, and when over."""

from __future__ import annotations

from fusewatchd.log import Log, Value
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.findings import DeadRoot
from fusewatchd.model.mounts import Device
from fusewatchd.model.servers import Holder, Holding
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.report.log.fields import MAX_VALUES, one_or_more
from fusewatchd.text import SHORT_ID, counted

MAX_NAMED = 3


class HolderLog:
    """A part of the log's reporter."""

    def __init__(self, log: Log) -> None:
        """Tell everything to ``log``."""
        self._log = log
        self._told: dict[Device, Holding] = {}
        self._roots: frozenset[DeadRoot] = frozenset()

    def _tell_roots(self, cycle: CycleReport) -> None:
        for root in cycle.dead_roots:
            if root not in self._roots:
                self._log.warning(
                    "the image of a container has a dead layer: its pod needs a restart",
                    event="dead_root",
                    pod_uid=root.pod_uid,
                    container=root.container_id,
                    layer=root.layer,
                )
        self._roots = frozenset(cycle.dead_roots)

    def report(self, cycle: CycleReport) -> None:
        """Say which dead mounts have holders now, and which have none any more."""
        now = {holding.device: holding for holding in cycle.snapshot.holdings}
        for device, holding in now.items():
            if device not in self._told:
                self._tell(holding, cycle.snapshot)
        for device in sorted(self._told.keys() - now.keys()):
            before = self._told[device]
            self._log.info(
                "no process holds files of the dead mount any more",
                event="holders_gone",
                device=str(device),
                driver=before.driver or None,
                source=before.source_path or None,
            )
        self._told = now
        self._tell_roots(cycle)

    def _tell(self, holding: Holding, snapshot: Snapshot) -> None:
        holders = holding.holders[:MAX_NAMED]
        named = ", ".join(holder_text(holder, snapshot) for holder in holders)
        verb = "holds" if holding.count == 1 else "hold"
        self._log.warning(
            f"{counted(holding.count, 'process', 'processes')} still {verb} files of the dead"
            f" mount: {named}{', …' if holding.count > len(holders) else ''}",
            event="holders",
            device=str(holding.device),
            driver=holding.driver or None,
            source=holding.source_path or None,
            **_whose(holding, snapshot),
            processes=holding.count,
            unseen=holding.unseen or None,
        )


def _whose(holding: Holding, snapshot: Snapshot) -> dict[str, Value]:
    uids = dict.fromkeys(h.pod_uid for h in holding.holders if h.pod_uid)
    pods = [pod for uid in uids if (pod := (snapshot.pods or {}).get(uid)) is not None]
    return {
        "namespace": one_or_more(dict.fromkeys(pod.namespace for pod in pods)),
        "pod": one_or_more(dict.fromkeys(pod.name for pod in pods[:MAX_VALUES])),
        "pod_uid": one_or_more(list(uids)[:MAX_VALUES]),
    }


def holder_text(holder: Holder, snapshot: Snapshot) -> str:
    """Return ``pod shop/web, container 0123456789ab, pid 1234 python3``."""
    pod = (snapshot.pods or {}).get(holder.pod_uid)
    parts = []
    if holder.pod_uid:
        parts.append(f"pod {pod.namespace}/{pod.name}" if pod else f"pod {holder.pod_uid}")
    if holder.container_id:
        parts.append(f"container {holder.container_id[:SHORT_ID]}")
    if holder.unit:
        parts.append(f"unit {holder.unit}")
    return ", ".join([*parts, f"pid {holder.pid} {holder.name}"])
