"""What is believed of the other mount namespaces, while the daemon itself changes them; pure.

A look takes time, and replacements begin and end meanwhile.  It may tell of a mount that is gone
by now, or of a dead layer that was to be seen for a moment between two of ours: believed, either
would be an outage that nobody had, and be replaced once more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from fusewatchd.model.actions import Outcome, OutcomeStatus, ReplaceMount
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Mount, MountNamespace
from fusewatchd.model.stacks import covered_by
from fusewatchd.observe.namespaces.container_owners import NO_LIST, ListedPods, settle, still_seen


class NamespaceView:
    """The namespaces as they were seen last, with what was replaced in them since."""

    def __init__(self) -> None:
        """Know of none."""
        self.namespaces: tuple[MountNamespace, ...] = ()
        self.seen: dict[str, float] = {}
        """When each container was seen first, by its id."""
        self._settled_of: tuple[object, ListedPods, Collection[str]] = ((), NO_LIST, ())
        self._settled: tuple[MountNamespace, ...] = ()
        self._worked_at: dict[int, float] = {}
        """When work on a mount ended last, by the inode of its namespace."""

    def settled(self, listed: ListedPods, pods: Collection[str] = ()) -> tuple[MountNamespace, ...]:
        """Return the namespaces with what the kubelet's list makes of them.

        ``pods`` are the names of directories of pods.
        """
        if self._settled_of[0] is not self.namespaces or self._settled_of[1:] != (listed, pods):
            self._settled = settle(self.namespaces, listed, self.seen, pods)
            self._settled_of = self.namespaces, listed, pods
        return self._settled

    def take_outcomes(self, outcomes: Iterable[Outcome]) -> None:
        """Take in what was replaced, and where else something was tried."""
        replaced: dict[int, list[Outcome]] = {}
        for outcome in outcomes:
            action = outcome.action
            if not isinstance(action, ReplaceMount) or action.namespace is None:
                continue
            inode = action.namespace.inode
            self._worked_at[inode] = max(self._worked_at.get(inode, 0.0), outcome.finished_at)
            if outcome.status is OutcomeStatus.RECOVERED or outcome.found is not None:
                replaced.setdefault(inode, []).append(outcome)
        if replaced:
            self.namespaces = tuple(
                replace(known, mounts=_with(known.mounts, replaced[known.inode]))
                if known.inode in replaced
                else known
                for known in self.namespaces
            )

    def take_look(
        self,
        seen: Iterable[MountNamespace],
        began_at: float,
        in_flight: Collection[int],
        now: float = 0.0,
        kept: Collection[int] = (),
    ) -> bool:
        """Take in a look, but for namespaces in which something was replaced since it began.

        ``in_flight`` are the inodes of those in which that goes on.  Returns True when there were
        any: then another look is needed.  Those that are ``kept`` stay as they are believed to be.
        """
        seen = tuple(seen)
        self.seen = still_seen(self.seen, seen, now)
        self._worked_at = {i: at for i, at in self._worked_at.items() if at >= began_at}
        torn = self._worked_at.keys() | in_flight
        known = {namespace.inode: namespace for namespace in self.namespaces}
        believed: list[MountNamespace] = []
        is_torn = False
        for namespace in seen:
            inode = namespace.inode
            before = known.get(inode) if inode in torn or inode in kept else None
            is_torn = is_torn or (before is not None and inode in torn)
            believed.append(namespace if before is None else before)
        self.namespaces = tuple(believed)
        return is_torn


def _with(mounts: tuple[Mount, ...], replaced: Iterable[Outcome]) -> tuple[Mount, ...]:
    """Put new mounts in the place of old ones, and leave out what went with those.

    Layers that were dropped are believed in no more, nor is anything with the number of a new
    mount, or on the mount that had it before: numbers are used again at once.
    """
    table = MountTable.of(mounts)
    news: dict[int, Mount] = {}
    above: list[Mount] = []
    uncovered: dict[int, Mount] = {}
    gone: set[int] = set()
    for outcome in replaced:
        old, top = table.by_id(outcome.action.expect.mount_id), outcome.mount or outcome.found
        if top is None or old is None or not outcome.action.expect.is_met_by(old):
            continue
        if isinstance(outcome.action, ReplaceMount) and outcome.action.over:
            above += [top] if outcome.found is None else []
            continue
        covered = [layer.mount_id for layer in covered_by(old, table)]
        if outcome.found is None:
            news[old.mount_id] = top
            gone.update(covered[: max(0, len(covered) + 1 - outcome.depth)])
        elif top.mount_id in covered:
            uncovered[top.mount_id] = top
            gone |= {old.mount_id, *covered[: covered.index(top.mount_id)]}
        else:
            news[old.mount_id] = top
    numbers = {mount.mount_id for mount in news.values()}
    now: list[Mount] = []
    for mount in mounts:
        if mount.mount_id in news:
            now.append(news[mount.mount_id])
        elif mount.mount_id in uncovered:
            now.append(uncovered[mount.mount_id])
        elif not ({mount.mount_id, mount.parent_id} & numbers or mount.mount_id in gone):
            now.append(mount)
    numbers = {mount.mount_id for mount in above}
    return (*(mount for mount in now if mount.mount_id not in numbers), *above)
