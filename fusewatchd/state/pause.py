"""Until when ``fusewatchd pause`` lasts, in a file: it survives the daemon and the boot."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress

from fusewatchd.errors import ParseError
from fusewatchd.state.file import read_state, write_state

NAME = "pause.json"
MAX_SECONDS = 7 * 24 * 3600.0
"""An administrator may forget it: no pause is longer."""


def read_pause(directory: str, now: float) -> float | None:
    """Return when the pause ends, in seconds since 1970; None: there is none.

    Raises:
        ParseError: there is a file that must not be believed, or cannot be read.
    """
    document = read_state(directory, NAME)
    if document is None:
        return None
    until = document.get("until") if isinstance(document, Mapping) else None
    if not isinstance(until, (int, float)) or isinstance(until, bool) or not math.isfinite(until):
        raise ParseError(f"{directory}/{NAME}: expected the time at which the pause ends")
    return min(float(until), now + MAX_SECONDS)


def write_pause(directory: str, until: float) -> None:
    """Keep the end of a pause.

    Raises:
        OSError: it could not be written; what was kept before still counts.
    """
    write_state(directory, {"until": until}, NAME)


def forget_pause(directory: str) -> None:
    """Remove what is kept.

    Raises:
        OSError: it cannot be removed, and would count at the next start.
    """
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, NAME))
