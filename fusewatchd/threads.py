"""Threads that go on after a failure that nobody foresaw.

A thread that ends silently takes its whole work with it for the life of the process.  Here a
failure is told to ``threading.excepthook``, as that of a thread that ends is, and the work begins
again after a rest.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence

from fusewatchd.rate_limit import doubled

FIRST_REST_SECONDS = 0.1
MAX_REST_SECONDS = 30.0
CALM_SECONDS = 60.0
"""Work that went on for so long before it failed is not resting longer than the first time."""


_BEFORE_EACH: list[Callable[[], None]] = []


def begin_each_with(first: Callable[[], None] | None) -> None:
    """Let every thread that is started from now on do this first; None: nothing."""
    _BEFORE_EACH[:] = [] if first is None else [first]


def guarded_thread(
    name: str,
    run: Callable[[], None],
    *,
    recover: Callable[[Exception], None] = lambda failure: None,
    max_rest_seconds: float = MAX_REST_SECONDS,
) -> threading.Thread:
    """Return a thread, not started, that does ``run`` until it returns.

    Args:
        name: of the thread; what its failures are counted under.
        run: the work; begun again after it raised.
        recover: called in the thread before that, with what was raised.
        max_rest_seconds: between two beginnings at most.
    """
    arguments = (run, recover, max_rest_seconds, tuple(_BEFORE_EACH))
    return threading.Thread(target=_keep_going, args=arguments, name=name, daemon=True)


def _keep_going(
    run: Callable[[], None],
    recover: Callable[[Exception], None],
    max_rest_seconds: float,
    before: Sequence[Callable[[], None]],
) -> None:
    for first in before:
        first()
    failure: Exception | None = None
    failures = 0
    while True:
        began = time.monotonic()
        try:
            if failure is not None:
                recover(failure)
            run()
            return
        except Exception as exc:  # the one guard of every thread
            failure = exc
        failures = 1 if time.monotonic() - began >= CALM_SECONDS else failures + 1
        _tell(failure)
        time.sleep(doubled(FIRST_REST_SECONDS, max_rest_seconds, failures - 1))


def _tell(failure: Exception) -> None:
    details = (type(failure), failure, failure.__traceback__, threading.current_thread())
    try:
        threading.excepthook(threading.ExceptHookArgs(details))
    except Exception:  # telling must not end what it tells of
        sys.excepthook(*sys.exc_info())


def place_of(failure: BaseException) -> str:
    """Return where it was raised, as ``http.py:320``."""
    step = failure.__traceback__
    if step is None:
        return "?"
    while step.tb_next is not None:
        step = step.tb_next
    return f"{step.tb_frame.f_code.co_filename.rpartition('/')[2]}:{step.tb_lineno}"
