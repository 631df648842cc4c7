"""A mapping that never changes, of which a changed copy costs what has changed.

A node has tens of thousands of mounts and changes them one by one; a dict of them all, copied
for each change, is most of what an idle daemon would do there.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from typing import Any, Final, Generic, TypeVar, overload

MAX_CHANGES = 256
"""Kept apart from the rest; then everything is put together, at the price of one copy."""

_UNCHANGED: Final[Any] = object()

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")


class Overlay(Mapping[K, V], Generic[K, V]):
    """A dict that nobody changes any more, and the changes to it."""

    __slots__ = ("_base", "_changes", "_length")

    def __init__(self, base: dict[K, V], changes: Mapping[K, V | None] | None = None) -> None:
        """Take over ``base``, which must not be changed any more; None in a change: gone."""
        self._base = base
        self._changes: dict[K, V | None] = dict(changes) if changes else {}
        self._length = len(base)
        for key, value in self._changes.items():
            self._length += (value is not None) - (key in base)

    def changed(self, changes: Mapping[K, V | None]) -> Overlay[K, V]:
        """Return a copy in which these keys have other values; None takes one out."""
        together = {**self._changes, **changes}
        if len(together) <= MAX_CHANGES:
            return Overlay(self._base, together)
        return Overlay(Overlay(self._base, together)._flat())

    def __getitem__(self, key: K) -> V:
        """Return the value of a key; raises ``KeyError``."""
        if key in self._changes:
            value = self._changes[key]
            if value is None:
                raise KeyError(key)
            return value
        return self._base[key]

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, /, default: V | T) -> V | T: ...
    def get(self, key: K, /, default: Any = None) -> Any:
        """Return the value of a key, or ``default``: without the exception of a ``Mapping``."""
        value = self._changes.get(key, _UNCHANGED)
        if value is _UNCHANGED:
            return self._base.get(key, default)
        return default if value is None else value

    def __contains__(self, key: object) -> bool:
        """Tell whether there is such a key."""
        if key in self._changes:
            return self._changes[key] is not None
        return key in self._base

    def __len__(self) -> int:
        """Count the keys."""
        return self._length

    def __iter__(self) -> Iterator[K]:
        """List the keys."""
        return iter(self._flat())

    def __eq__(self, other: object) -> bool:
        """Tell whether the same keys have the same values."""
        if isinstance(other, Overlay):
            return bool(self._flat() == other._flat())
        return NotImplemented if not isinstance(other, Mapping) else self._flat() == dict(other)

    __hash__ = None  # type: ignore[assignment]  # equal by content, as dicts are

    def values(self) -> ValuesView[V]:
        """Return the values at the speed of a dict."""
        return self._flat().values()

    def items(self) -> ItemsView[K, V]:
        """Return keys and values at the speed of a dict."""
        return self._flat().items()

    def _flat(self) -> dict[K, V]:
        if not self._changes:
            return self._base
        flat = dict(self._base)
        for key, value in self._changes.items():
            if value is None:
                flat.pop(key, None)
            else:
                flat[key] = value
        return flat
