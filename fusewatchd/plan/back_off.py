"""Delays after failures; pure."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from fusewatchd.model.mounts import TargetKey
from fusewatchd.rate_limit import doubled


@dataclass(frozen=True, slots=True)
class BackOff:
    """Delays after failures in a row: exponential, bounded, spread."""

    initial_seconds: float = 0.25
    max_seconds: float = 60.0

    def delay(self, key: TargetKey, failures: int) -> float:
        """Return the delay after this many failures, spread by ±20 % per target.

        The spread is a property of the target and the count, so that the same history
        always gives the same plan.
        """
        full = doubled(self.initial_seconds, self.max_seconds, failures - 1)
        text = f"{key.namespace}:{key.mount_point}:{failures}"
        share = zlib.crc32(text.encode("utf-8", "surrogateescape")) / 0xFFFFFFFF
        return full * (0.8 + 0.4 * share)
