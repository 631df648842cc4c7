"""Dead mounts in containers that nobody repairs, since nothing tells whose they are: the log."""

from __future__ import annotations

from fusewatchd.decision import CycleReport, Unclaimed
from fusewatchd.reporters.base import counted
from fusewatchd.reporters.log import Log


class UnclaimedStory:
    """Says once of each one that it is there."""

    def __init__(self, log: Log) -> None:
        """Tell everything to ``log``, which stays its owner's."""
        self._log = log
        self._told: frozenset[Unclaimed] = frozenset()

    def report(self, cycle: CycleReport) -> None:
        """Tell of those that are new, all in one line."""
        news = [unclaimed for unclaimed in cycle.unclaimed if unclaimed not in self._told]
        self._told = frozenset(cycle.unclaimed)
        if not news:
            return
        first = news[0]
        mounts = counted(len(news), "stale mount")
        self._log.warning(
            f"{mounts} in containers left alone: nothing tells of which bind",
            event="unclaimed_stale",
            pod_uid=first.pod_uid,
            namespace=first.key.namespace,
            mount_point=first.key.mount_point,
            device=str(first.device),
            mounts=len(news),
        )
