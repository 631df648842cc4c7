"""What the daemon is compared with: what node agents do today."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress

POLL_SECONDS = 5.0


class PollingAgent:
    """Looks every five seconds and stacks ``mount --bind`` over what is dead, one by one.

    What it cannot do is not held against it: containers must follow the host.
    """

    def __init__(self, source: str, targets: Sequence[str]) -> None:
        """Watch these binds of one source; nothing happens before ``start``."""
        self._source = source
        self._targets = targets
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to look, the first time in five seconds."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round that is under way."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            if self._is_dead(self._source):
                continue
            for target in self._targets:
                if self._is_dead(target):
                    subprocess.run(["mount", "--bind", self._source, target], check=False)

    @staticmethod
    def _is_dead(path: str) -> bool:
        with suppress(OSError):
            os.statvfs(path)
            return False
        return True
