"""What was replaced in other mount namespaces while somebody looked at them; pure.

A look takes time, and replacements end meanwhile: it may tell of a mount that is gone by now.
Believed, that mount would be diagnosed as stale and be replaced once more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fusewatchd.actions import Expect, Outcome, OutcomeStatus, ReplaceMount
from fusewatchd.model import Mount, MountNamespace


@dataclass(frozen=True, slots=True)
class _Replaced:
    expect: Expect
    mount: Mount
    """What stands there instead."""
    at: float


class ReplacedMounts:
    """The replacements that no look has confirmed yet, by the inode of their namespace."""

    def __init__(self) -> None:
        """Know of none."""
        self._replaced: dict[int, dict[int, _Replaced]] = {}

    def note(self, outcomes: Iterable[Outcome]) -> None:
        """Remember what ended well in other namespaces."""
        for outcome in outcomes:
            action, mount = outcome.action, outcome.mount
            if outcome.status is not OutcomeStatus.RECOVERED or mount is None:
                continue
            if isinstance(action, ReplaceMount) and action.namespace is not None:
                by_id = self._replaced.setdefault(action.namespace.inode, {})
                by_id[action.expect.mount_id] = _Replaced(action.expect, mount, outcome.finished_at)

    def forget_before(self, looked_at: float) -> None:
        """Forget what a look that began then has seen itself."""
        for inode, by_id in list(self._replaced.items()):
            kept = {number: known for number, known in by_id.items() if known.at >= looked_at}
            if kept:
                self._replaced[inode] = kept
            else:
                del self._replaced[inode]

    def applied_to(self, namespaces: Iterable[MountNamespace]) -> tuple[MountNamespace, ...]:
        """Return the namespaces as they are after the replacements that are remembered."""
        return tuple(
            replace(namespace, mounts=_after(namespace.mounts, self._replaced[namespace.inode]))
            if namespace.inode in self._replaced
            else namespace
            for namespace in namespaces
        )


def _after(mounts: tuple[Mount, ...], replaced: dict[int, _Replaced]) -> tuple[Mount, ...]:
    there = {mount.mount_id for mount in mounts}
    now: list[Mount] = []
    for mount in mounts:
        known = replaced.get(mount.mount_id)
        if known is None or not known.expect.is_about(mount):
            now.append(mount)
        elif known.mount.mount_id not in there:
            now.append(known.mount)
    return tuple(now)
