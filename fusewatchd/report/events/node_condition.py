"""The node condition ``FuseMountsUnavailable``: what schedulers and people see of this node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.findings import Finding
from fusewatchd.model.mounts import TargetKey
from fusewatchd.model.verdicts import Verdict
from fusewatchd.report.reporter import is_disconnected
from fusewatchd.text import counted

TYPE = "FuseMountsUnavailable"
AFTER_SECONDS = 10.0
"""What is repaired in a moment is no condition of the node."""


@dataclass(frozen=True, slots=True)
class NodeCondition:
    """What is said (core/v1 ``NodeCondition``, without its type and times)."""

    is_true: bool
    reason: str
    message: str


WELL = NodeCondition(False, "FuseMountsAvailable", "all FUSE mounts of pods answer")


class NodeConditionReporter:
    """Finds out in each cycle what to say of the node."""

    def __init__(self, tell: Callable[[NodeCondition], None]) -> None:
        """Give what is true now to ``tell`` after every cycle; it must return at once."""
        self._tell = tell
        self._since: dict[TargetKey, float] = {}

    def report(self, cycle: CycleReport) -> None:
        """Say how many binds have not answered for longer than a recovery takes."""
        unwell = {f.bind.key: f for f in cycle.findings if _is_unavailable(f, cycle)}
        self._since = {key: self._since.get(key, cycle.started_at) for key in unwell}
        lasting = [
            unwell[key]
            for key, since in self._since.items()
            if cycle.started_at - since >= AFTER_SECONDS
        ]
        self._tell(_condition(lasting))

    def close(self) -> None:
        """Whoever posts it takes the condition away."""


def _is_unavailable(finding: Finding, cycle: CycleReport) -> bool:
    if finding.verdict in (Verdict.HUNG, Verdict.BARE, Verdict.ON_DISK):
        return True
    return is_disconnected(finding, cycle.snapshot)


def _condition(findings: list[Finding]) -> NodeCondition:
    if not findings:
        return WELL
    pods = len({finding.bind.path.pod_uid for finding in findings})
    verb = "does" if len(findings) == 1 else "do"
    text = f"{counted(len(findings), 'FUSE mount')} in {counted(pods, 'pod')} {verb} not answer"
    return NodeCondition(True, "FuseMountsNotAnswering", text)
