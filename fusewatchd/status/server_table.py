"""The lines of the status table that tell of servers, and of who holds files of dead mounts.

Made from the document of ``status`` alone, whose texts are escaped already.
"""

from __future__ import annotations

from fusewatchd.model.servers import OomKill
from fusewatchd.status.values import Document, pod_name
from fusewatchd.text import SHORT_ID, counted, duration_text

MAX_SHOWN = 20
"""Processes listed below one dead mount; ``--json`` has more."""


def server_lines(document: Document) -> list[str]:
    """Return two lines for each source whose server was gone and came back, or was gone often."""
    lines = []
    for server in document["servers"]:
        # Of the first one that goes on, the line of the outage says it all.
        if server["outages"] < 2 and not server["restarts"]:
            continue
        now = ", ".join(map(process_text, server["processes"])) or "no process known"
        lines.append(f"Server of {server['source']}: {now}")
        parts = [counted(server["outages"], "outage"), counted(server["restarts"], "restart")]
        if server["oom_kills"]:
            parts.append(counted(server["oom_kills"], "OOM kill"))
        if server["last_outage_ms"] is not None:
            parts.append(f"the last for {duration_text(server['last_outage_ms'] / 1000)}")
        if server["last_end"] is not None:
            parts.append(end_text(server["last_end"]))
        lines.append(f"  {', '.join(parts)}")
    return lines


def end_text(end: Document) -> str:
    """Return ``python3 (pid 12) of pod shop/fuse-0, killed by SIGKILL``."""
    process = end["process"]
    text = end["how"] if process is None else f"{process_text(process)}, {end['how']}"
    is_said = end["oom_kill"] == OomKill.YES.value or not end["oom_evidence"]
    return str(text) if is_said else f"{text} ({end['oom_evidence']})"


def holder_lines(document: Document) -> list[str]:
    """Return a line for each dead mount that processes hold, and for each process."""
    lines = []
    for holding in document["dead_mount_holders"]:
        count, holders = holding["processes"], holding["holders"]
        verb = "holds" if count == 1 else "hold"
        where = holding["source"] or f"device {holding['device']}"
        what = f"{counted(count, 'process', 'processes')} still {verb} files of the dead mount"
        lines.append(f"{what} of {where}:")
        lines += [f"  {holder_text(holder)}" for holder in holders[:MAX_SHOWN]]
        if count > len(holders[:MAX_SHOWN]):
            lines.append(f"  and {count - len(holders[:MAX_SHOWN])} more")
    return lines


def holder_text(holder: Document) -> str:
    """Return ``pod shop/web-0, pid 12 python3 (2 open files)``."""
    parts = _place(holder)
    parts.append(f"pid {holder['pid']} {holder['name']}")
    files, areas = holder["open_files"], holder["mapped_areas"]
    held = [counted(files, "open file")] if files else []
    held += [counted(areas, "mapped area")] if areas else []
    held += ["its directory"] if holder["directory"] else []
    held += ["the root of the mount: the pod needs a restart"] if holder.get("roots") else []
    return f"{', '.join(parts)} ({', '.join(held)})"


def process_text(process: Document) -> str:
    """Return ``python3 (pid 12) of pod shop/fuse-0``."""
    name = process["name"] or "a process"
    place = ", ".join(_place(process))
    return f"{name} (pid {process['pid']}){f' of {place}' if place else ''}"


def _place(process: Document) -> list[str]:
    """Return pod and container, or the unit; nothing where none of them is known."""
    parts = []
    if process["pod"] is not None:
        parts.append(f"pod {pod_name(process['pod'])}")
    if process["container"]:
        parts.append(f"container {process['container'][:SHORT_ID]}")
    if process["unit"]:
        parts.append(f"unit {process['unit']}")
    return parts
