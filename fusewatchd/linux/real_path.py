"""Resolving symbolic links without asking a FUSE server."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Collection

MAX_LINKS = 40
"""As the kernel follows in one path, path_resolution(7)."""


def real_path(path: str, stops: Collection[str]) -> str:
    """Return an absolute path without the links on its way, as realpath(3) does.

    What is at or below one of the mount points ``stops`` is not looked at and stays as it is.
    """
    done, links = "", 0
    left = path.split("/")
    while left:
        name = left.pop(0)
        if name in ("", "."):
            continue
        if name == "..":
            done = posixpath.dirname(done).rstrip("/")
            continue
        here = f"{done}/{name}"
        if here in stops:
            return "/".join([here, *left])
        try:
            link = os.readlink(here) if links < MAX_LINKS else ""
        except OSError:
            link = ""  # no link, or not there
        if link:
            done, links = "" if link.startswith("/") else done, links + 1
            left = [*link.split("/"), *left]
        else:
            done = here
    return done or "/"
