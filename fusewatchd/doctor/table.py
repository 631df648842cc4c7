"""Findings as lines for a person."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from fusewatchd.doctor.findings import Finding, Level, counts
from fusewatchd.text import counted

MAX_FINE_PODS = 10
"""Pods that need nobody are listed up to here; the rest is counted."""
MIN_WIDTH = 60
_COLOURS = {Level.OK: "32", Level.WARN: "33", Level.FAIL: "1;31"}
_CHECK_WIDTH = 15


def table(findings: Sequence[Finding], width: int, color: bool) -> str:
    """Return lines of at most ``width`` columns, as far as words allow."""
    width = max(width, MIN_WIDTH)
    fine = [f for f in findings if f.level is Level.OK and f.check.startswith("pod ")]
    left_out = fine[MAX_FINE_PODS:]
    lines: list[str] = []
    for finding in findings:
        if finding not in left_out:
            lines += _lines(finding, width, color)
    if left_out:
        lines.append(f"      and {len(left_out)} more pods that are ok")
    total = counts(findings)
    lines += ["", f"{total['ok']} ok, {counted(total['warn'], 'warning')}, {total['fail']} failed"]
    return "\n".join(lines)


def _lines(finding: Finding, width: int, color: bool) -> list[str]:
    level = f"{finding.level.value:<4}"
    if color:
        level = f"\x1b[{_COLOURS[finding.level]}m{level}\x1b[0m"
    lead = " " * (6 + _CHECK_WIDTH + 2)
    room = width - len(lead)
    name = finding.check
    text = finding.text
    words = textwrap.wrap(text, room, break_on_hyphens=False) or [""]
    advice = textwrap.wrap(finding.advice, room - 2, break_on_hyphens=False)
    if len(name) > _CHECK_WIDTH:
        # The name of a pod or of a key may need a line of its own.
        first, rest = f"{level}  {name}", [lead + line for line in words]
    else:
        first = f"{level}  {name:<{_CHECK_WIDTH}}  {words[0]}"
        rest = [lead + line for line in words[1:]]
    arrows = [f"{lead}{'→ ' if n == 0 else '  '}{line}" for n, line in enumerate(advice)]
    return [first, *rest, *arrows]
