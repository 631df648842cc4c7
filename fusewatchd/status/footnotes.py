"""What the status table says below the mounts: outages, servers, limits; pure.

Made from the document of ``status`` alone, whose texts are escaped already.
"""

from __future__ import annotations

from fusewatchd.model.verdicts import Reason
from fusewatchd.status.accounts import accounts_lines
from fusewatchd.status.server_table import end_text, holder_lines, server_lines
from fusewatchd.status.values import Document, clock, owner_name, pod_name, quota_text
from fusewatchd.text import counted, duration_text

PAST_OUTAGES = 8
"""Of those that have ended; ``--json`` and the status page have more."""
Line = str | tuple[str, str]
"""All of it, or the words before a path."""


def footnotes(document: Document) -> list[list[Line]]:
    """Return paragraphs; those about what is wrong now come first."""
    paragraphs: list[list[Line]] = [
        _gaps(document), [*accounts_lines(document)], _outages(document), _dead_sources(document),
        _actions(document), _flapping(document), _over_quota(document), _degraded(document),
        _dead_roots(document), [*holder_lines(document)], [*server_lines(document)],
        _past_outages(document),
        _not_entered(document), _orphans(document),
    ]  # fmt: skip
    return [paragraph for paragraph in paragraphs if paragraph]


def _dead_roots(document: Document) -> list[Line]:
    """Name the containers that have lost a part of their image."""
    return [
        (f"Image of pod {pod_name(root['pod'])} has a dead layer, restart the pod: ", root["layer"])
        for root in document["dead_roots"]
    ]


def _outages(document: Document) -> list[Line]:
    lines: list[Line] = []
    now = document["printed_at"]
    for incident in document["incidents"]:
        since = clock(incident["server_gone_at"] or incident["noticed_at"], now)
        opened = f"{incident['open']} of {counted(incident['binds'], 'mount')} still broken"
        head = f"Outage since {since}: {opened}, {_source_state(incident)}: "
        lines.append((head, incident["source"] or f"device {incident['device']}"))
        if incident["server_end"] is not None:
            lines.append(f"  its server: {end_text(incident['server_end'])}")
    return lines


def _source_state(incident: Document) -> str:
    if incident["source"] is None:
        return Reason.NO_SOURCE.value
    if incident["source_refused"]:
        return f"source is back, refused: {incident['source_refused']}"
    return "source is back" if incident["source_up_at"] else "source not mounted"


def _past_outages(document: Document) -> list[Line]:
    """Return the last outages that have ended, newest first."""
    lines: list[Line] = []
    for outage in document["outages"][: -PAST_OUTAGES - 1 : -1]:
        when = clock(outage["server_gone_at"] or outage["noticed_at"], document["printed_at"])
        mounts = f"{outage['recovered']} of {counted(outage['binds'], 'mount')} recovered"
        lasted = outage["lasted_ms"]
        length = "" if lasted is None else f" after {duration_text(lasted / 1000)}"
        lines.append((f"Outage at {when}, {mounts}{length}: ", outage["source"] or "no source"))
    return lines


def _dead_sources(document: Document) -> list[Line]:
    lines: list[Line] = []
    for source in document["dead_sources"]:
        since = clock(source["since"], document["printed_at"])
        why = source["held_back"] or "being detached"
        lines.append((f"Source mount is dead since {since} ({why}): ", source["source"]))
    return lines


def _actions(document: Document) -> list[Line]:
    lines: list[Line] = []
    for action in document["on_stale"]:
        why = action["held_back"] or "running"
        tries = f", {counted(action['attempts'], 'attempt')}" if action["attempts"] else ""
        last = f", the last one {action['last']['outcome']}" if action["last"] else ""
        head = f"Restart of a server by {action['kind']} ({why}{tries}{last}): "
        lines.append((head, action["place"]))
    return lines


def _flapping(document: Document) -> list[Line]:
    return [
        (f"Flapping source, must stay for {pause['wait_seconds']:.1f} s: ", pause["source"])
        for pause in document["flapping_sources"]
    ]


def _not_entered(document: Document) -> list[Line]:
    namespaces = document["namespaces"]
    count, stale = namespaces["not_entered_count"], namespaces["not_entered_stale_mounts"]
    what = f"{counted(count, 'other mount namespace')} with FUSE mounts, never entered"
    return [f"{what} ({stale} stale there)"] if count else []


def _over_quota(document: Document) -> list[Line]:
    return [
        f"Above its quota since {clock(one['since'], document['printed_at'])}:"
        f" {owner_name(one)}: {quota_text(one)}"
        for one in document["refused_owners"]
    ]


def _degraded(document: Document) -> list[Line]:
    return [
        f"Without {one['what']}: {one['why']}; {one['instead']}" for one in document["degraded"]
    ]


def _gaps(document: Document) -> list[Line]:
    return [f"Could not see {gap['source']}: {gap['reason']}" for gap in document["gaps"]]


def _orphans(document: Document) -> list[Line]:
    layers = document["orphans_detached"]["layers"]
    return [f"{counted(layers, 'dead mount')} of deleted pods detached"] if layers else []
