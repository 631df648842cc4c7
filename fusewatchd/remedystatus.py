"""What ``status`` shows of dead sources and of servers that are started again."""

from __future__ import annotations

from fusewatchd.documents import PATH_LIMIT, Clocks, Document, shown
from fusewatchd.remedies import DeadSource, Trouble
from fusewatchd.verdicts import Reason


def dead_source_document(source: DeadSource, clocks: Clocks) -> Document:
    """Return what is known of a dead source."""
    return {
        "source": shown(source.path, PATH_LIMIT),
        "device": str(source.mount.device),
        "mount_id": source.mount.mount_id,
        "driver": shown(source.driver) or None,
        "layers": source.layers,
        "binds": len(source.binds),
        "since": clocks.date(source.since),
        "held_back": source.held_back.value if source.held_back is not Reason.NONE else None,
    }


def trouble_document(trouble: Trouble, clocks: Clocks) -> Document:
    """Return what was tried for a server that is gone, and what comes next."""
    last = trouble.last
    return {
        "place": shown(trouble.place, PATH_LIMIT),
        "driver": shown(trouble.driver) or None,
        "kind": trouble.kind.value,
        "attempts": trouble.attempts,
        "held_back": trouble.held_back.value if trouble.held_back is not Reason.NONE else None,
        "retry_at": clocks.date(trouble.retry_at),
        "last": None
        if last is None
        else {
            "at": clocks.date(last.finished_at),
            "outcome": last.result.value,
            "status": last.status,
            "output": shown(last.detail.strip()),
        },
    }
