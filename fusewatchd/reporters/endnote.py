"""What an Event says of the end of a server, and of the error of a new one.

The note of an Event must stay the same from one outage to the next, or no count ever rises: so
there are a few sentences and the name of a unit, which a restarted service keeps, and neither
processes nor times.  The server's pod is what the Event is *related* to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fusewatchd.decision import Finding
from fusewatchd.errors import error_name
from fusewatchd.liveness import OomKill, ServerEnd
from fusewatchd.printable import printable
from fusewatchd.reporters.base import EventDraft, pod_reference
from fusewatchd.reporters.serverfields import pod_of_server
from fusewatchd.snapshot import Snapshot

_OUT_OF_MEMORY = " The kernel killed it, or another process of its cgroup, for lack of memory."
MAX_UNIT = 80


def with_end(draft: EventDraft, end: ServerEnd | None, snapshot: Snapshot) -> EventDraft:
    """Add what is known of the end of a server."""
    if end is None or end.server is None:
        return draft
    note = draft.note
    if end.server.unit.endswith(".service"):  # scopes are named anew each time
        note += f" The server was unit {printable(end.server.unit, MAX_UNIT)}."
    if end.oom is OomKill.YES:
        note += _OUT_OF_MEMORY
    pod = pod_of_server(end.server, snapshot)
    related = pod_reference(pod) if pod is not None else None
    return replace(draft, note=note, related=related)


def with_error(draft: EventDraft, hit: Iterable[Finding]) -> EventDraft:
    """Add with what the new server of these binds answers, where that is in the way."""
    number = next((finding.source_errno for finding in hit if finding.source_errno), 0)
    if not number:
        return draft
    return replace(draft, note=f"{draft.note} The new server answers with {error_name(number)}.")
