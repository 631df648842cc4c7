"""What a value of the configuration must be like.

Each function returns what was expected in a person's words, empty when the value is fine.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_LABEL = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_FLEXVOLUME = re.compile(r"[^/~\s]+/[^/~\s]+")


def positive(value: float) -> str:
    """A duration."""
    return "" if 0 < value < 1e7 else "a number of seconds above 0"


def count(value: int) -> str:
    """A number of things."""
    return "" if 1 <= value <= 1_000_000 else "a whole number from 1 to 1000000"


def count_or_none(value: int) -> str:
    """A number of things, 0 where it is not known."""
    return "" if 0 <= value <= 1_000_000 else "a whole number from 0 to 1000000"


def per_second(value: float) -> str:
    """A rate."""
    return "" if 0.01 <= value <= 1e6 else "a number from 0.01 to 1000000"


def path(value: str) -> str:
    """A path."""
    return "" if value.startswith("/") else "an absolute path"


def optional_path(value: str) -> str:
    """A path, or none."""
    return "" if not value or value.startswith("/") else "an absolute path, or nothing"


def auto_path(value: str) -> str:
    """A path, or to be found."""
    return "" if value == "auto" or value.startswith("/") else "an absolute path, or auto"


def glob(value: str) -> str:
    """A name to match."""
    return "" if value else "a name or a glob"


def globs(value: tuple[str, ...]) -> str:
    """Names to match."""
    return "" if all(value) else "a list of names or globs, none of them empty"


def path_glob(value: str) -> str:
    """A path, or a pattern of paths; empty where there is none."""
    return "" if not value or value.startswith("/") else "an absolute path or a glob of such"


def group(value: str) -> str:
    """A group of users."""
    is_name = not set(value) & set(":,/") and value.isprintable() and value == value.strip()
    return "" if is_name else "the name of a group, or nothing"


def url(value: str) -> str:
    """Where a server is."""
    return (
        ""
        if not value or _is_origin(value)
        else "http://host:port or https://host:port, or nothing"
    )


def _is_origin(url: str) -> bool:
    try:
        parts = urlsplit(url)
        is_host = bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        return False
    has_more = parts.path.strip("/") or parts.query or parts.fragment
    return parts.scheme in ("http", "https") and is_host and not has_more


def listen(value: str | tuple[str, ...]) -> str:
    """Where to listen, once or several times."""
    several = (value,) if isinstance(value, str) else value
    is_off = value == ""
    is_fine = is_off or all(_is_listen_address(v) for v in several)
    return "" if is_fine else "host:port with a port from 1 to 65535, or a list of such, or nothing"


def _is_listen_address(value: str) -> bool:
    host, _, port = value.rpartition(":")
    is_number = port.isascii() and port.isdigit() and len(port) <= 5
    return bool(host) and is_number and 0 < int(port) < 65536


def label(value: str) -> str:
    """A name that is shown."""
    is_name = not value or _LABEL.fullmatch(value)
    return "" if is_name else "small letters, digits, . and -, at most 63"


def flexvolume(value: str) -> str:
    """The name of a FlexVolume driver."""
    return "" if not value or _FLEXVOLUME.fullmatch(value) else "vendor/driver, or nothing"
