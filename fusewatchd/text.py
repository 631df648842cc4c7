"""Text for people: what pods control made fit to be shown, counts and durations; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LIMIT = 256
"""Characters after which foreign text is cut, counted after escaping."""

SHORT_ID = 12
"""Characters of a container's id, as the tools of container runtimes print it."""


def printable(text: str, limit: int = LIMIT) -> str:
    """Escape everything that is not printable and bound the length.

    Control characters, line breaks, bidirectional overrides and bytes that were no UTF-8
    (surrogate escapes) become ``\\xNN`` or ``\\uNNNN``; a backslash is doubled, and ``\\x80``
    and above are bytes, never characters, so that the result is unambiguous.
    """
    escaped = "".join(map(_escape, text[: limit + 1]))
    if len(escaped) <= limit and len(text) <= limit:
        return escaped
    return escaped[: limit - 1] + "…"


def _escape(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no UTF-8, kept by surrogateescape
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def first_few(words: Sequence[str], most: int) -> str:
    """Return the first words, and how many more there are: ``a, b, 3 more``."""
    more = [f"{len(words) - most} more"] if len(words) > most else []
    return ", ".join([*words[:most], *more])


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return ``1 bind``, ``2 binds``."""
    return f"{count} {noun}" if count == 1 else f"{count} {plural or noun + 's'}"


LONG_WAIT_SECONDS = 5.0
"""The kernel looks at its timeouts every 15 seconds, fs/fuse/dev.c: none is met much sooner."""


def cut_text(waited_seconds: float) -> str:
    """Say who may have cut a connection whose server lives, by how long a request had waited."""
    if waited_seconds < LONG_WAIT_SECONDS:
        return "by 'umount -f' of a bind, or by an abort"
    waited = duration_text(waited_seconds)
    return f"by an abort, or by the kernel's request timeout: a request had waited for {waited}"


def duration_text(seconds: float) -> str:
    """Return a duration as a person would say it: ``3.1 ms``, ``12.4 s``, ``3 min 20 s``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 119.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def is_coloured(choice: str, environment: Mapping[str, str], is_terminal: bool) -> bool:
    """Return True if output is to be coloured: ``always``, ``never`` or ``auto``.

    ``auto`` colours a terminal, unless NO_COLOR is set and not empty (https://no-color.org).
    """
    if choice == "auto":
        return is_terminal and not environment.get("NO_COLOR")
    return choice == "always"
