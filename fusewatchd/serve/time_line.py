"""The bar that shows how a volume was over time, as SVG; pure.

Shape says the same as colour: a thin line is healthy, half height is unusual, and full height is
broken.  All bars of a page have the same span, so that they can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from html import escape

from fusewatchd.model.verdicts import ALARMING, Verdict
from fusewatchd.serve.volume_history import SPAN_SECONDS, Spell

SPANS = (3600.0, 6 * 3600.0, SPAN_SECONDS)
"""Seconds; the shortest one that shows all of the history is used."""
TICKS = 4
"""Equal parts of the span."""
_WIDTH = 1000
_HEIGHT = 14
_LEAST = 5
"""Width of a spell, so that an outage of milliseconds can be seen."""
_GOOD = frozenset({Verdict.HEALTHY.value})
_BAD = frozenset(verdict.value for verdict in ALARMING)
_HEIGHTS = {"good": 4, "odd": 8, "bad": _HEIGHT}


def kind_of(verdict: str) -> str:
    """Return ``good``, ``bad`` or ``odd``, the class of a verdict in the style sheet."""
    return "good" if verdict in _GOOD else "bad" if verdict in _BAD else "odd"


def span_of(histories: Iterable[Sequence[Spell]], now: float) -> float:
    """Return the span of all bars of a page, in seconds."""
    oldest = min((spells[0].since for spells in histories if spells), default=now)
    return next((span for span in SPANS if now - oldest <= span), SPANS[-1])


def time_line(spells: Sequence[Spell], now: float, span: float, printed_at: str) -> str:
    """Return the bar with its axis, and the last outage in words; empty without a history.

    Args:
        spells: of the volume, oldest first.
        now: monotonic seconds.
        span: seconds that the bar shows.
        printed_at: the same moment as ``now``, RFC 3339 in UTC.
    """
    if not spells:
        return ""
    begin = now - span
    ends = [spell.since for spell in spells[1:]] + [now]
    rects = [
        _rect(spell.verdict, max(spell.since, begin) - begin, end - begin, span, end - spell.since)
        for spell, end in zip(spells, ends, strict=True)
        if end >= begin
    ]
    places = [_WIDTH * number / TICKS for number in range(1, TICKS)]
    ticks = "".join(f"<line class=tick x1={x:.0f} x2={x:.0f} y1=0 y2={_HEIGHT} />" for x in places)
    story = last_outage(spells, now, printed_at)
    labels = "".join(f"<span>{text}</span>" for text in _labels(span, printed_at))
    # The broken ones last, so that they are on top.
    rects.sort(key=lambda rect: "class=bad" in rect)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio=none role=img'
        f' aria-label="{story}">{"".join(rects)}{ticks}</svg>'
        f"<div class='ends dim'>{labels}</div><p>{story}</p>"
    )


def last_outage(spells: Sequence[Spell], now: float, printed_at: str) -> str:
    """Return the outages of a history in words: how many, and the last one."""
    ends = [spell.since for spell in spells[1:]] + [now]
    bad = [(s, end) for s, end in zip(spells, ends, strict=True) if kind_of(s.verdict) == "bad"]
    if not bad:
        return "no outage"
    (last, end), count = bad[-1], len(bad)
    began = _clock(printed_at, now - last.since)
    if last is spells[-1]:
        return f"{escape(last.verdict)} since {began} UTC ({lasted(now - last.since)})"
    number = f"{count} outage{'' if count == 1 else 's'}"
    return f"{number}, the last one {began} UTC for {lasted(end - last.since)}"


def lasted(seconds: float) -> str:
    """Return a duration in one unit."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _rect(verdict: str, start: float, end: float, span: float, seconds: float) -> str:
    kind = kind_of(verdict)
    x, width = _WIDTH * start / span, _WIDTH * (end - start) / span
    if kind != "good":
        width = max(width, _LEAST)
        x = min(x, _WIDTH - width)
    height = _HEIGHTS[kind]
    title = f"<title>{escape(verdict)} for {lasted(seconds)}</title>"
    place = f"x={x:.1f} y={_HEIGHT - height} width={width:.1f} height={height}"
    return f"<rect class={kind} {place}>{title}</rect>"


def _labels(span: float, printed_at: str) -> list[str]:
    return [_clock(printed_at, span * (TICKS - n) / TICKS) for n in range(TICKS)] + ["now"]


def _clock(printed_at: str, seconds_ago: float) -> str:
    moment = datetime.fromisoformat(printed_at.replace("Z", "+00:00"))
    return f"{moment - timedelta(seconds=max(0.0, seconds_ago)):%H:%M}"
