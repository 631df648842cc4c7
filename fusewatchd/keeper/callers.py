"""Who waits for a FUSE server, from ``/proc``: the pod of a caller, and its pending signals.

The caller of a request that is not answered is there: it cannot end before.
"""

from __future__ import annotations

from fusewatchd.keeper.signals import Signal, pending
from fusewatchd.linux.procfs import PROC, open_process
from fusewatchd.parse.cgroups import cgroup_lines


class Callers:
    """Looks at callers by their thread id, in the keeper's own pid namespace."""

    def __init__(self, proc: str = PROC) -> None:
        """Look below this directory."""
        self._proc = proc

    def cgroups(self, pid: int) -> list[str]:
        """Return the cgroup of each hierarchy; none where the caller cannot be seen."""
        try:
            with open_process(pid, self._proc) as process:
                return [line.path for line in cgroup_lines(process.cgroup())]
        except OSError:
            return []

    def signal(self, pid: int) -> Signal:
        """Return for what this caller has to be let go now."""
        try:
            with open_process(pid, self._proc) as process:
                return pending(process.read("status"))
        except (FileNotFoundError, ProcessLookupError):
            return Signal.KILL
        except OSError:
            # It may be killed, and this cannot tell: nothing waits that SIGKILL cannot end.
            return Signal.KILL
