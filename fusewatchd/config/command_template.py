"""Templates of commands and units: fixed text with named fields; pure.

A field stands for something that a driver, a user of the cluster or a pod named.  In a command it
is always inside one argument: no shell sees it, it cannot become two arguments, and it cannot
begin one that would be read as an option.  In a unit's name it is escaped as ``systemd-escape``
does it, systemd.unit(5) "String Escaping for Inclusion in Unit Names".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from string import Formatter

MAX_LENGTH = 255
"""``UNIT_NAME_MAX`` of systemd, less the end of the text."""
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:_.")
_NAME = re.compile(r"[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\-]*)?\.(service|mount|target)")


def escape(text: str) -> str:
    """Return any text as a part of a unit's name: ``a-b/c`` becomes ``a\\x2db-c``."""
    parts = []
    for number, byte in enumerate(text.encode("utf-8", "surrogateescape")):
        if byte == ord("/"):
            parts.append("-")
        elif byte in _PLAIN and not (byte == ord(".") and number == 0):
            parts.append(chr(byte))
        else:
            parts.append(f"\\x{byte:02x}")
    return "".join(parts)


def escape_path(path: str) -> str:
    """Return an absolute path as a part of a unit's name: ``/var//lib/`` becomes ``var-lib``."""
    names = [name for name in path.split("/") if name]
    return escape("/".join(names)) if names else "-"


def is_unit_name(name: str) -> bool:
    """Return True for the full name of a unit that may be restarted."""
    is_named = _NAME.fullmatch(name) is not None
    return is_named and len(name) <= MAX_LENGTH and not name.startswith("-")


FIELDS: Mapping[str, Callable[[str], str]] = {
    "target": escape_path,
    "source": escape_path,
    "volume": escape,
    "handle": escape,
    "driver": escape,
    "pod_uid": escape,
}
"""Every field and how it is escaped in the name of a unit."""

MAX_VALUE = 4096
_NAMES = ", ".join(f"{{{name}}}" for name in FIELDS)


class UnusableValueError(ValueError):
    """A field has no value here, or one that is not passed on."""


def problem_of(template: str) -> str:
    """Return what is wrong with a template; empty when nothing is."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as exc:
        return f"text with {_NAMES} ({exc})"
    for _, name, spec, conversion in parts:
        if name is not None and (name not in FIELDS or spec or conversion):
            return f"no other fields than {_NAMES}"
    if any(not _is_plain(literal) for literal, *_ in parts):
        return "text without control characters"
    return ""


def problem_of_command(words: tuple[str, ...]) -> str:
    """Return what is wrong with an argument list; empty when nothing is."""
    if not words:
        return ""
    if not words[0].startswith("/") or "{" in words[0]:
        return "a list that begins with the absolute path of a program"
    return next(filter(None, map(problem_of, words)), "")


def problem_of_unit(template: str) -> str:
    """Return what is wrong with the template of a unit's name; empty when nothing is."""
    problem = problem_of(template) if template else ""
    if template and not problem and not is_unit_name(_filled(template, dict.fromkeys(FIELDS, "x"))):
        return "the whole name of a unit, as name@{volume}.service"
    return problem


def argument(template: str, values: Mapping[str, str]) -> str:
    """Return one argument of a command.

    Raises:
        UnusableValueError: a value is missing or has control characters, or the argument would
            begin with a dash that is not the template's own.
    """
    text = _filled(template, _usable(template, values))
    if text.startswith("-") and not template.startswith("-"):
        raise UnusableValueError(f"{template} would begin with a dash")
    return text


def unit(template: str, values: Mapping[str, str]) -> str:
    """Return the name of a unit.

    Raises:
        UnusableValueError: a value is missing or has control characters, or the name is too long.
    """
    usable = _usable(template, values)
    name = _filled(template, {field: FIELDS[field](value) for field, value in usable.items()})
    if not is_unit_name(name):
        raise UnusableValueError(f"{template} would be no name of a unit")
    return name


def _usable(template: str, values: Mapping[str, str]) -> dict[str, str]:
    used = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    for name in sorted(used):
        value = values.get(name, "")
        if not value:
            raise UnusableValueError(f"{{{name}}} is not known here")
        if not _is_plain(value) or len(value) > MAX_VALUE:
            raise UnusableValueError(f"{{{name}}} has control characters or is too long")
    return {name: values[name] for name in used}


def _filled(template: str, values: Mapping[str, str]) -> str:
    parts = []
    for literal, name, _, _ in Formatter().parse(template):
        parts.append(literal)
        if name is not None:
            parts.append(values[name])
    return "".join(parts)


def _is_plain(text: str) -> bool:
    return all(ord(char) >= 32 and ord(char) != 127 for char in text)
