"""How an order to try now changes what the daemon remembers; pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fusewatchd.model.findings import Finding
from fusewatchd.model.ledger import Ledger
from fusewatchd.plan.budget import source_of


def tried_now(ledger: Ledger, findings: Iterable[Finding]) -> Ledger:
    """Return the memory with nothing to wait for: no back-off, no flapping of their sources.

    What was counted stays: the next failure is followed by as long a back-off as before.  Budget,
    quotas and everything that a safety check refuses are as they were.
    """
    states, sources = dict(ledger.states), dict(ledger.sources)
    attempts = dict(ledger.server_actions.attempts)
    for finding in findings:
        key, path = finding.bind.key, source_of(finding)
        if key in states:
            states[key] = replace(states[key], retry_at=0.0)
        if path in sources:
            sources[path] = replace(sources[path], unused_mounts=())
        for place in {path, key.mount_point} & attempts.keys():
            attempts[place] = replace(attempts[place], retry_at=0.0)
    servers = replace(ledger.server_actions, attempts=attempts)
    return replace(ledger, states=states, sources=sources, server_actions=servers)
