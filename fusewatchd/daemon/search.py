"""Waiting for the kubelet: as long as it is not known where it works, it is looked for.

Meanwhile the process keeps its rights, for it may have to begin again in another mount namespace;
its threads give up theirs at once.
"""

from __future__ import annotations

import time

from fusewatchd.daemon.placement import is_in_first_namespace
from fusewatchd.daemon.wiring import Node
from fusewatchd.linux import seccomp
from fusewatchd.log import Log
from fusewatchd.observe.kubelet.place import HERE, Place, find_place
from fusewatchd.observe.kubelet.processes import find_kubelet
from fusewatchd.threads import begin_each_with
from fusewatchd.workers.confinement import confine, filter_of
from fusewatchd.workers.privileges import PRIVILEGES, Kind

PERIOD_SECONDS = 2.0
SLOW_FACTOR = 50
"""After a look that took t, the next one is 50 t later at least."""


class Search:
    """Looks for the kubelet's mount namespace and directory until both are known."""

    def __init__(self, configured: str, place: Place, node: Node, log: Log) -> None:
        """Begin with what was found at the start; ``configured`` is ``kubelet.root``."""
        self.found = False
        """They are known by now, and this process has to begin again."""
        self.due_at: float | None = None
        """When to ``look``; None: never again."""
        self._configured = configured
        self._node = node
        self._log = log
        node.observer.place_problem = place.problem

    def begin(self) -> None:
        """Give up rights, as far as they are needed no longer.

        To be called when everything that takes them is open, and no thread is there.
        """
        if self._node.observer.place_problem or not self._node.kubelet.is_found:
            self.due_at = 0.0
            begin_each_with(_give_up_rights)
        else:
            _give_up_rights()
        if problem := seccomp.problem():
            text = "no process has a filter of system calls of its own"
            self._log.warning(text, event="no_seccomp", problem=problem)

    def look(self, now: float) -> bool:
        """Look for both; True when something else than before is to be told."""
        began = time.monotonic()
        place = find_place(self._configured) if is_in_first_namespace() else HERE
        if place.pid:
            self._begin_again("the kubelet works in another mount namespace", pid=place.pid)
            return False
        node = self._node
        if not node.kubelet.is_found:
            directory = find_kubelet(self._configured, node.table.table())
            if directory.is_found:
                self._begin_again("the kubelet's directory is there", kubelet_root=directory.root)
                return False
        has_changed = node.observer.place_problem != place.problem
        node.observer.place_problem = place.problem
        if place.is_here and node.kubelet.is_found:
            self.due_at = None
            begin_each_with(None)
            _give_up_rights()
        else:
            elapsed = time.monotonic() - began
            self.due_at = now + max(PERIOD_SECONDS, SLOW_FACTOR * elapsed)
        return has_changed

    def _begin_again(self, text: str, **fields: int | str) -> None:
        self.found = True
        self._log.info(f"{text}: begins again", event="begins_again", **fields)


def _give_up_rights() -> None:
    own = PRIVILEGES[Kind.CORE]
    confine(own, filter_of(own))
