"""What ``explain`` says of a mount beside its verdict: directories, holders, layers; pure."""

from __future__ import annotations

from fusewatchd.status.advice import DEAD_LAYERS, NEEDS_RESTART
from fusewatchd.status.values import Document
from fusewatchd.text import counted


def remarks(document: Document, bind: Document) -> list[tuple[str, str]]:
    """Return a label and a sentence for each."""
    lines: list[tuple[str, str]] = []
    if (directory := bind["directory"]) is not None:
        disk = f"as the disk has it: {directory['root']} on device {directory['device']}"
        text = f"{directory['path']} on the node, below what is mounted there; {disk}"
        lines.append(("directory", text))
    if bind["pod"] in document["needs_restart"]:
        lines.append(("restart", NEEDS_RESTART))
    if (hidden := bind["hidden_files"]) is not None:
        lines.append(("files", _hidden(hidden)))
    if dead := bind.get("dead_layers"):
        lines.append(("layers", DEAD_LAYERS.format(layers=counted(dead, "dead layer"))))
    return lines


def _hidden(found: Document) -> str:
    files = counted(found["files"], "file")
    more = "" if found["is_whole"] else "at least "
    return (
        f"{more}{files}, {found['bytes']} bytes, in {found['path']} on the node, not in the volume"
    )
