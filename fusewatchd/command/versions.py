"""What this program runs on, for people who look for the cause of something."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from fusewatchd import __version__

LIBRARIES = ("prometheus-client", "pyinotify", "pyyaml", "requests", "sdnotify")


def versions() -> dict[str, object]:
    """Return the versions of the program, its libraries, Python and the kernel."""
    libraries: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            libraries[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            libraries[name] = None  # there without a record of its version
    kernel = os.uname()
    return {
        "version": __version__,
        "python": platform.python_version(),
        "kernel": kernel.release,
        "machine": kernel.machine,
        "libraries": libraries,
    }
