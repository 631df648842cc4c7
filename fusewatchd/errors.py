"""The few exceptions of the project.

A failing system call is an ``OSError`` with its errno and path and is never wrapped:
callers compare ``exc.errno``.  What stands here are the failures that have no errno.
"""

from __future__ import annotations

import errno


class FusewatchError(Exception):
    """Base of every error that fusewatchd itself raises."""


class ConfigError(FusewatchError):
    """A configuration that cannot be used: one line that names file, key and expectation."""


class ParseError(FusewatchError):
    """Text from the kernel, the kubelet or a driver that does not have the documented form."""


class UnsupportedKernelError(FusewatchError):
    """This kernel lacks a call without which nothing can be replaced safely."""


class NamespaceError(FusewatchError):
    """The daemon does not see the mounts of the host."""


class AlreadyRunningError(FusewatchError):
    """Another daemon uses the runtime directory."""


class WorkerError(FusewatchError):
    """A worker process ended, or did not answer, while it held a request."""


class WorkerShortageError(WorkerError):
    """No process or descriptor is to be had for a worker just now; later there may be."""


def error_name(number: int) -> str:
    """Return the symbol of an errno, ``EIO``."""
    return errno.errorcode.get(number, f"errno {number}")
