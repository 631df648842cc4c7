"""Which actions wait for a mount worker, and which of them may be begun next; pure.

Sources have their turn one after the other, and so have the pods of one source: however much one
pod has to do, the next one waits for no more than ``SHARE`` of it.  A step costs what it hands
out, and not what waits.

What hangs on one bind of the host stays in order, so that a container finds its pod's bind on
the host already replaced.  An action is done at a *place*, which it may wait for: the mount
namespace that it enters, the source that it looks into, or its target alone.

The last lane has what may hang: what is at a place where something hung before, and what needs
the answer of another file system to find its target.  It is served when nothing else waits, and
one worker at a time is at a place of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from fusewatchd.model.actions import (
    AbortConnection,
    Action,
    DetachDeadSource,
    PlaceStandIns,
    ReplaceMount,
)
from fusewatchd.model.mounts import Device, TargetKey

SHARD_ACTIONS = 32
"""A source with more to do than this is worth a second worker."""
SHARE = 128
"""So many actions of one pod are handed out in one turn."""
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


def pod_of(action: Action) -> str:
    """Return the pod whose bind this is about; empty: what the node itself needs."""
    if isinstance(action, AbortConnection | DetachDeadSource | PlaceStandIns):
        return ""
    return action.pod_uid


def _source_of(action: Action) -> Device:
    return action.origin.device if isinstance(action, ReplaceMount) else action.expect.device


def _is_on_host(action: Action) -> bool:
    return not isinstance(action, ReplaceMount) or action.namespace is None


def _bind_of(action: Action) -> str:
    """Return the bind on the host that this is done at, or cloned from."""
    if isinstance(action, ReplaceMount) and action.namespace is not None:
        return action.origin.mount_point
    return action.expect.mount_point


@dataclass(slots=True)
class _Item:
    action: Action
    number: int
    """Its place in the order in which actions came."""
    asks: bool
    """The way to its target needs the answer of a file system."""


@dataclass(slots=True)
class _Source:
    """What waits for one source; the pod whose turn it is comes first."""

    pods: dict[str, deque[_Item]]
    count: int = 0


class WorkQueue:
    """Actions that were submitted and have not ended."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._items: dict[int, _Item] = {}
        """All of them, by the identity of the action."""
        self._waiting = 0
        self._sources: dict[Device, _Source] = {}
        self._last: dict[str, dict[Place | None, deque[_Item]]] = {}
        """By pod and place."""
        self._held: dict[str, list[_Item]] = {}
        """What waits for the end of an action on the host, by the bind there."""
        self._on_host: dict[str, list[int]] = {}
        """Numbers of the actions on the host that have not ended, by the bind there."""
        self._suspects: dict[TargetKey, Place] = {}
        self._places: frozenset[Place | None] = frozenset()
        self._count = 0

    def __bool__(self) -> bool:
        return self._waiting > 0

    @property
    def open(self) -> Iterator[Action]:
        """Give what waits and what is under way."""
        return (item.action for item in self._items.values())

    def add(self, actions: Iterable[Action]) -> None:
        """Put actions at the end."""
        for action in actions:
            self._count += 1
            asks = isinstance(action, ReplaceMount) and action.asks
            item = self._items[id(action)] = _Item(action, self._count, asks)
            if _is_on_host(action):
                self._on_host.setdefault(_bind_of(action), []).append(item.number)
            self._waiting += 1
            self._put(item)

    def put_back(self, actions: Iterable[Action]) -> None:
        """Put actions that were taken and not begun before the others of their pods."""
        items = [self._items[id(action)] for action in actions]
        self._waiting += len(items)
        for item in reversed(items):
            self._put(item, first=True)

    def put_last(self, action: Action) -> None:
        """Put back one of which it turned out that the way to it needs an answer."""
        item = self._items[id(action)]
        item.asks = True
        self._waiting += 1
        self._put_last(item)

    def ended(self, action: Action) -> None:
        """Forget an action; what waited for its end may be begun."""
        item = self._items.pop(id(action))
        if not _is_on_host(action):
            return
        bind = _bind_of(action)
        numbers = self._on_host[bind]
        numbers.remove(item.number)
        if not numbers:
            del self._on_host[bind]
        for held in reversed(self._held.pop(bind, ())):
            self._put(held, first=True)

    # ---------------------------------------------------------------------- what hung

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

    # -------------------------------------------------------------------------- take

    @property
    def has_ready(self) -> bool:
        """True when something waits that is not known to hang."""
        return bool(self._sources)

    def take(self, moving: Iterable[Action], parallel: int, full: Collection[str]) -> list[Action]:
        """Take out what one worker is to do next: ``parallel`` share a source with much to do.

        ``moving`` is what those are at that do not stall.  Pods that are ``full`` hold as many
        workers as they may: what they want comes last.
        """
        while self._sources:
            device = next(iter(self._sources))
            source = self._sources.pop(device)
            sharing = sum(_source_of(action) == device for action in moving)
            shards = max(1, min(parallel - sharing, source.count // SHARD_ACTIONS))
            batch = self._from_source(source, -(-source.count // shards), full)
            if source.pods:
                self._sources[device] = source
            if batch:
                return self._handed_out(batch)
        return []

    def may_take_last(self, under_way: Iterable[Action], full: Collection[str]) -> bool:
        """True when ``take_last`` has something."""
        return self._next_last(set(map(place_of, under_way)), full) is not None

    def take_last(self, under_way: Iterable[Action], full: Collection[str]) -> list[Action]:
        """Take out what one worker is to do next at a place where it may hang.

        Nobody goes to where something is ``under_way``, nor because of pods that are ``full``.
        """
        busy = set(map(place_of, under_way))
        while (found := self._next_last(busy, full)) is not None:
            pod, place = found
            places = self._last.pop(pod)
            batch: list[_Item] = []
            line = places.pop(place)
            self._move(line, batch, len(line), None)
            if places:
                self._last[pod] = places
            if batch:
                # Who hung already would keep those that did not.
                batch.sort(key=lambda item: item.action.key in self._suspects)
                return self._handed_out(batch)
        return []

    def drop_last(self, is_unwanted: Callable[[Action], bool]) -> list[Action]:
        """Take out of the last lane what will not be done; one action speaks for its place."""
        dropped: list[Action] = []
        for pod, places in tuple(self._last.items()):
            for place, line in tuple(places.items()):
                if is_unwanted(line[0].action):
                    dropped += self._handed_out(places.pop(place))
            if not places:
                del self._last[pod]
        return dropped

    def _put(self, item: _Item, *, first: bool = False) -> None:
        if item.asks or self.is_suspect(item.action):
            self._put_last(item)
            return
        source = self._sources.setdefault(_source_of(item.action), _Source({}))
        source.count += 1
        line = source.pods.setdefault(pod_of(item.action), deque())
        (line.appendleft if first else line.append)(item)

    def _put_last(self, item: _Item) -> None:
        places = self._last.setdefault(pod_of(item.action), {})
        places.setdefault(place_of(item.action), deque()).append(item)

    def _from_source(self, source: _Source, amount: int, full: Collection[str]) -> list[_Item]:
        """Take the turns of so many pods that ``amount`` is reached; a pod is not divided."""
        batch: list[_Item] = []
        for _ in range(len(source.pods)):
            if len(batch) >= amount:
                break
            pod = next(iter(source.pods))
            line = source.pods.pop(pod)
            waited = len(line)
            self._move(line, batch, SHARE, full)
            source.count -= waited - len(line)
            if line:
                source.pods[pod] = line
        return batch

    def _move(
        self, line: deque[_Item], batch: list[_Item], most: int, full: Collection[str] | None
    ) -> None:
        """Move up to ``most`` that may be begun now into the batch, the others to where they wait.

        ``full`` is None in the last lane.
        """
        before, numbers = len(batch), set[int]()
        while line and len(batch) < before + most:
            item = line.popleft()
            bind = _bind_of(item.action)
            if self._awaits(item, bind, numbers):
                self._held.setdefault(bind, []).append(item)
            elif full is not None and (self.is_suspect(item.action) or pod_of(item.action) in full):
                self._put_last(item)
            else:
                batch.append(item)
                if _is_on_host(item.action):
                    numbers.add(item.number)

    def _awaits(self, item: _Item, bind: str, numbers: Collection[int]) -> bool:
        """True while an earlier action at the same bind is under way, or waits elsewhere."""
        for number in self._on_host.get(bind, ()):
            if number >= item.number:
                return False
            if number not in numbers:
                return True
        return False

    def _next_last(
        self, busy: Collection[Place | None], full: Collection[str]
    ) -> tuple[str, Place | None] | None:
        free = (
            (pod, place)
            for pod, places in self._last.items()
            if pod not in full
            for place in places
            if place not in busy
        )
        return next(free, None)

    def _handed_out(self, items: Collection[_Item]) -> list[Action]:
        self._waiting -= len(items)
        return [item.action for item in items]
