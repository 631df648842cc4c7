"""What is believed of the other mount namespaces, while the daemon itself changes them; pure.

A look takes time, and replacements begin and end meanwhile.  It may tell of a mount that is gone
by now, or of a dead layer that was to be seen for a moment between two of ours: believed, either
would be an outage that nobody had, and be replaced once more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from fusewatchd.actions import Expect, Outcome, OutcomeStatus, ReplaceMount
from fusewatchd.model import Mount, MountNamespace


class NamespaceView:
    """The namespaces as they were seen last, with what was replaced in them since."""

    def __init__(self) -> None:
        """Know of none."""
        self.namespaces: tuple[MountNamespace, ...] = ()
        self._worked_at: dict[int, float] = {}
        """When work on a mount ended last, by the inode of its namespace."""

    def take_outcomes(self, outcomes: Iterable[Outcome]) -> None:
        """Take in what was replaced, and where else something was tried."""
        replaced: dict[int, dict[int, tuple[Expect, Mount]]] = {}
        for outcome in outcomes:
            action = outcome.action
            if not isinstance(action, ReplaceMount) or action.namespace is None:
                continue
            inode = action.namespace.inode
            self._worked_at[inode] = max(self._worked_at.get(inode, 0.0), outcome.finished_at)
            if outcome.status is OutcomeStatus.RECOVERED and outcome.mount is not None:
                by_id = replaced.setdefault(inode, {})
                by_id[action.expect.mount_id] = (action.expect, outcome.mount)
        if replaced:
            self.namespaces = tuple(
                replace(known, mounts=_with(known.mounts, replaced[known.inode]))
                if known.inode in replaced
                else known
                for known in self.namespaces
            )

    def take_look(
        self, seen: Iterable[MountNamespace], began_at: float, in_flight: Collection[int]
    ) -> bool:
        """Take in a look, but for namespaces in which something was replaced since it began.

        ``in_flight`` are the inodes of those in which that goes on.  Returns True when there were
        any: then another look is needed.
        """
        self._worked_at = {i: at for i, at in self._worked_at.items() if at >= began_at}
        torn = self._worked_at.keys() | in_flight
        known = {namespace.inode: namespace for namespace in self.namespaces}
        believed: list[MountNamespace] = []
        is_torn = False
        for namespace in seen:
            before = known.get(namespace.inode) if namespace.inode in torn else None
            is_torn = is_torn or before is not None
            believed.append(namespace if before is None else before)
        self.namespaces = tuple(believed)
        return is_torn


def _with(
    mounts: tuple[Mount, ...], replaced: dict[int, tuple[Expect, Mount]]
) -> tuple[Mount, ...]:
    now: list[Mount] = []
    for mount in mounts:
        known = replaced.get(mount.mount_id)
        now.append(known[1] if known is not None and known[0].is_met_by(mount) else mount)
    return tuple(now)
