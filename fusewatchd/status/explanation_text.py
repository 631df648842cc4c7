"""An explanation as text: a summary, then what is known of each mount; pure.

Mounts about which the same is to be said share a block.  Each line is a label and a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.status.advice import VERDICTS, Advice, filled
from fusewatchd.status.causes import Severity, severity_of
from fusewatchd.status.explain import Asked
from fusewatchd.status.reasons import REASONS
from fusewatchd.status.values import Document, pod_name
from fusewatchd.text import SHORT_ID, counted

MAX_MOUNTS = 50
"""Named in full as text; the document has them all."""
_LABEL_WIDTH = 12
_DATE = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
_OWN = frozenset({"pod", "volume", "kind"})
"""Labels of who a mount is: in a block of several they are in its first lines."""
_FIRST = frozenset({"identified", "evidence"})
"""Labels that may differ between mounts of one block, which has those of its first one."""


def explanation_text(explanation: Document) -> str:
    """Return lines for people and for grep."""
    mounts: Sequence[Document] = explanation["mounts"]
    lines: list[str] = []
    if explanation["asked"] == Asked.LOOK.value:
        lines += ["No fusewatchd is running: this command looked at the node once.", ""]
    lines += _summary(explanation)
    for block in _blocks(mounts[:MAX_MOUNTS]):
        lines += [*_block(block), ""]
    if len(mounts) > MAX_MOUNTS:
        lines.append(f"and {len(mounts) - MAX_MOUNTS} more: --json has them all")
    lines += [f"Could not see {gap['source']}: {gap['reason']}" for gap in explanation["gaps"]]
    return "\n".join(lines).rstrip("\n") + "\n"


def token_text(token: str) -> str | None:
    """Return what a reason or verdict means, and what to do; None: there is no such token."""
    advice: Advice | None = None
    if token in {reason.value for reason in Reason}:
        advice = REASONS[Reason(token)]
    elif token in {verdict.value for verdict in Verdict}:
        advice = VERDICTS[Verdict(token)]
    if advice is None:
        return None
    lines = [("meaning", advice.meaning), ("to do", advice.todo), ("next", advice.then)]
    return "\n".join([token, *(_line(about, filled(text)) for about, text in lines), ""])


def _summary(explanation: Document) -> list[str]:
    mounts = [mount["bind"] for mount in explanation["mounts"]]
    known = [mount for mount in mounts if "source" in mount]
    if not known:
        return []
    broken = sum(severity_of(mount) is Severity.BROKEN for mount in known)
    state = f"{broken} of {counted(len(known), 'mount')} broken"
    if not broken:
        state = f"no mount broken of {len(known)}"
    lines = [f"{explanation['target']}: {state}"]
    for entry in explanation["summary"]:
        where = f", source {entry['source']}" if entry["source"] else ""
        lines.append(f"  {entry['name']} ({counted(entry['mounts'], 'mount')}{where})")
        lines += [f"    {entry['meaning']}", f"    To do: {entry['to_do']}"]
    return [*lines, ""]


def _blocks(mounts: Sequence[Document]) -> list[list[Document]]:
    """Group mounts about which the same is said, but for who they are and for dates."""
    blocks: dict[tuple[object, ...], list[Document]] = {}
    for mount in mounts:
        said = [
            (line["about"], _DATE.sub("", line["text"]))
            for line in mount["says"]
            if line["about"] not in _OWN | _FIRST
        ]
        blocks.setdefault((mount["bind"]["verdict"], *said), []).append(mount)
    return list(blocks.values())


def _block(mounts: Sequence[Document]) -> list[str]:
    if len(mounts) == 1:
        (only,) = mounts
        head = f"{only['bind']['mount_point']}  {only['bind']['verdict']}"
        return [head, *(_line(line["about"], line["text"]) for line in only["says"])]
    lines = []
    for mount in mounts:
        bind = mount["bind"]
        container = f", container {bind['container'][:SHORT_ID]}" if bind["container"] else ""
        who = f"{pod_name(bind['pod'])}{container}"
        lines.append(f"{bind['mount_point']}  {bind['verdict']}  ({who})")
    shared = [line for line in mounts[0]["says"] if _is_shared(line, mounts)]
    return [*lines, *(_line(line["about"], line["text"]) for line in shared)]


def _is_shared(line: Document, mounts: Sequence[Document]) -> bool:
    return line["about"] not in _OWN or all(line in mount["says"] for mount in mounts)


def _line(about: str, text: str) -> str:
    return f"  {about:<{_LABEL_WIDTH}}{text}"
