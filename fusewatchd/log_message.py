"""The text of a log entry for people, and the ids of messages in systemd's catalog; pure.

``journalctl`` in a terminal of 80 columns shows about 40 characters of a message.  So volume and
pods come first.  Ids, devices and paths of mounts are in the fields of the entry alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import strerror

from fusewatchd.text import first_few

Plain = str | int | float | bool | tuple[str, ...]
"""What a field can be; several texts are several values of one field."""

MESSAGE_IDS: Mapping[str, str] = {
    "server_gone": "0b7f6c1f2a5e4d0c9a3d5e8f71c20a01",
    "connection_cut": "0b7f6c1f2a5e4d0c9a3d5e8f71c20a02",
    "hung": "0b7f6c1f2a5e4d0c9a3d5e8f71c20a03",
    "still_broken": "0b7f6c1f2a5e4d0c9a3d5e8f71c20a04",
    "recovered": "0b7f6c1f2a5e4d0c9a3d5e8f71c20a05",
    "refused": "0b7f6c1f2a5e4d0c9a3d5e8f71c20a06",
    "bare": "0b7f6c1f2a5e4d0c9a3d5e8f71c20a07",
    "on_disk": "0b7f6c1f2a5e4d0c9a3d5e8f71c20a08",
    "gap_opened": "0b7f6c1f2a5e4d0c9a3d5e8f71c20a09",
    "thread_failed": "0b7f6c1f2a5e4d0c9a3d5e8f71c20a0a",
}
"""By event, as ``systemd/fusewatchd.catalog`` has them; never used for another event."""

MAX_NAMES = 2
"""Volumes, and pods, that the text names; the fields have more."""
SHORT_UID = 8
_IDS = frozenset(
    {"device", "event", "kind", "mount_id", "mount_namespace", "new_device", "pod_uid"}
)
"""Fields for machines."""
_IN_THE_TEXT = ("reason", "errno", "detail", "evidence", "source")
"""Fields that the text of an entry about a volume has at its end."""


def message(text: str, fields: Mapping[str, Plain]) -> str:
    """Return what a person reads of an entry; all texts are printable already."""
    if not fields.get("volume"):
        shown = {key: value for key, value in fields.items() if key not in _IDS}
        pairs = " ".join(f"{key}={quoted(plain(value))}" for key, value in shown.items())
        return f"{text}  {pairs}" if pairs else text
    pods = _pods(fields)
    lead = f"{_few(fields['volume'])} ({pods})" if pods else _few(fields["volume"])
    return f"{lead}: {text}{_tail(fields)}"


def plain(value: Plain) -> str:
    """Return a value as text."""
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def quoted(text: str) -> str:
    """Return a text in quotes if it has a space, ``=`` or a quote."""
    # ``printable`` has doubled every backslash, so the one before a quote stands out.
    if text and not any(mark in text for mark in ' ="'):
        return text
    return '"' + text.replace('"', '\\"') + '"'


def _tail(fields: Mapping[str, Plain]) -> str:
    parts = []
    for name in _IN_THE_TEXT:
        value = fields.get(name)
        if not value:
            continue
        if name == "errno" and isinstance(value, int):
            parts.append(strerror(value))
        else:
            parts.append(f"source {value}" if name == "source" else plain(value))
    return f"; {', '.join(parts)}" if parts else ""


def _pods(fields: Mapping[str, Plain]) -> str:
    names, namespace = fields.get("pod"), fields.get("namespace")
    if not names:
        uids = fields.get("pod_uid")
        return _few(tuple(uid[:SHORT_UID] for uid in _values(uids))) if uids else ""
    if isinstance(namespace, str):
        names = tuple(f"{namespace}/{name}" for name in _values(names))
    return _few(names)


def _few(value: Plain) -> str:
    return first_few(_values(value), MAX_NAMES)


def _values(value: Plain | None) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else (str(value),)
