"""The few exceptions of the project.

A failing system call is an ``OSError`` with its errno and path and is never wrapped:
callers compare ``exc.errno``.  What stands here are the failures that have no errno.
"""

from __future__ import annotations

import errno
from typing import NoReturn


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


class KubeError(FusewatchError):
    """Base; ``code`` is the status of the answer, 0 where there was none."""

    def __init__(self, message: str, code: int = 0) -> None:
        """Keep the message for a person and the status for decisions."""
        super().__init__(message)
        self.code = code


class CredentialsError(KubeError):
    """A token, key or certificate file that cannot or must not be used; nothing was sent."""


def assert_never(value: NoReturn) -> NoReturn:
    """Prove to the type checker that a match over a closed union is complete."""
    raise AssertionError(f"unhandled value: {value!r}")
