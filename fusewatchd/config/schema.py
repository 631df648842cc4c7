"""Checking of documents against dataclasses: types, names, expectations.

What may stand in a configuration file is said once, in :mod:`fusewatchd.config.settings`; here it
is only read off the dataclasses there.
"""

from __future__ import annotations

import difflib
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, fields, is_dataclass, replace
from enum import Enum
from functools import cache
from typing import Any

from fusewatchd.text import printable

MAX_SECTIONS = 1000
"""In a list of them."""

Check = Callable[[Any], str]
"""Returns what was expected, empty when the value is fine."""


def checked(default: Any, check: Check) -> Any:
    """Describe a key whose value must be what ``check`` expects."""
    return field(default=default, metadata={"check": check})


def at_start(default: Any, check: Check) -> Any:
    """Describe a key that is read when the daemon starts and never again."""
    return field(default=default, metadata={"check": check, "at_start": True})


def rules(default: Any, check: Check | None = None) -> Any:
    """Describe a list of rules: those of several files follow each other."""
    return field(default=default, metadata={"check": check, "rules": True})


def rules_at_start(default: Any) -> Any:
    """Describe a list of rules that is read when the daemon starts and never again."""
    return field(default=default, metadata={"rules": True, "at_start": True})


def read_at_start_only(one: Any, other: Any, prefix: str = "") -> list[str]:
    """Return the keys that differ and that a running daemon does not take over."""
    keys: list[str] = []
    for f in fields(one):
        before, after = getattr(one, f.name), getattr(other, f.name)
        if is_dataclass(before):
            keys += read_at_start_only(before, after, f"{prefix}{f.name}.")
        elif before != after and f.metadata.get("at_start"):
            keys.append(f"{prefix}{f.name}")
    return keys


def with_value(part: Any, names: list[str], value: object, key: str, problems: list[str]) -> Any:
    """Return ``part`` with the value at ``names`` replaced, or with a problem more."""
    name = names[0]
    known = hints_of(part.__class__) if is_dataclass(part) else {}
    is_section = name in known and is_dataclass(known[name])
    if name not in known or is_section == (len(names) == 1):
        problems.append(f"{printable(key)}: no such key{_hint(name, known)}")
        return part
    if len(names) > 1:
        inner = with_value(getattr(part, name), names[1:], value, key, problems)
        return replace(part, **{name: inner})
    built = _value(hints_of(part.__class__)[name], value, key, problems)
    if not problems:
        _verify(part.__class__, name, built, key, problems)
    return part if problems else replace(part, **{name: built})


def build(cls: Any, document: object, prefix: str, problems: list[str]) -> Any:
    """Build ``cls`` from a document; what is wrong with it is added to ``problems``.

    A key whose value is wrong has its default, so that the others can be looked at all the same.
    """
    if not isinstance(document, Mapping):
        problems.append(f"{prefix or 'the file'}: expected keys and values, {_found(document)}")
        return cls()
    known = {f.name for f in fields(cls)}
    values: dict[str, Any] = {}
    for name, value in document.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if name not in known:
            problems.append(f"{printable(key)}: no such key{_hint(str(name), known)}")
            continue
        before, hint = len(problems), hints_of(cls)[name]
        built = _value(hint, value, key, problems)
        if len(problems) == before:
            _verify(cls, name, built, key, problems)
        if len(problems) == before or is_dataclass(hint) or _is_list_of_sections(hint):
            values[name] = built
    return cls(**values)


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, [k for k in known if k != name], 1)
    return f"; did you mean {near[0]}?" if near else ""


@cache
def hints_of(cls: Any) -> dict[str, Any]:
    """Return the types of the keys of a section."""
    return typing.get_type_hints(cls)


def _verify(cls: Any, name: str, value: Any, key: str, problems: list[str]) -> None:
    (found,) = (f for f in fields(cls) if f.name == name)
    check = found.metadata.get("check")
    expected = check(value) if check is not None else ""
    if expected:
        problems.append(f"{key}: expected {expected}, {_found(value)}")


def _value(hint: Any, value: object, key: str, problems: list[str]) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return build(hint, {} if value is None else value, key, problems)
    if isinstance(hint, type) and issubclass(hint, Enum):
        members = getattr(hint, "configurable", lambda: hint)()
        words = [member.value for member in members]
        if value in words:
            return hint(value)
        problems.append(f"{key}: expected {' or '.join(words)}, {_found(value)}")
        return None
    if _is_list_of_sections(hint):
        return _sections(typing.get_args(hint)[0], value, key, problems)
    if isinstance(hint, types.UnionType):
        # One thing, or a list of them.
        one, several = typing.get_args(hint)
        return _value(one if isinstance(value, str) else several, value, key, problems)
    if typing.get_origin(hint) is Mapping:
        return _texts(value, key, problems)
    if typing.get_origin(hint) is tuple:
        if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
            return tuple(value)
        problems.append(f"{key}: expected a list of text, {_found(value)}")
        return ()
    return _scalar(hint, value, key, problems)


def _is_list_of_sections(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple and is_dataclass(typing.get_args(hint)[0])


def _sections(cls: Any, value: object, key: str, problems: list[str]) -> tuple[Any, ...]:
    """Build a list of sections; ``problem`` of one says what its keys together are not.

    Where a section has a key for which a text may stand alone, ``SHORT_FOR`` names it.
    """
    if not isinstance(value, (list, tuple)) or len(value) > MAX_SECTIONS:
        expected = f"a list of at most {MAX_SECTIONS} entries"
        problems.append(f"{key}: expected {expected}, {_found(value)}")
        return ()
    built: list[Any] = []
    for number, entry in enumerate(value):
        prefix = f"{key}[{number}]"
        if isinstance(entry, str) and hasattr(cls, "SHORT_FOR"):
            entry = {cls.SHORT_FOR: entry}
        before = len(problems)
        section = entry if isinstance(entry, cls) else build(cls, entry, prefix, problems)
        # A section that is not whole has nothing to say of itself.
        wrong = "" if len(problems) > before else section.problem()
        if wrong:
            problems.append(f"{prefix}: {printable(wrong)}")
        built.append(section)
    return tuple(built)


def _texts(value: object, key: str, problems: list[str]) -> dict[str, str]:
    """Return text by name; values may be secrets and are not shown."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        problems.append(f"{key}: expected names and text")
        return {}
    for name, text in value.items():
        if not isinstance(name, str) or not isinstance(text, str):
            problems.append(f"{key}.{printable(str(name), 60)}: expected text")
    return dict(value)


def _scalar(hint: Any, value: object, key: str, problems: list[str]) -> Any:
    name = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[hint]
    accepted: type | types.UnionType = int | float if hint is float else hint
    if isinstance(value, accepted) and isinstance(value, bool) == (hint is bool):
        return _real(value) if isinstance(value, int) and hint is float else value
    problems.append(f"{key}: expected {name}, {_found(value)}")
    return None


def _real(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _found(value: object) -> str:
    if value is None:
        return "found nothing"
    try:
        # YAML's aliases can make a short file a value that nobody could print whole.
        text = value if isinstance(value, str) else reprlib.repr(value)
    except ValueError:
        text = "a number of thousands of digits"
    return f"found {printable(text, 60)}"
