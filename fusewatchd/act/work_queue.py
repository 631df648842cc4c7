"""Which actions wait for a mount worker, and which of them may be begun next; pure.

What hangs on one bind of the host stays in order, so that a container finds its pod's bind on
the host already replaced.  An action is done at a *place*, which it may wait for: the mount
namespace that it enters, the source that it looks into, or its target alone.  Where something
hung, that place comes last, has one worker at a time, and shares it with nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from fusewatchd.model.actions import AbortConnection, Action, ReplaceMount
from fusewatchd.model.mounts import Device, TargetKey

SHARD_ACTIONS = 32
"""A source with more to do than this is worth a second worker."""
MAX_SUSPECTS = 256
"""Targets that are remembered to have hung, the oldest are forgotten first."""

Place = int | Device | str


def place_of(action: Action) -> Place | None:
    """Return what an action may wait for; None: nothing, it is what ends the waiting."""
    if isinstance(action, AbortConnection):
        return None
    if isinstance(action, ReplaceMount):
        if action.namespace is not None:
            return action.namespace.inode
        if action.subpath or action.children:
            return action.origin.device
    return action.expect.mount_point


def _source_of(action: Action) -> Device:
    return action.origin.device if isinstance(action, ReplaceMount) else action.expect.device


def _is_on_host(action: Action) -> bool:
    return not isinstance(action, ReplaceMount) or action.namespace is None


def _bind_of(action: Action) -> str:
    """Return the bind on the host that this is done at, or cloned from."""
    if isinstance(action, ReplaceMount) and action.namespace is not None:
        return action.origin.mount_point
    return action.expect.mount_point


class WorkQueue:
    """Actions in the order in which they were planned."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.actions: list[Action] = []
        self._suspects: dict[TargetKey, Place] = {}
        self._places: frozenset[Place | None] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.actions)

    def add(self, actions: Iterable[Action]) -> None:
        """Put actions at the end."""
        self.actions.extend(actions)

    def put_back(self, actions: Iterable[Action]) -> None:
        """Put actions that were taken and not begun before all others."""
        self.actions[:0] = actions

    def suspect(self, action: Action) -> None:
        """Remember that this one did not come back in time."""
        place = place_of(action)
        if place is None:
            return
        self._suspects.pop(action.key, None)
        self._suspects[action.key] = place
        if len(self._suspects) > MAX_SUSPECTS:
            del self._suspects[next(iter(self._suspects))]
        self._places = frozenset(self._suspects.values())

    def clear(self, action: Action) -> None:
        """Forget that it once hung: it came to an end."""
        if self._suspects.pop(action.key, None) is not None:
            self._places = frozenset(self._suspects.values())

    def is_suspect(self, action: Action) -> bool:
        """True when something hung at the place of this one."""
        return place_of(action) in self._places

    def next_due(self, under_way: Collection[Action], *, with_suspects: bool) -> Action | None:
        """Return the action that is to be begun next, if any may be begun now."""
        for suspects in (False, True) if with_suspects else (False,):
            for action in self._startable(under_way, suspects=suspects):
                return action
        return None

    def take(
        self,
        under_way: Collection[Action],
        moving: Iterable[Action],
        parallel: int,
        *,
        with_suspects: bool,
    ) -> list[Action]:
        """Take out what one worker is to do next: ``parallel`` share a source with much to do.

        ``moving`` is what those are at that do not stall.
        """
        first = self.next_due(under_way, with_suspects=with_suspects)
        if first is None:
            return []
        if self.is_suspect(first):
            place = place_of(first)
            taken = [a for a in self._startable(under_way, suspects=True) if place_of(a) == place]
            # Who hung already would keep those that did not.
            taken.sort(key=lambda action: action.key in self._suspects)
        else:
            source = _source_of(first)
            same = [
                a for a in self._startable(under_way, suspects=False) if _source_of(a) == source
            ]
            sharing = sum(_source_of(action) == source for action in moving)
            taken = _first_shard(same, parallel - sharing)
        ids = set(map(id, taken))
        self.actions = [action for action in self.actions if id(action) not in ids]
        return taken

    def drop(self, is_unwanted: Callable[[Action], bool]) -> list[Action]:
        """Take out what will not be done."""
        dropped = [action for action in self.actions if is_unwanted(action)]
        self.actions = [action for action in self.actions if not is_unwanted(action)]
        return dropped

    def _startable(self, under_way: Collection[Action], *, suspects: bool) -> Iterable[Action]:
        """Give those that may be begun, be they at suspect places or not, in order."""
        busy = {place_of(action) for action in under_way}
        awaited = {_bind_of(action) for action in under_way if _is_on_host(action)}
        for action in self.actions:
            is_suspect = self.is_suspect(action)
            is_free = not (is_suspect and place_of(action) in busy)
            if is_free and is_suspect is suspects and _bind_of(action) not in awaited:
                yield action
            elif _is_on_host(action):
                awaited.add(_bind_of(action))


def _first_shard(actions: list[Action], parallel: int) -> list[Action]:
    """Return the part of one worker; what is done at one bind is not divided."""
    count = max(1, min(parallel, len(actions) // SHARD_ACTIONS))
    binds: dict[str, int] = {}
    return [a for a in actions if binds.setdefault(_bind_of(a), len(binds)) % count == 0]
