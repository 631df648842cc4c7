"""``fusewatchd check``: one look at the node, without changing anything."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from fusewatchd.config.settings import Settings, override
from fusewatchd.daemon.placement import take_place
from fusewatchd.daemon.wiring import Node
from fusewatchd.errors import ParseError
from fusewatchd.model.cycle import Trigger
from fusewatchd.model.plan import RecoveryMode
from fusewatchd.state.saver import recall


def look_once(settings: Settings) -> Any:
    """Look at the node without changing anything; return the status document.

    What an earlier run wrote down is believed as a daemon would believe it.

    Raises:
        FusewatchError: the kernel does not allow a look.
        OSError: /proc cannot be read.
    """
    mode = settings.recovery.mode
    place = take_place(settings.kubelet.root)
    node = Node(override(settings, {"recovery.mode": RecoveryMode.REPORT.value}))
    node.observer.place_problem = place.problem
    started_wall, end = time.time(), time.monotonic() + settings.probe.deadline_seconds + 1.0
    try:
        with suppress(ParseError):
            noted = node.noted.recall()
            ledger = recall(settings.state_dir, node.table.table(), noted)
            node.observer.recall_stand_ins(ledger.stand_ins)
            node.reconciler.ledger = ledger
        node.ask_keeper()
        while True:
            cycle = node.reconciler.reconcile([Trigger.TIMER])
            node.observer.take_answers(time.monotonic())
            node.observer.take_scan((), time.monotonic())
            asked = all(
                (c.answer and not c.root.is_pending) or c.is_overdue or c.obstacle
                for c in cycle.snapshot.connections.values()
            )
            if (asked and cycle.snapshot.namespaces_looked_at) or time.monotonic() > end:
                break
            time.sleep(0.01)
        cycle = node.accounts.at_once(node.reconciler.reconcile([Trigger.TIMER]))
        document = node.document(cycle, started_wall)
        # What a daemon would do is told by what it is configured to do.
        return {**document, "mode": mode.value}
    finally:
        node.close()
