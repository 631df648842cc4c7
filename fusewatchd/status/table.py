"""The table that ``fusewatchd check`` and ``fusewatchd status`` print for people.

Made from the document of ``status`` alone, whose texts are escaped already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fusewatchd.model.verdicts import Verdict
from fusewatchd.status.server_table import end_text, holder_lines, server_lines
from fusewatchd.status.values import Document, owner_name, quota_text, words
from fusewatchd.text import SHORT_ID, counted, duration_text

_COLOURS: Mapping[str, str] = {
    Verdict.HEALTHY.value: "32",
    Verdict.STALE.value: "1;31",
    Verdict.HUNG.value: "1;31",
    Verdict.BARE.value: "1;31",
    Verdict.ON_DISK.value: "1;31",
}
_OTHER_COLOUR = "33"
_VERDICT_WIDTH = max(len(verdict.value) for verdict in Verdict)
_ORDER = {"subpath": 1, "container": 2}
"""By kind; all others come first."""
_Line = str | tuple[str, str]
"""All of it, or the words before a path."""
PAST_OUTAGES = 8
"""Of those that are over; ``--json`` and the status page have more."""
MIN_WIDTH = 60


def status_table(document: Document, width: int, color: bool) -> str:
    """Return the document as lines of at most ``width`` columns, at least ``MIN_WIDTH``.

    Binds stand below their source, each source's worst ones first.
    """
    width = max(width, MIN_WIDTH)
    lines = [_fit(_headline(document), width)]
    widths = _widths(document["binds"], width)
    for group in _by_source(document["binds"]):
        lines += ["", _source_line(group, width)]
        lines += [_bind_line(bind, widths, color) for bind in group]
    for paragraph in (
        _outages(document), _past_outages(document), server_lines(document),
        holder_lines(document), _dead_sources(document), _actions(document), _flapping(document),
        _not_entered(document), _over_quota(document), _degraded(document),
        _gaps(document),
    ):  # fmt: skip
        if paragraph:
            lines += ["", *(_line(about, width) for about in paragraph)]
    return "\n".join(lines) + "\n"


def _headline(document: Document) -> str:
    totals = document["totals"]
    binds, volumes = counted(totals["binds"], "bind"), counted(totals["volumes"], "volume")
    parts = [f"{count} {name}" for name, count in totals["verdicts"].items() if count]
    latest = document["last_recovery"]
    if latest is not None:
        parts.append(f"last recovery {_clock(latest['at'])} in {latest['took_ms']:.1f} ms")
    layers = document["orphans_detached"]["layers"]
    if layers:
        parts.append(f"{counted(layers, 'dead layer')} of ended pods detached")
    head = f"{binds} of {volumes} in {counted(totals['pods'], 'pod')}"
    return f"{head}: {', '.join(parts)}" if parts else head


def _by_source(binds: Iterable[Document]) -> list[list[Document]]:
    groups: dict[tuple[bool, str], list[Document]] = {}
    for bind in binds:
        path = bind["source"]["path"]
        groups.setdefault((path is None, path or ""), []).append(bind)
    return [sorted(groups[key], key=_rank) for key in sorted(groups)]


def _rank(bind: Document) -> tuple[bool, str, str, int, str]:
    pod = bind["pod"]
    return (
        bind["verdict"] == Verdict.HEALTHY.value,
        pod["namespace"] or "~",
        pod["name"] or pod["uid"],
        _ORDER.get(bind["kind"], 0),
        bind["mount_point"],
    )


def _source_line(group: Sequence[Document], width: int) -> str:
    first = group[0]
    source = first["source"]
    if source["path"] is None:
        return _fit(f"No known source ({source['why']})", width)
    drivers = ", ".join(sorted({bind["driver"] for bind in group if bind["driver"]}))
    tail = f"  {drivers}" if drivers else ""
    tail = _fit(f"{tail}  (by {source['rule'] or '?'})", width // 2)
    return _shorten(source["path"], width - len(tail)) + tail


@dataclass(frozen=True, slots=True)
class _Widths:
    """Columns that all groups share, so that verdicts and pods stand in line."""

    pod: int
    place: int
    note: int


def _widths(binds: Sequence[Document], width: int) -> _Widths:
    """Share the width out: what is not needed by one column goes to the next."""
    wide = width - 2 - _VERDICT_WIDTH - 2
    pod = min(_longest(map(_pod_name, binds)), max(16, wide // 3))
    rest = wide - pod - 2
    has_notes = any(map(_note, binds))
    place = min(_longest(map(_place, binds)), max(14, rest // 2) if has_notes else rest)
    return _Widths(pod, place, rest - place - 2)


def _longest(texts: Iterable[str]) -> int:
    return max(map(len, texts), default=0)


def _bind_line(bind: Document, widths: _Widths, color: bool) -> str:
    verdict = f"{bind['verdict']:<{_VERDICT_WIDTH}}"
    if color:
        verdict = f"\x1b[{_COLOURS.get(bind['verdict'], _OTHER_COLOUR)}m{verdict}\x1b[0m"
    pod = _shorten(_pod_name(bind), widths.pod)
    place = _shorten(_place(bind), widths.place)
    note = _fit(_note(bind), widths.note)
    line = f"  {verdict}  {pod:<{widths.pod}}  {place:<{widths.place}}  {note}"
    return line.rstrip()


def _pod_name(bind: Document) -> str:
    pod = bind["pod"]
    return f"{pod['namespace']}/{pod['name']}" if pod["name"] else f"pod {pod['uid']}"


def _place(bind: Document) -> str:
    kind, container = bind["kind"], bind["container"]
    if kind == "container":
        short = container[:SHORT_ID] if container else ""
        return f"{short}:{bind['mount_point']}" if short else str(bind["mount_point"])
    if kind == "subpath":
        return f"{bind['volume']} ({container} subPath)"
    return str(bind["volume"])


def _note(bind: Document) -> str:
    parts = []
    if bind["verdict"] != Verdict.HEALTHY.value:
        parts.append(words(bind["refusal"]) if bind["refusal"] else bind["evidence"])
    elif bind["last_recovery"] is not None:
        recovery = bind["last_recovery"]
        parts.append(f"recovered {_clock(recovery['at'])}, {recovery['took_ms']:.1f} ms")
        parts += [recovery["narrower"] or "", recovery["wider"] or ""]
    if bind["depth"] > 1:
        parts.append(f"{bind['depth']} layers")
    if bind.get("dead_layers"):
        parts.insert(0, f"{counted(bind['dead_layers'], 'dead layer')} below")
    return ", ".join(part for part in parts if part)


def _outages(document: Document) -> list[_Line]:
    lines: list[_Line] = []
    for incident in document["incidents"]:
        since = _clock(incident["server_gone_at"] or incident["noticed_at"])
        opened = f"{incident['open']} of {counted(incident['binds'], 'bind')}"
        head = f"Outage since {since}, {opened} open, {_source_state(incident)}: "
        lines.append((head, incident["source"] or f"device {incident['device']}"))
        if incident["server_end"] is not None:
            lines.append(f"  its server: {end_text(incident['server_end'])}")
    return lines


def _past_outages(document: Document) -> list[_Line]:
    """Tell the last outages that are over, newest first."""
    lines: list[_Line] = []
    for outage in document["outages"][: -PAST_OUTAGES - 1 : -1]:
        when = _clock(outage["server_gone_at"] or outage["noticed_at"])
        binds = f"{outage['recovered']} of {counted(outage['binds'], 'bind')} recovered"
        lasted = outage["lasted_ms"]
        length = "" if lasted is None else f" after {duration_text(lasted / 1000)}"
        lines.append((f"Outage at {when}, {binds}{length}: ", outage["source"] or "no source"))
    return lines


def _dead_sources(document: Document) -> list[_Line]:
    lines: list[_Line] = []
    for source in document["dead_sources"]:
        why = words(source["held_back"] or "being detached")
        head = f"Dead itself since {_clock(source['since'])} ({why}): "
        lines.append((head, source["source"]))
    return lines


def _actions(document: Document) -> list[_Line]:
    lines: list[_Line] = []
    for action in document["on_stale"]:
        why = action["held_back"] or "running"
        tries = f", {counted(action['attempts'], 'attempt')}" if action["attempts"] else ""
        last = f", the last one {action['last']['outcome']}" if action["last"] else ""
        head = f"Server to be started by {action['kind']} ({why}{tries}{last}): "
        lines.append((words(head), action["place"]))
    return lines


def _source_state(incident: Document) -> str:
    if incident["source"] is None:
        return "no known source"
    if incident["source_refused"]:
        return f"source back, refused: {words(incident['source_refused'])}"
    return "source back" if incident["source_up_at"] else "source missing"


def _flapping(document: Document) -> list[_Line]:
    return [
        (f"Comes and goes, must stay for {pause['wait_seconds']:.1f} s: ", pause["source"])
        for pause in document["flapping_sources"]
    ]


def _not_entered(document: Document) -> list[_Line]:
    namespaces = document["namespaces"]
    count, stale = namespaces["not_entered_count"], namespaces["not_entered_stale_mounts"]
    what = f"{counted(count, 'other mount namespace')} with FUSE mounts, never entered"
    return [f"{what} ({stale} stale there)"] if count else []


def _over_quota(document: Document) -> list[_Line]:
    return [
        f"Over its quota since {_clock(one['since'])}: {owner_name(one)}: {quota_text(one)}"
        for one in document["refused_owners"]
    ]


def _degraded(document: Document) -> list[_Line]:
    return [
        f"Goes on without {one['what']}: {one['why']}; {one['instead']}"
        for one in document["degraded"]
    ]


def _gaps(document: Document) -> list[_Line]:
    return [f"Could not see {gap['source']}: {gap['reason']}" for gap in document["gaps"]]


def _line(about: _Line, width: int) -> str:
    if isinstance(about, tuple):
        about = about[0] + _shorten(about[1], width - len(about[0]))
    return _fit(about, width)


def _clock(date: str) -> str:
    """Return the time of day in UTC of a date in the document."""
    return f"{date[11:19]}Z"


def _fit(text: str, width: int) -> str:
    """Cut at the end."""
    return text if len(text) <= max(0, width) else text[: max(0, width - 1)] + "…"


def _shorten(path: str, width: int) -> str:
    """Cut in the middle: both the top directory and the last name tell things apart."""
    if len(path) <= width:
        return path
    head = (width - 1) // 3
    return f"{path[:head]}…{path[len(path) - (width - 1 - head) :]}"
