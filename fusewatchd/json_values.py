"""Frozen dataclasses and named tuples to JSON-able values and back, by their annotations.

What crosses a process boundary is plain JSON, never pickle: some of the workers run as
another user, and the daemon is root.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar

from fusewatchd.errors import ParseError

T = TypeVar("T")

_PLAIN = frozenset({str, int, bool, float, type(None)})
"""Types that JSON has itself."""


def encode(value: object) -> Any:
    """Return ``value`` as dicts, lists and scalars."""
    kind = type(value)
    return value if kind in _PLAIN else _encoder(kind)(value)  # type: ignore[arg-type]


@cache
def _encoder(kind: type) -> Callable[[Any], Any]:
    """Return what turns a value of this type into JSON; made once, since actions are many."""
    if issubclass(kind, Enum):
        return lambda value: value.value
    names = _names(kind)
    if names is None:
        if issubclass(kind, (tuple, list)):
            return lambda value: [encode(item) for item in value]
        return lambda value: value

    def encode_fields(value: object) -> dict[str, Any]:
        parts = {name: getattr(value, name) for name in names}
        for name, part in parts.items():
            if type(part) not in _PLAIN:
                parts[name] = encode(part)
        return parts

    return encode_fields


def _names(kind: type) -> tuple[str, ...] | None:
    """Return the names of the fields; None for what is neither dataclass nor named tuple."""
    if is_dataclass(kind):
        return tuple(field.name for field in fields(kind))
    return getattr(kind, "_fields", None)


def decode(kind: type[T], value: object) -> T:
    """Rebuild a ``kind`` from what ``encode`` made of one.

    Raises:
        ParseError: the value has not the shape that the annotations promise.
    """
    try:
        decoder: Callable[[Any], T] = _decoder(kind)  # type: ignore[arg-type]  # types are hashable
        return decoder(value)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ParseError(f"not a {kind.__name__}: {exc!r}") from exc


@cache
def _decoder(kind: Any) -> Callable[[Any], Any]:
    origin = typing.get_origin(kind)
    if origin is tuple:
        return _sequence(_decoder(typing.get_args(kind)[0]))
    if origin in (typing.Union, types.UnionType):
        # Only ``X | None`` is ever used in values that travel.
        (inner,) = (k for k in typing.get_args(kind) if k is not type(None))
        wrapped = _decoder(inner)
        return lambda value: None if value is None else wrapped(value)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind
    if isinstance(kind, type) and (names := _names(kind)) is not None:
        hints = typing.get_type_hints(kind)
        parts = [(name, _decoder(hints[name])) for name in names]
        return lambda value: kind(*[part(value[name]) for name, part in parts])
    return _scalar(kind)


def _sequence(item: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def check(value: object) -> object:
        # A text or a mapping could be iterated over too, and would be what nobody wrote.
        if not isinstance(value, list):
            raise TypeError(f"list expected, not {type(value).__name__}")
        return tuple(item(v) for v in value)

    return check


def _scalar(kind: type) -> Callable[[Any], Any]:
    accepted = (int, float) if kind is float else kind

    def check(value: object) -> object:
        if type(value) is kind:
            return value
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{kind.__name__} expected, not {type(value).__name__}")
        return value

    return check
