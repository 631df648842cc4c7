"""Which volumes are broken now, by name: off unless configured, and never more than a few."""

from __future__ import annotations

from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.verdicts import ALARMING, Reason
from fusewatchd.report.metrics.exposition import Exposition
from fusewatchd.report.reporter import pod_of
from fusewatchd.text import printable

MAX_NAMED = 50
"""Series at a time: a storage outage breaks thousands of mounts at once."""
_LABEL_LENGTH = 253


class BrokenMountMetrics:
    """One series for each volume of a pod that the pod cannot use now."""

    def __init__(self, series: Exposition) -> None:
        """Make the family, which is empty while all is well."""
        self._info = series.counts(
            "fusewatchd_broken_mount_info",
            "1 for each broken volume of a pod, the first 50 (web.broken_mount_info).",
            "namespace",
            "pod",
            "volume",
            "reason",
        )

    def report(self, cycle: CycleReport) -> None:
        """Take what is broken after a cycle."""
        reasons = {r.finding.bind.key: cycle.reason_of(r) for r in cycle.plan.refused}
        found: dict[tuple[str, ...], float] = {}
        for finding in cycle.findings:
            if finding.verdict not in ALARMING:
                continue
            pod, path = pod_of(finding, cycle.snapshot), finding.bind.path
            namespace, name = (pod.namespace, pod.name) if pod is not None else ("", path.pod_uid)
            reason = reasons.get(finding.bind.key, Reason.NONE)
            names = (printable(x, _LABEL_LENGTH) for x in (namespace, name, path.volume))
            found[(*names, reason.value)] = 1
            if len(found) >= MAX_NAMED:
                break
        self._info.values = found
