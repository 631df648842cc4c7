"""Names of systemd units, escaped as systemd.unit(5) "String Escaping for Inclusion in Unit Names".

Pure, and the same as ``systemd-escape`` says.
"""

from __future__ import annotations

import re

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
