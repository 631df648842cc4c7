"""Waiting for what another process or thread does."""

from __future__ import annotations

import time
from collections.abc import Callable

from fusewatchd.demo.timeouts import patient

DEADLINE_SECONDS = 20.0


def wait_until(
    condition: Callable[[], object],
    what: Callable[[], str] = lambda: "",
    seconds: float = DEADLINE_SECONDS,
) -> None:
    """Return once a condition holds; fail with what ``what`` tells when it does not in time."""
    end = time.monotonic() + patient(seconds)
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.01)
