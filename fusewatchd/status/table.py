"""The table that ``fusewatchd check`` and ``fusewatchd status`` print for people.

Made from the document of ``status`` alone, whose texts are escaped already.  What is broken comes
first, grouped by cause; healthy mounts are a number unless all are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fusewatchd.model.verdicts import Verdict
from fusewatchd.status.causes import Cause, Severity, causes_of, pods_of
from fusewatchd.status.footnotes import Line, footnotes
from fusewatchd.status.values import Document, clock, fit, pod_name, shorten
from fusewatchd.text import SHORT_ID, counted

_COLOURS: Mapping[str, str] = {
    Verdict.HEALTHY.value: "32",
    Verdict.STALE.value: "1;31",
    Verdict.HUNG.value: "1;31",
    Verdict.BARE.value: "1;31",
    Verdict.ON_DISK.value: "1;31",
}
_OTHER_COLOUR = "33"
_VERDICT_WIDTH = max(len(verdict.value) for verdict in Verdict)
MIN_WIDTH = 60
MAX_ROWS = 12
"""Mounts of one cause; ``--all`` shows the others."""
REPORT_MODE = "Report mode: nothing is repaired. To repair, set recovery.mode: recover and reload."


@dataclass(frozen=True, slots=True)
class View:
    """How the table is to look."""

    width: int
    """Columns; at least ``MIN_WIDTH`` are used."""
    height: int = 0
    """Lines; what is more is cut above the last line.  0: any number."""
    is_coloured: bool = False
    shows_all: bool = False
    """Healthy mounts, too, and all of a cause."""


def status_table(document: Document, view: View) -> str:
    """Return the document as lines; the first says how the node is, the last what to type next."""
    width = max(view.width, MIN_WIDTH)
    causes = causes_of(document)
    head = [fit(_headline(document, causes), width)]
    if document["paused_until"] is not None:
        until = f"Paused until {document['paused_until']}: fusewatchd changes nothing on this node."
        head += [_paint(fit(until, width), _OTHER_COLOUR, view), "To end it: fusewatchd resume"]
    if document["mode"] == "report":
        head.append(_paint(fit(REPORT_MODE, width), _OTHER_COLOUR, view))
    lines = [*head, *_cause_lines(document, causes, view, width)]
    for paragraph in footnotes(document):
        lines += ["", *(_line(about, width) for about in paragraph)]
    last = fit(_next(document, causes), width)
    if view.height and len(lines) + 2 > view.height:
        room = max(1, view.height - 2)
        lines = [*lines[:room], f"({len(lines) - room} more lines)"]
    else:
        lines.append("")
    return "\n".join([*lines, last]) + "\n"


def _headline(document: Document, causes: Sequence[Cause]) -> str:
    totals = document["totals"]
    node = f"{document['node']}: " if document["node"] else ""
    if not totals["binds"]:
        return f"{node}no FUSE volumes in pods"
    counts = [f"{count} {name}" for name, count in totals["verdicts"].items() if count]
    broken = sum(len(cause.mounts) for cause in causes if cause.severity is Severity.BROKEN)
    mounts = counted(totals["binds"], "mount")
    head = f"{broken} of {mounts} broken" if broken else mounts
    volumes, pods = counted(totals["volumes"], "volume"), counted(totals["pods"], "pod")
    latest = document["last_recovery"]
    tail = f"; last recovery {clock(latest['at'], document['printed_at'])}" if latest else ""
    return f"{node}{head} ({', '.join(counts)}), {volumes}, {pods}{tail}"


def _cause_lines(document: Document, causes: Sequence[Cause], view: View, width: int) -> list[str]:
    shown = [c for c in causes if view.shows_all or c.severity is not Severity.HEALTHY]
    rows = [mount for cause in shown for mount in _rows(cause, view)]
    lines: list[str] = []
    if rows:
        widths = _widths(rows, width)
        heads = f"  {'VERDICT':<{_VERDICT_WIDTH}}  {'POD':<{widths.pod}}  {'MOUNT':<{widths.place}}"
        lines += ["", f"{heads}  {'DETAIL' if widths.note > 0 else ''}".rstrip()]
        for cause in shown:
            lines += ["", _heading(document, cause, width)]
            lines += [_row(mount, widths, view) for mount in _rows(cause, view)]
            if (more := len(cause.mounts) - len(_rows(cause, view))) > 0:
                lines.append(f"  and {more} more (--all)")
    folded = [m for c in causes if c not in shown for m in c.mounts]
    if folded:
        pods, volumes = len(pods_of(folded)), len({(m["pod"]["uid"], m["volume"]) for m in folded})
        what = f"{counted(len(folded), 'healthy mount')} of {counted(volumes, 'volume')}"
        lines += ["", f"{what} in {counted(pods, 'pod')} (--all lists them)"]
    return lines


def _rows(cause: Cause, view: View) -> Sequence[Document]:
    return cause.mounts if view.shows_all else cause.mounts[:MAX_ROWS]


def _heading(document: Document, cause: Cause, width: int) -> str:
    source = cause.first["source"]
    name = "healthy, with a warning" if cause.severity is Severity.WARNING else cause.name
    head = f"{name}{_since(document, cause)}: "
    if cause.source is None:
        return fit(f"{head}{source['why']}", width)
    drivers = ", ".join(sorted({mount["driver"] for mount in cause.mounts if mount["driver"]}))
    tail = f"  {drivers}" if drivers else ""
    tail = fit(f"{tail}  (by {source['rule'] or '?'})", max(0, width - len(head)) // 2)
    return fit(head + shorten(cause.source, width - len(head) - len(tail)) + tail, width)


def _since(document: Document, cause: Cause) -> str:
    if cause.severity is not Severity.BROKEN:
        return ""
    device = cause.first["device"]
    for one in document["incidents"]:
        if one["device"] == device or (one["source"] and one["source"] == cause.source):
            since = one["server_gone_at"] or one["noticed_at"]
            return f" since {clock(since, document['printed_at'])}"
    return ""


def _next(document: Document, causes: Sequence[Cause]) -> str:
    """Return what a person types next."""
    for cause in causes:
        if cause.severity <= Severity.UNWELL:
            return f"Next: fusewatchd explain {pod_name(cause.first['pod'])}"
    unexplained = document["accounts"]["unexplained"]
    is_doubtful = document["gaps"] or document["degraded"] or unexplained
    return "Next: fusewatchd doctor" if is_doubtful else "Nothing to do."


# --------------------------------------------------------------------------------- rows


@dataclass(frozen=True, slots=True)
class _Widths:
    """Columns that all groups share, so that verdicts and pods stand in line."""

    pod: int
    place: int
    note: int


def _widths(mounts: Sequence[Document], width: int) -> _Widths:
    """Share the width out: what is not needed by one column goes to the next."""
    wide = width - 2 - _VERDICT_WIDTH - 2
    pod = min(max(_longest(pod_name(m["pod"]) for m in mounts), 3), max(16, wide // 3))
    rest = wide - pod - 2
    has_notes = any(map(_note, mounts))
    place = min(max(_longest(map(_place, mounts)), 5), max(14, rest // 2) if has_notes else rest)
    return _Widths(pod, place, rest - place - 2 if has_notes else 0)


def _longest(texts: Iterable[str]) -> int:
    return max(map(len, texts), default=0)


def _row(mount: Document, widths: _Widths, view: View) -> str:
    colour = _COLOURS.get(mount["verdict"], _OTHER_COLOUR)
    verdict = _paint(f"{mount['verdict']:<{_VERDICT_WIDTH}}", colour, view)
    pod = shorten(pod_name(mount["pod"]), widths.pod)
    place = shorten(_place(mount), widths.place)
    note = fit(_note(mount), widths.note)
    return f"  {verdict}  {pod:<{widths.pod}}  {place:<{widths.place}}  {note}".rstrip()


def _paint(text: str, colour: str, view: View) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if view.is_coloured else text


def _place(mount: Document) -> str:
    kind, container = mount["kind"], mount["container"]
    if kind == "container":
        short = container[:SHORT_ID] if container else ""
        return f"{short}:{mount['mount_point']}" if short else str(mount["mount_point"])
    if kind == "subpath":
        return f"{mount['volume']} ({container} subPath)"
    return str(mount["volume"])


def _note(mount: Document) -> str:
    parts = []
    if mount.get("hidden_files"):
        parts.append(f"{counted(mount['hidden_files']['files'], 'file')} on the node's disk below")
    if mount.get("dead_layers"):
        parts.append(f"{counted(mount['dead_layers'], 'dead layer')} below")
    if mount["verdict"] != Verdict.HEALTHY.value:
        parts.append(mount["evidence"])
    elif mount["last_recovery"] is not None:
        recovery = mount["last_recovery"]
        parts += [recovery["narrower"] or "", recovery["wider"] or ""]
        parts.append(f"recovered {recovery['at'][:10]} {recovery['at'][11:19]}Z")
    if mount["failures"]:
        parts.append(counted(mount["failures"], "failed attempt"))
    if mount["depth"] > 1:
        parts.append(f"{mount['depth']} layers")
    return ", ".join(part for part in parts if part)


def _line(about: Line, width: int) -> str:
    if isinstance(about, tuple):
        about = about[0] + shorten(about[1], width - len(about[0]))
    return fit(about, width)
