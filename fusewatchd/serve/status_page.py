"""The status as one page for a browser: no script, nothing from elsewhere, everything escaped.

Made from the document of ``status`` and the history of its volumes.  What is broken comes first.
There is one card for each cause, with what it means, what to do, and the pods that it concerns.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from re import sub

from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.serve.time_line import kind_of, span_of, time_line
from fusewatchd.serve.volume_history import Spell, VolumeKey
from fusewatchd.status.advice import VERDICTS, Advice, filled, values_of
from fusewatchd.status.causes import Cause, Severity, causes_of, pods_of
from fusewatchd.status.reasons import REASONS
from fusewatchd.status.table import REPORT_MODE
from fusewatchd.status.values import Document, pod_name
from fusewatchd.text import counted

REFRESH_SECONDS = 5
MAX_CAUSES = 50
MAX_PODS = 20
"""Named in the card of a cause."""
MAX_VOLUMES = 300
"""Healthy ones that are listed one by one; the rest is counted."""

STYLE = """
:root{color-scheme:light dark;--fg:#1c2024;--dim:#60656c;--bg:#f4f5f7;--card:#fff;--line:#d9dce1;
--good:#2b8a4b;--bad:#c62f3a;--odd:#b7791f}
@media(prefers-color-scheme:dark){:root{--fg:#e7e9ec;--dim:#9ba1a9;--bg:#15171a;--card:#1e2125;
--line:#33383e;--good:#4cc07a;--bad:#ff6b74;--odd:#e3b04b}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1rem;font:15px/1.45 system-ui,sans-serif;
background:var(--bg);color:var(--fg)}
h1{font-size:1.1rem;margin:0}h1 b{font-weight:600}
p{margin:.3rem 0}.dim{color:var(--dim);font-size:.87rem}
.sum{display:flex;flex-wrap:wrap;gap:.5rem;margin:.8rem 0}
article,.note{background:var(--card);border:1px solid var(--line);border-left:4px solid var(--odd);
border-radius:6px;padding:.6rem .8rem;margin:.5rem 0;overflow-wrap:anywhere}
article.good{border-left-color:var(--good)}article.bad{border-left-color:var(--bad)}
header{display:flex;flex-wrap:wrap;gap:.3rem .7rem;align-items:baseline}
header strong{flex:1 1 12rem}
.v{font-weight:600;color:var(--odd)}.v.good{color:var(--good)}.v.bad{color:var(--bad)}
.tick{stroke:var(--card);stroke-width:2}
ul{margin:.3rem 0;padding-left:1.2rem}summary{cursor:pointer;margin:.8rem 0}a{color:inherit}
.shout{border-left-color:var(--bad);font-weight:600}
svg{display:block;width:100%;height:14px;margin:.4rem 0 .1rem;border-radius:3px;
background:var(--line)}
rect{fill:var(--odd)}rect.good{fill:var(--good)}rect.bad{fill:var(--bad)}
.ends{display:flex;justify-content:space-between}
code{font:13px/1.4 ui-monospace,monospace}
"""
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
FIELDS: Mapping[str, str] = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}
CONTENT_TYPE = "text/html; charset=utf-8"


def status_page(
    document: Document, history: Mapping[VolumeKey, Sequence[Spell]], now: float
) -> bytes:
    """Return the page.

    Args:
        document: of the status.
        history: of its volumes.
        now: monotonic seconds.
    """
    page = _Page(document, history, now)
    causes = causes_of(document)
    cards = [page.card(cause) for cause in causes if cause.severity < Severity.HEALTHY]
    rest = len(cards) - MAX_CAUSES
    cards = cards[:MAX_CAUSES]
    if rest > 0:
        cards.append(f"<p class=dim>and {rest} more causes: <code>fusewatchd status</code></p>")
    if not document["binds"]:
        cards = ["<p class=note>No pod of this node uses a FUSE volume.</p>"]
    healthy = [m for c in causes if c.severity is Severity.HEALTHY for m in c.mounts]
    body = [*_head(document), *_notes(document), *cards, *page.healthy(healthy), *_foot(document)]
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<meta http-equiv=refresh content={REFRESH_SECONDS}>"
        f"<title>{_title(document)}</title><style>{STYLE}</style></head><body>"
        f"{''.join(body)}</body></html>\n"
    ).encode()


def index_page(has_status: bool) -> bytes:
    """Return the page at ``/``: where the others are."""
    names = ["/metrics", "/healthz", "/readyz"]
    names = ["/status", *names] if has_status else names
    links = "".join(f'<li><a href="{name}">{name}</a></li>' for name in names)
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>fusewatchd</title><style>{STYLE}</style></head><body>"
        f"<h1><b>fusewatchd</b></h1><ul>{links}</ul></body></html>\n"
    ).encode()


# --------------------------------------------------------------------------- head and foot


def _node(document: Document) -> str:
    return escape(document["node"] or "")


def _title(document: Document) -> str:
    verdicts = document["totals"]["verdicts"]
    broken = sum(count for name, count in verdicts.items() if kind_of(name) == "bad")
    parts = [f"{broken} broken"] if broken else []
    parts += [_node(document)] if document["node"] else []
    return " – ".join([*parts, "fusewatchd"])


def _head(document: Document) -> Iterable[str]:
    totals = document["totals"]
    node = f"{_node(document)} · " if document["node"] else ""
    yield f"<h1><b>{node}fusewatchd</b> {escape(document['version'])}</h1>"
    yield (
        f"<p class=dim>{counted(totals['binds'], 'mount')} of"
        f" {counted(totals['volumes'], 'volume')} in {counted(totals['pods'], 'pod')}, seen at"
        f" {_clock(document['looked_at'])} UTC</p>"
    )
    badges = [
        f"<span class='v {kind_of(name)}'>{count} {escape(name)}</span>"
        for name, count in totals["verdicts"].items()
        if count
    ]
    yield f"<div class=sum>{''.join(badges)}</div>"


def _notes(document: Document) -> Iterable[str]:
    if document["mode"] == "report":
        yield f"<p class='note shout'>{escape(REPORT_MODE)}</p>"
    if document["paused_until"] is not None:
        until = escape(document["paused_until"])
        text = f"Paused until {until}: fusewatchd changes nothing on this node."
        yield f"<p class='note shout'>{text}</p>"
    for gap in document["gaps"]:
        yield f"<p class=note>Could not see {escape(gap['source'])}: {escape(gap['reason'])}</p>"
    for pause in document["flapping_sources"]:
        yield f"<p class=note>Flapping source: <code>{escape(pause['source'])}</code></p>"


def _foot(document: Document) -> Iterable[str]:
    links = " · ".join(
        f'<a href="{name}">{name}</a>' for name in ("/metrics", "/healthz", "/readyz")
    )
    mode = f"mode {escape(document['mode'])}, replaces mounts by {escape(document['way'])}"
    yield "<p class=dim>Bars: full height is broken, half height unusual, a thin line healthy.</p>"
    yield f"<p class=dim>{mode} · {links}</p>"


# --------------------------------------------------------------------------------- cards


class _Page:
    """The cards of one page, whose bars have the same span."""

    def __init__(
        self, document: Document, history: Mapping[VolumeKey, Sequence[Spell]], now: float
    ) -> None:
        self._document = document
        self._history = history
        self._now = now
        self._span = span_of(history.values(), now)

    def card(self, cause: Cause) -> str:
        """Return what is wrong, what to do, and which pods it concerns."""
        first, verdict = cause.first, cause.first["verdict"]
        advice = _advice(cause)
        name = "healthy, with a warning" if cause.severity is Severity.WARNING else cause.name
        kind = "odd" if cause.severity is Severity.WARNING else kind_of(verdict)
        volumes = list(dict.fromkeys(mount["volume"] for mount in cause.mounts))
        drivers = sorted({mount["driver"] for mount in cause.mounts if mount["driver"]})
        about = " · ".join([*volumes[:3], *(["…"] if len(volumes) > 3 else []), *drivers])
        return (
            f"<article class={kind}><header><strong>{escape(name)}</strong>"
            f"<span class='v {kind}'>{counted(len(cause.mounts), 'mount')} {escape(verdict)}</span>"
            f"</header><p class=dim>{escape(about)}</p>"
            f"<p><code>{escape(cause.source or first['source']['why'])}</code></p>"
            f"<p>{escape(advice.meaning)}</p>"
            f"<p><b>To do:</b> {_with_code(filled(advice.todo, values_of(first)))}</p>"
            f"{_evidence(cause)}{self._pods(cause)}{self._bar(first)}</article>"
        )

    def healthy(self, mounts: Sequence[Document]) -> Iterable[str]:
        """Yield what works, a line and a bar for each volume, folded."""
        volumes = {(mount["directory_uid"], mount["volume"]): mount for mount in mounts}
        if not volumes:
            return
        yield f"<details open><summary>{counted(len(volumes), 'healthy volume')}</summary>"
        for mount in sorted(volumes.values(), key=lambda one: pod_name(one["pod"]))[:MAX_VOLUMES]:
            driver = f" · {escape(mount['driver'])}" if mount["driver"] else ""
            source = escape(mount["source"]["path"] or "no known source")
            yield (
                f"<article class=good><header><strong>{escape(pod_name(mount['pod']))}</strong>"
                f"<span class='v good'>healthy</span></header><p class=dim>"
                f"{escape(mount['volume'])}{driver} · <code>{source}</code></p>"
                f"{self._bar(mount)}</article>"
            )
        if (rest := len(volumes) - MAX_VOLUMES) > 0:
            yield f"<p class=dim>and {rest} more volumes: <code>fusewatchd status --all</code></p>"
        yield "</details>"

    def _pods(self, cause: Cause) -> str:
        pods = pods_of(cause.mounts)
        items = [f"<li>{escape(pod)}</li>" for pod in pods[:MAX_PODS]]
        if len(pods) > MAX_PODS:
            items.append(f"<li>and {len(pods) - MAX_PODS} more pods</li>")
        return f"<ul>{''.join(items)}</ul>"

    def _bar(self, mount: Document) -> str:
        spells = self._history.get((mount["directory_uid"], mount["volume"]), ())
        return time_line(spells, self._now, self._span, self._document["printed_at"])


def _advice(cause: Cause) -> Advice:
    reason = cause.first["refusal"]
    if cause.severity < Severity.WARNING and reason in {one.value for one in Reason}:
        return REASONS[Reason(reason)]
    return VERDICTS[Verdict(cause.first["verdict"])]


def _evidence(cause: Cause) -> str:
    if cause.severity is Severity.WARNING:
        recovery = cause.first["last_recovery"] or {}
        text = "; ".join(filter(None, (recovery.get("narrower"), recovery.get("wider"))))
    else:
        text = cause.first["evidence"]
    return f"<p class=dim>{escape(text)}</p>" if text else ""


def _with_code(text: str) -> str:
    """Return an escaped text whose parts in backquotes are code."""
    return sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _clock(date: str | None) -> str:
    return escape(date[11:19]) if date else "never"
