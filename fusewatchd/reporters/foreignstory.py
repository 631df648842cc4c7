"""What the log says of stale mounts that are left alone: elsewhere, or of nobody's knowledge."""

from __future__ import annotations

from fusewatchd.cycle import CycleReport
from fusewatchd.decision import Unproven
from fusewatchd.reporters.base import counted
from fusewatchd.reporters.log import Log


class ForeignStory:
    """A part of the log's reporter."""

    def __init__(self, log: Log) -> None:
        """Tell everything to ``log``."""
        self._log = log
        self._stale = 0
        self._told: frozenset[Unproven] = frozenset()

    def report(self, cycle: CycleReport) -> None:
        """Say what this cycle found outside what is repaired."""
        self._tell_count(cycle.foreign_stale)
        self._tell_unproven(cycle.unproven)

    def _tell_count(self, count: int) -> None:
        """Only the first and the last one: services come and go."""
        if count and not self._stale:
            self._log.info(
                f"{counted(count, 'stale mount')} in namespaces that are never entered",
                event="foreign_stale",
                mounts=count,
            )
        elif self._stale and not count:
            self._log.info("no stale mounts in other namespaces any more", event="foreign_clear")
        self._stale = count

    def _tell_unproven(self, unproven: tuple[Unproven, ...]) -> None:
        """Each one once: it stays as it is until its container is restarted."""
        news = [found for found in unproven if found not in self._told]
        self._told = frozenset(unproven)
        if not news:
            return
        first = news[0]
        mounts = counted(len(news), "stale mount")
        self._log.warning(
            f"{mounts} in containers left alone: nothing tells of which bind",
            event="unproven_stale",
            pod_uid=first.pod_uid,
            namespace=first.key.namespace,
            mount_point=first.key.mount_point,
            device=str(first.device),
            mounts=len(news),
        )
