"""The status as one page for a browser: no script, nothing from elsewhere, everything escaped.

Made from the document of ``status`` and the history of its volumes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from fusewatchd.model.verdicts import ALARMING, Verdict
from fusewatchd.serve.volume_history import SPAN_SECONDS, Spell, VolumeKey
from fusewatchd.status.values import Document, pod_name

REFRESH_SECONDS = 5
MAX_VOLUMES = 300
"""Listed one by one, the worst first; the rest is counted."""
_WIDTH = 1000
_LEAST = 5
"""Of the time line, so that an outage of milliseconds can be seen."""

_GOOD = frozenset({Verdict.HEALTHY.value})
_BAD = frozenset(verdict.value for verdict in ALARMING)

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
    volumes: dict[VolumeKey, list[Document]] = {}
    for bind in document["binds"]:
        volumes.setdefault((bind["directory_uid"], bind["volume"]), []).append(bind)
    ordered = sorted(volumes, key=lambda key: _rank(volumes[key]))
    shown, rest = ordered[:MAX_VOLUMES], len(ordered) - MAX_VOLUMES
    cards = [_card(key[1], volumes[key], history.get(key, ()), now) for key in shown]
    if rest > 0:
        cards.append(f"<p class=dim>and {rest} more volumes: <code>fusewatchd status</code></p>")
    if not cards:
        cards = ["<p class=note>No pod of this node uses a FUSE volume.</p>"]
    body = [*_head(document), *_notes(document), *cards]
    page = (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<meta http-equiv=refresh content={REFRESH_SECONDS}>"
        f"<title>{_title(document)}</title><style>{STYLE}</style></head><body>"
        f"{''.join(body)}</body></html>\n"
    )
    return page.encode()


def _title(document: Document) -> str:
    verdicts = document["totals"]["verdicts"]
    broken = sum(verdicts[name] for name in _BAD)
    return f"{broken} unusable — fusewatchd" if broken else "fusewatchd"


def _head(document: Document) -> Iterable[str]:
    totals = document["totals"]
    yield f"<h1><b>fusewatchd</b> {escape(document['version'])}</h1>"
    yield (
        f"<p class=dim>{totals['binds']} binds of {totals['volumes']} volumes in"
        f" {totals['pods']} pods, looked at {_clock(document['looked_at'])} UTC</p>"
    )
    badges = [
        f"<span class='v {_kind(name)}'>{count} {escape(name)}</span>"
        for name, count in totals["verdicts"].items()
        if count
    ]
    yield f"<div class=sum>{''.join(badges)}</div>"


def _notes(document: Document) -> Iterable[str]:
    if document["paused_until"] is not None:
        until = escape(document["paused_until"])
        yield f"<p class=note>Paused until {until}: fusewatchd changes nothing on this node.</p>"
    for gap in document["gaps"]:
        yield f"<p class=note>Not seen: {escape(gap['source'])}: {escape(gap['reason'])}</p>"
    for pause in document["flapping_sources"]:
        yield f"<p class=note>Comes and goes: <code>{escape(pause['source'])}</code></p>"


def _card(volume: str, binds: Sequence[Document], spells: Sequence[Spell], now: float) -> str:
    first = min(binds, key=lambda bind: _bind_rank(bind["verdict"]))
    pod, verdict = first["pod"], first["verdict"]
    source = next((bind["source"]["path"] for bind in binds if bind["source"]["path"]), None)
    inside = sum(bind["kind"] == "container" for bind in binds)
    why = first["refusal"] or ("" if verdict in _GOOD else first["evidence"])
    return (
        f"<article class={_kind(verdict)}><header><strong>{escape(pod_name(pod))}</strong>"
        f"<span class='v {_kind(verdict)}'>{escape(verdict)}</span></header>"
        f"<p class=dim>{escape(volume)} · {len(binds) - inside} on the host, {inside} in containers"
        f"{' · ' + escape(first['driver']) if first['driver'] else ''}</p>"
        f"<p><code>{escape(source or 'no known source')}</code></p>"
        f"{'<p>' + escape(why.replace('_', ' ')) + '</p>' if why else ''}"
        f"{_time_line(spells, now)}<p class=dim>{escape(_last(binds))}</p></article>"
    )


def _last(binds: Sequence[Document]) -> str:
    done = [bind["last_recovery"] for bind in binds if bind["last_recovery"]]
    if not done:
        return "no recovery since the daemon was started"
    latest = max(done, key=lambda recovery: str(recovery["at"]))
    return f"last recovery {_clock(latest['at'])} UTC in {latest['took_ms']:.1f} ms"


def _time_line(spells: Sequence[Spell], now: float) -> str:
    if not spells:
        return ""
    begin = max(now - SPAN_SECONDS, spells[0].since)
    span = max(now - begin, 1e-3)
    ends = [spell.since for spell in spells[1:]] + [now]
    good: list[str] = []
    other: list[str] = []
    outages = 0
    for spell, end in zip(spells, ends, strict=True):
        x = _WIDTH * (max(spell.since, begin) - begin) / span
        width = _WIDTH * (end - max(spell.since, begin)) / span
        kind = _kind(spell.verdict)
        outages += kind == "bad"
        if kind != "good":
            width = max(width, _LEAST)
            x = min(x, _WIDTH - width)
        title = f"<title>{escape(spell.verdict)} for {_span(end - spell.since)}</title>"
        rect = f"<rect class={kind} x={x:.1f} y=0 width={width:.1f} height=14>{title}</rect>"
        (good if kind == "good" else other).append(rect)
    told = f"{outages} outage{'' if outages == 1 else 's'}" if outages else "no outage"
    return (
        f'<svg viewBox="0 0 {_WIDTH} 14" preserveAspectRatio=none role=img'
        f' aria-label="{told}">{"".join(good + other)}</svg>'
        f"<div class='ends dim'><span>{_span(span)} ago</span><span>{told}</span>"
        "<span>now</span></div>"
    )


def _span(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _kind(verdict: str) -> str:
    return "good" if verdict in _GOOD else "bad" if verdict in _BAD else "odd"


def _bind_rank(verdict: str) -> int:
    return ("bad", "odd", "good").index(_kind(verdict))


def _rank(binds: Sequence[Document]) -> tuple[int, str, str]:
    pod = binds[0]["pod"]
    worst = min(_bind_rank(bind["verdict"]) for bind in binds)
    return worst, f"{pod['namespace'] or '~'}/{pod['name'] or pod['uid']}", binds[0]["volume"]


def _clock(date: str | None) -> str:
    return escape(date[11:19]) if date else "never"
