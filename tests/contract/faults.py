"""A kernel that fails, or stops the caller for ever, at the n-th call."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from fusewatchd.linux.mountkernel import MountKernel, Way


def _is_counted(name: str, args: tuple[Any, ...]) -> bool:
    """False for what does not fail: closing, whatever close(2) answers, and going home."""
    return name != "close" and (name, args) != ("enter", (None,))


class Killed(BaseException):
    """The caller was ended by SIGKILL: nothing after this call happens any more."""


class FaultyKernel:
    """Passes every call on to another kernel until it is time."""

    def __init__(self, kernel: MountKernel, at: int, fault: Callable[[], BaseException]) -> None:
        self._kernel = kernel
        self._at = at
        self._fault = fault
        self.calls = 0
        self.is_dead = False
        self.was_hit = ""

    @property
    def way(self) -> Way:
        return self._kernel.way

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._kernel, name)

        def through(*args: Any, **kwargs: Any) -> Any:
            if not _is_counted(name, args):
                return call(*args, **kwargs)
            self.calls += 1
            if self.calls == self._at or self.is_dead:
                self.was_hit = self.was_hit or name
                fault = self._fault()
                self.is_dead = isinstance(fault, Killed)
                raise fault
            return call(*args, **kwargs)

        return through


def failing(number: int) -> Callable[[], BaseException]:
    """Return what makes the error of a system call."""
    return lambda: OSError(number, os.strerror(number))


class DisturbedKernel(FaultyKernel):
    """Lets somebody else do something just before the n-th call, and goes on."""

    def __init__(self, kernel: MountKernel, at: int, disturb: Callable[[], None]) -> None:
        super().__init__(kernel, 0, lambda: Killed())
        self._moment = at
        self._disturb = disturb

    def __getattr__(self, name: str) -> Any:
        through = super().__getattr__(name)

        def disturbed(*args: Any, **kwargs: Any) -> Any:
            if _is_counted(name, args) and self.calls + 1 == self._moment:
                self.was_hit = name
                self._disturb()
            return through(*args, **kwargs)

        return disturbed
