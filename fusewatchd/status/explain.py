"""What ``fusewatchd explain`` says of a mount: how it was identified, how it is, what is next.

Pure, and made from the document of ``status`` alone, whose texts are escaped already.  So the
daemon needs to be asked nothing else, and takes no words from whoever asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from os import strerror

from fusewatchd.model.pods import BindKind
from fusewatchd.model.servers import Answer
from fusewatchd.model.verdicts import ALARMING, Reason, Verdict
from fusewatchd.status.advice import (
    DETACHES,
    FAILING_ROOT,
    NOT_RUNNING,
    NOTHING,
    REFUSED,
    UNCLAIMED,
    UNREACHED,
    VERDICTS,
    Advice,
    filled,
    values_of,
)
from fusewatchd.status.causes import Severity, causes_of
from fusewatchd.status.keeper import held_lines
from fusewatchd.status.reasons import REASONS
from fusewatchd.status.remarks import remarks
from fusewatchd.status.server_table import MAX_SHOWN, end_text, holder_text, process_text
from fusewatchd.status.values import Document
from fusewatchd.text import counted, cut_text, duration_text

Lines = list[tuple[str, str]]
"""What about, and a sentence."""


class Asked(Enum):
    """Who knew."""

    DAEMON = "daemon"
    LOOK = "look"
    """Nobody: the node was looked at once, and what an earlier run wrote down was read."""


def explain(document: Document, binds: Iterable[Document], target: str, asked: Asked) -> Document:
    """Return what is to be said of these binds of a status document.

    ``target`` is what was asked for, escaped.
    """
    mounts = [_mount(document, bind, asked) for bind in binds]
    return {
        "target": target,
        "asked": asked.value,
        "looked_at": document["looked_at"],
        "summary": _summary(document, [mount["bind"] for mount in mounts], asked),
        "mounts": mounts,
        "gaps": document["gaps"],
    }


def _summary(document: Document, binds: Sequence[Document], asked: Asked) -> list[Document]:
    """Return what is wrong with these mounts, each thing once, the most urgent one first."""
    known = [bind for bind in binds if "source" in bind]
    entries = []
    for cause in causes_of({**document, "binds": known}):
        if cause.severity >= Severity.WARNING:
            continue
        first = cause.first
        reason = Reason(first["refusal"]) if first["refusal"] else Reason.NONE
        advice = _advice(document, first, reason, asked)
        now = first["planned"] is not None or first["is_in_flight"]
        entries.append(
            {
                "name": cause.name,
                "source": cause.source,
                "mounts": len(cause.mounts),
                "meaning": advice.meaning,
                "to_do": NOTHING if now else filled(advice.todo, values_of(first)),
            }
        )
    return entries


def _mount(document: Document, bind: Document, asked: Asked) -> Document:
    connection = document["connections"].get(bind["device"])
    outages: list[Document] = []
    if "source" not in bind:
        lines = _unclaimed(connection, bind, document["printed_at"])
    else:
        outages = _outages(document, bind)
        lines = [
            *_identity(bind),
            *_source(document, bind),
            *_state(document, bind),
            *held_lines(document, bind),
            *_history(bind, outages),
            *_holders(document, bind),
            *_future(document, bind, asked),
        ]
    return {
        "bind": bind,
        "connection": connection,
        "outages": outages,
        "says": [{"about": about, "text": text} for about, text in lines],
    }


def _unclaimed(connection: Document | None, bind: Document, now: str) -> Lines:
    lines = [
        ("pod", _who(bind)),
        ("kind", f"a FUSE mount inside a container: {bind['fs_type']}, device {bind['device']}"),
        ("identified", f"not: {UNCLAIMED.meaning}"),
    ]
    if connection is not None:
        lines.append(("connection", _connection(connection, now)))
    return [*lines, ("next", UNCLAIMED.then), ("to do", UNCLAIMED.todo)]


# ------------------------------------------------------------------------- what it is


KINDS: Mapping[BindKind, str] = {
    BindKind.PUBLISH: "the volume on the host",
    BindKind.FLEXVOLUME: "the volume on the host (FlexVolume)",
    BindKind.LOCAL: "the volume on the host (local)",
    BindKind.EMPTY_DIR: "a file system inside the emptyDir",
    BindKind.SUBPATH: "a subPath of the volume on the host",
    BindKind.CONTAINER: "the volume as a container sees it",
}


def _identity(bind: Document) -> Lines:
    lines = [("pod", _who(bind)), ("volume", bind["volume"])]
    if bind["directory"] is not None:
        mount = f"a directory of the node ({bind['directory']['fs_type']}) instead of it"
    elif bind["device"] is None:
        mount = "nothing is mounted there"
    else:
        layers = f", {bind['depth']} layers" if bind["depth"] > 1 else ""
        mount = f"{bind['fs_type']}, device {bind['device']}, mount id {bind['mount_id']}{layers}"
    driver = f", driver {bind['driver']}" if bind["driver"] else ""
    return [*lines, ("kind", f"{KINDS[BindKind(bind['kind'])]}: {mount}{driver}")]


def _who(bind: Document) -> str:
    pod = bind["pod"]
    name = f"{pod['namespace']}/{pod['name']}, " if pod["name"] else ""
    ending = ", being deleted" if pod["deleting"] else ""
    container = f", container {bind['container']}" if bind["container"] else ""
    return f"{name}uid {pod['uid']}{ending}{container}"


def _source(document: Document, bind: Document) -> Lines:
    source = bind["source"]
    if not source["rule"]:
        return [("identified", f"not: {source['why']}"), ("source", "not known")]
    rule = "lineage" if source["rule"] == "lineage" else f"the driver module {source['rule']}"
    lines = [("identified", f"by {rule}: {source['why']}")]
    if not source["candidates"]:
        return [*lines, ("source", "none")]
    return [*lines, *(("source", _place(document, bind, path)) for path in source["candidates"])]


def _place(document: Document, bind: Document, path: str) -> str:
    now = document["sources"].get(path)
    if now is None:
        return f"{path}: nothing is mounted there now"
    text = f"{path}: {now['fs_type']}, device {now['device']}"
    if now["root"] != "/":
        text += f", root {now['root']}"
    if now["device"] == bind["device"]:
        return f"{text}, which this mount shows"
    answer = _answer(document["connections"].get(now["device"]))
    return f"{text}, another one than this mount shows" + (f"; {answer}" if answer else "")


# ------------------------------------------------------------------------- how it is


_ANSWERS: Mapping[str, str] = {
    Answer.ANSWERED.value: "answers",
    Answer.DISCONNECTED.value: "has no server any more",
    Answer.REFUSED.value: "refuses, and its server lives",
    Answer.PENDING.value: "has not answered yet",
    Answer.NOT_ALLOWED.value: "may not be asked by us",
    Answer.ERROR.value: "answers with an error",
}


def _answer(connection: Document | None) -> str:
    if connection is None or connection["answer"] is None:
        return ""
    text = _ANSWERS[connection["answer"]]
    return f"{text} ({strerror(connection['errno'])})" if connection["errno"] else text


def _state(document: Document, bind: Document) -> Lines:
    verdict = Verdict(bind["verdict"])
    lines = [
        ("verdict", f"{verdict.value}: {_of_verdict(document, bind).meaning}"),
        ("evidence", bind["evidence"]),
    ]
    lines += remarks(document, bind)
    connection = document["connections"].get(bind["device"])
    if connection is not None:
        lines.append(("connection", _connection(connection, document["printed_at"])))
    return lines


def _of_verdict(document: Document, bind: Document) -> Advice:
    verdict, connection = Verdict(bind["verdict"]), document["connections"].get(bind["device"])
    if connection is not None:
        if verdict is Verdict.HEALTHY and not connection["serves_root"]:
            return FAILING_ROOT
        if verdict is Verdict.UNKNOWN and connection["obstacle"] is not None:
            return UNREACHED
        if verdict is Verdict.UNKNOWN and connection["answer"] == Answer.REFUSED.value:
            return REFUSED
    return VERDICTS[verdict]


def _connection(connection: Document, now: str) -> str:
    is_silent = connection["is_overdue"] or connection["is_hung"]
    answer = _ANSWERS[Answer.PENDING.value] if is_silent else _answer(connection)
    parts = [connection["obstacle"] or answer or "not asked yet"]
    if connection["asked_at"] is not None:
        parts.append(f"asked {_ago(connection['asked_at'], now)}")
    if number := connection["waiting"]:
        parts.append("1 request waits" if number == 1 else f"{number} requests wait")
    if connection["server_gone_at"] is not None:
        parts.append(f"its server was gone {_ago(connection['server_gone_at'], now)}")
    role = "served by"
    if connection["answer"] == Answer.DISCONNECTED.value:
        is_cut = connection["server_gone_at"] is None
        role = "no end was seen of its server" if is_cut else "was served by"
        if is_cut and connection["servers"]:
            parts.append(f"cut {cut_text(connection['waited_seconds'])}")
    parts += [f"{role} {process_text(server)}" for server in connection["servers"]]
    return ", ".join(parts)


# --------------------------------------------------------------------- what happened


def _outages(document: Document, bind: Document) -> list[Document]:
    """Return the outages of the same source, the newest last; the one that is open too."""
    path = bind["source"]["path"]
    every = [*document["outages"], *document["incidents"]]
    if path is None:
        return [outage for outage in every if outage["device"] == bind["device"]]
    return [outage for outage in every if outage["source"] == path]


def _history(bind: Document, outages: Iterable[Document]) -> Lines:
    lines = [("history", _outage(outage)) for outage in outages]
    done = bind["last_recovery"]
    if done is not None:
        less = f"; allows less than before: {done['narrower']}" if done["narrower"] else ""
        more = f"; allows more than before: {done['wider']}" if done["wider"] else ""
        lines.append(("history", f"{done['at']} this mount was replaced{less}{more}"))
    last = bind["last_attempt"]
    if last is not None:
        error = f" ({strerror(last['errno'])})" if last["errno"] else ""
        detail = f": {last['detail']}" if last["detail"] else ""
        how = f"{last['outcome']}, {last['reason']}"
        lines.append(("history", f"{last['at']} attempt {how}{detail}{error}"))
    # Each begins with its date.
    return sorted(lines) or [("history", "no outage is known")]


def _holders(document: Document, bind: Document) -> Lines:
    """Return the processes that still have files open on the dead mount of the same source."""
    path = bind["source"]["path"]
    return [
        ("holder", holder_text(holder))
        for holding in document["dead_mount_holders"]
        if holding["device"] == bind["device"] or (path is not None and holding["source"] == path)
        for holder in holding["holders"][:MAX_SHOWN]
    ]


def _outage(outage: Document) -> str:
    began = outage["server_gone_at"] or outage["noticed_at"]
    what = "server gone" if outage["server_gone_at"] is not None else "found dead"
    if "open" in outage:
        end = f": {end_text(outage['server_end'])};" if outage["server_end"] is not None else ","
        back = "source not back" if outage["source"] is not None else "no source to come back"
        if outage["source_up_at"] is not None:
            back = f"source back {outage['source_up_at']}"
        if outage["source_refused"]:
            back = f"source back, refused: {outage['source_refused']}"
        still = f"{outage['open']} of {counted(outage['binds'], 'mount')} still broken"
        return f"{began} {what}{end} {back}, {still}"
    lasted = _duration(outage["lasted_ms"])
    if outage["recovered_at"] is None:
        return f"{began} {what}, over after {lasted}, nothing was replaced"
    took = outage["recovery_ms"]
    after = f", {_duration(took)} after the source was back" if took is not None else ""
    if took is not None and outage["source_up_at"] < began:
        after = ", the new source was there before"
    done = counted(outage["recovered"], "mount")
    return f"{began} {what}, {done} recovered after {lasted}{after}"


# ------------------------------------------------------------------------ what is next


def _future(document: Document, bind: Document, asked: Asked) -> Lines:
    if bind["is_in_flight"]:
        return [("next", "fusewatchd is replacing it now.")]
    if bind["planned"] is not None:
        return [("next", f"now: {bind['planned']}")]
    reason = Reason(bind["refusal"]) if bind["refusal"] else Reason.NONE
    advice = _advice(document, bind, reason, asked)
    lines: Lines = []
    if reason is not Reason.NONE:
        lines.append(("reason", f"{reason.value}: {advice.meaning}"))
    if bind["detail"] is not None:
        lines.append(("reason", f"it would {bind['detail']}"))
    lines += _pauses(document, bind, reason)
    lines.append(("next", _next(document, bind, advice, asked)))
    lines.append(("to do", filled(advice.todo, values_of(bind))))
    return lines


def _advice(document: Document, bind: Document, reason: Reason, asked: Asked) -> Advice:
    if reason is Reason.NONE:
        return _of_verdict(document, bind)
    is_only_looked_at = asked is Asked.LOOK and document["mode"] != "report"
    if reason is Reason.REPORT_ONLY and is_only_looked_at:
        return NOT_RUNNING
    if reason is Reason.SOURCE_DEAD and _is_detached(document, bind):
        return DETACHES
    return REASONS[reason]


def _is_detached(document: Document, bind: Document) -> bool:
    """Return True where dead sources are detached, and only something else holds that back."""
    return any(
        one["source"] == bind["source"]["path"] and one["held_back"] != Reason.SOURCE_DEAD.value
        for one in document["dead_sources"]
    )


def _next(document: Document, bind: Document, advice: Advice, asked: Asked) -> str:
    text = advice.then
    if bind["verdict"] == Verdict.SUPERSEDED.value and document["superseded"] == "rebind":
        text = "It is replaced although the old server answers (recovery.superseded: rebind)."
    if asked is Asked.LOOK and bind["verdict"] != Verdict.HEALTHY.value:
        return f"Nothing, since no fusewatchd is running. If one were: {text}"
    return text


def _pauses(document: Document, bind: Document, reason: Reason) -> Lines:
    lines: Lines = []
    if bind["retry_at"] is not None:
        failures = f" after {bind['failures']} failures" if bind["failures"] else ""
        if bind["undone"]:
            failures = (
                f": what was done before was undone by another program, {bind['undone']} times"
            )
        pause = "back-off" if bind["backs_off"] else "pause"
        lines.append(("reason", f"{pause} until {bind['retry_at']}{failures}"))
    for flapping in document["flapping_sources"]:
        if reason is Reason.SOURCE_FLAPPING and flapping["source"] == bind["source"]["path"]:
            stay = f"the source has to stay for {flapping['wait_seconds']} s"
            text = f"{stay}, {flapping['in_vain']} mounts of it were of no use"
            lines.append(("reason", text))
    return lines


def exit_code(explanation: Document) -> int:
    """Return 0 when all of it can be used, 1 when some of it cannot, 2 when that is unknown."""
    verdicts = {Verdict(mount["bind"]["verdict"]) for mount in explanation["mounts"]}
    if verdicts & ALARMING:
        return 1
    return 2 if Verdict.UNKNOWN in verdicts else 0


def _ago(date: str, now: str) -> str:
    seconds = (_moment(now) - _moment(date)).total_seconds()
    return f"{_duration(max(0.0, seconds) * 1000)} ago"


def _moment(date: str) -> datetime:
    return datetime.fromisoformat(date.replace("Z", "+00:00"))


def _duration(milliseconds: float) -> str:
    return duration_text(milliseconds / 1000)
