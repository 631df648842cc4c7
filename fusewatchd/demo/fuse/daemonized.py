"""FUSE servers that go on by themselves: what starts them mounts, forks, and ends.

Most programs on libfuse do so unless told ``-f``.  Nothing says which process it is then.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from contextlib import suppress

from fusewatchd.errors import FusewatchError
from fusewatchd.linux.procfs import list_pids, open_process


class DetachedServer:
    """As much of ``subprocess.Popen`` as a server needs, for one that somebody else started."""

    stdout = None

    def __init__(self, mount_point: str) -> None:
        """Find the server of a mount point that was given to it as an argument.

        Raises:
            FusewatchError: no process that names the path has ``/dev/fuse`` open.
        """
        found = [who for pid in list_pids() if (who := _serves_since(pid, mount_point))]
        if not found:
            raise FusewatchError(f"no process serves {mount_point}")
        # An old server may drain beside it.
        self.pid = max(found)[1]
        self._pidfd = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        """Return None as long as it runs, then 0: only its parent learns the status."""
        return 0 if self._pidfd < 0 or self._has_ended(0) else None

    def wait(self, timeout: float) -> int:
        """Wait for the end; ``timeout`` in seconds.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        if self._pidfd >= 0 and not self._has_ended(timeout):
            raise subprocess.TimeoutExpired(f"server {self.pid}", timeout)
        return 0

    def send_signal(self, number: int) -> None:
        """Send a signal, to this process and no other; nothing once it has ended."""
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _has_ended(self, timeout: float) -> bool:
        if not select.select([self._pidfd], [], [], timeout)[0]:
            return False
        # It is our child if we adopt orphans.
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        self._pidfd = -1
        return True


def _serves_since(pid: int, mount_point: str) -> tuple[int, int] | None:
    """Return start time and pid of a server of this mount point."""
    try:
        with open_process(pid) as process:
            if os.fsencode(mount_point) not in process.read("cmdline").split(b"\0"):
                return None
            with process.descriptors() as fds:
                links = [os.readlink(name, dir_fd=fds) for name in os.listdir(fds)]
            return (process.stat()[2], pid) if "/dev/fuse" in links else None
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
