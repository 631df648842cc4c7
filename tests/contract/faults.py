"""Kernels that fail, stop the caller for ever, or let somebody else in, at the n-th call."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

from fusewatchd.linux.mount_kernel import MountKernel, Way
from tests.contract.worlds import World

MOST_CALLS = 200
"""More than any replacement makes."""


def _is_counted(name: str, args: tuple[Any, ...]) -> bool:
    """False for what does not fail: closing, whatever close(2) answers, the clock, going home."""
    return name not in ("close", "leave", "now") and (name, args) != ("enter", (None,))


class Killed(BaseException):
    """The caller was ended by SIGKILL: nothing after this call happens any more."""


class WrappedKernel:
    """Passes every call on to another kernel, and counts those that may fail."""

    def __init__(self, kernel: MountKernel) -> None:
        self._kernel = kernel
        self.way: Way = kernel.way
        self.calls = 0
        self.was_hit = ""
        """Name of the call at which something happened."""

    def before(self, name: str) -> None:
        """Called before each counted call, with ``calls`` already its number."""

    def after(self, name: str) -> None:
        """Called when it has succeeded."""

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._kernel, name)

        def through(*args: Any, **kwargs: Any) -> Any:
            if not _is_counted(name, args):
                return call(*args, **kwargs)
            self.calls += 1
            self.before(name)
            result = call(*args, **kwargs)
            try:
                self.after(name)
            except BaseException:
                if name in _OPENS:
                    self._kernel.close(result)
                raise
            return result

        return through


_OPENS = {"open_mount", "open_below", "copy", "configure", "assemble"}
"""Calls that return a descriptor."""


class Moment(Enum):
    """When a fault comes."""

    BEFORE = "before"
    """The call did nothing."""
    AFTER = "after"
    """The call did what it does, and says that it failed."""


class FaultyKernel(WrappedKernel):
    """One call fails."""

    def __init__(
        self,
        kernel: MountKernel,
        at: int,
        fault: Callable[[], BaseException],
        moment: Moment = Moment.BEFORE,
    ) -> None:
        super().__init__(kernel)
        self._at = at
        self._fault = fault
        self._moment = moment
        self._is_dead = False

    def before(self, name: str) -> None:
        self._strike(name, Moment.BEFORE)

    def after(self, name: str) -> None:
        self._strike(name, Moment.AFTER)

    def _strike(self, name: str, moment: Moment) -> None:
        if self._is_dead or (self.calls == self._at and moment is self._moment):
            self.was_hit = self.was_hit or name
            fault = self._fault()
            self._is_dead = isinstance(fault, Killed)
            raise fault


def failing(number: int) -> Callable[[], BaseException]:
    """Return what makes the error of a system call."""
    return lambda: OSError(number, os.strerror(number))


class SuicidalKernel(WrappedKernel):
    """Really kills this process before the n-th call."""

    def __init__(self, kernel: MountKernel, at: int) -> None:
        super().__init__(kernel)
        self._at = at

    def before(self, name: str) -> None:
        if self.calls == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


class Wait(Enum):
    """Where an actor may be interrupted."""

    NEXT = "next"
    """It is between two of its system calls."""
    BUSY = "busy"
    """EBUSY: it will try again when something has happened."""


Steps = Iterator[Wait]
"""Somebody else at work, one system call after the other."""


class Pace(Enum):
    """How fast somebody else is."""

    AT_ONCE = "at-once"
    """Does everything between two of our calls."""
    STEP_BY_STEP = "step-by-step"
    """Does one thing between each two of our calls."""


class DisturbedKernel(WrappedKernel):
    """Lets somebody else begin just before the n-th call, and go on before later ones."""

    def __init__(
        self, world: World, kernel: MountKernel, at: int, steps: Steps, pace: Pace
    ) -> None:
        super().__init__(kernel)
        self._world = world
        self._at = at
        self._steps = steps
        self._pace = pace
        self.is_over = False

    def before(self, name: str) -> None:
        if self.calls < self._at or self.is_over:
            return
        self.was_hit = self.was_hit or name
        self.let_go_on(self._pace)

    def let_go_on(self, pace: Pace) -> None:
        """Go on until something is busy or all is done, or by one step."""
        wait: Wait | None = Wait.NEXT
        while wait is Wait.NEXT:
            # Whoever it is, he is on the host; the engine may be in a container just now.
            with self._world.inside(None):
                wait = next(self._steps, None)
            self.is_over = wait is None
            if pace is Pace.STEP_BY_STEP:
                return


def until_not_busy(call: Callable[[], object]) -> Steps:
    """Make a call again and again while it answers EBUSY."""
    while True:
        try:
            call()
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
            yield Wait.BUSY
        else:
            return
