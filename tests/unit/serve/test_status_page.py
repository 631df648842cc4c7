"""The status page and the history of its volumes, without a browser."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from fusewatchd.model.pods import BindKind
from fusewatchd.model.verdicts import Verdict
from fusewatchd.serve.status_page import FIELDS, MAX_PODS, STYLE, index_page, status_page
from fusewatchd.serve.status_page import MAX_VOLUMES as MAX_SHOWN
from fusewatchd.serve.volume_history import MAX_CHANGES, MAX_VOLUMES, SPAN_SECONDS, Spell, Timelines
from tests.unit.cycles import bind, cycle, finding, outage

KEY = ("uid-a", "pv-1")


def at(report: Any, moment: float) -> Any:
    return replace(report, finished_at=moment)


def told(history: Timelines, *verdicts: tuple[Verdict, float]) -> None:
    for verdict, moment in verdicts:
        history.report(at(cycle(finding(bind(), verdict)), moment))


def test_only_changes_are_kept() -> None:
    history = Timelines()
    steps = [
        (Verdict.HEALTHY, 1.0),
        (Verdict.HEALTHY, 2.0),
        (Verdict.STALE, 3.0),
        (Verdict.HEALTHY, 3.1),
    ]
    told(history, *steps)
    assert history.volumes() == {
        KEY: (Spell(1.0, "healthy"), Spell(3.0, "stale"), Spell(3.1, "healthy"))
    }


def test_the_worst_bind_of_a_volume_counts() -> None:
    history = Timelines()
    history.report(at(outage()[1], 1.0))
    assert {spells[-1].verdict for spells in history.volumes().values()} == {"stale"}


def test_the_history_is_bounded_in_time_and_number() -> None:
    history = Timelines()
    for step in range(4 * MAX_CHANGES):
        told(history, (Verdict.STALE if step % 2 else Verdict.HEALTHY, float(step)))
    assert len(history.volumes()[KEY]) == MAX_CHANGES
    told(history, (Verdict.HEALTHY, 2 * SPAN_SECONDS))
    assert len(history.volumes()[KEY]) <= 2
    history.report(at(cycle(finding(bind("uid-b"))), 4 * SPAN_SECONDS))
    assert set(history.volumes()) == {("uid-b", "pv-1")}
    many = cycle(*(finding(bind(f"uid-{n}")) for n in range(MAX_VOLUMES + 9)))
    history.report(at(many, 4 * SPAN_SECONDS))
    assert len(history.volumes()) == MAX_VOLUMES


def shown(*binds: dict[str, Any], **change: Any) -> dict[str, Any]:
    verdicts = {verdict.value: 0 for verdict in Verdict}
    for one in binds:
        verdicts[one["verdict"]] += 1
    totals = {"binds": len(binds), "volumes": 1, "pods": 1, "verdicts": verdicts}
    return {
        "version": "1", "looked_at": "2023-11-14T22:13:23.000Z", "totals": totals,
        "printed_at": "2023-11-14T22:13:23.000Z", "node": "node-7", "mode": "recover", "way": "w",
        "binds": list(binds), "gaps": [], "paused_until": None, "flapping_sources": [], **change,
    }  # fmt: skip


def one(uid: str = "uid-a", **change: Any) -> dict[str, Any]:
    return {
        "directory_uid": uid, "volume": "pv-1", "kind": "publish", "driver": "d", "verdict": "healthy",
        "pod": {"namespace": "demo", "name": f"web-{uid}", "uid": uid}, "refusal": None,
        "evidence": "", "source": {"path": "/s", "why": "x"}, "last_recovery": None,
        "mount_point": f"/pods/{uid}", **change,
    }  # fmt: skip


EVIL = "<script>alert(1)</script>\"'&"


@pytest.mark.parametrize(
    "document",
    [
        shown(one(volume=EVIL, driver=EVIL, source={"path": EVIL, "why": EVIL}, refusal=EVIL)),
        shown(
            one(pod={"namespace": EVIL, "name": EVIL, "uid": EVIL}, evidence=EVIL, verdict="stale")
        ),
        shown(version=EVIL, gaps=[{"source": EVIL, "reason": EVIL}]),
        shown(flapping_sources=[{"source": EVIL}]),
    ],
)
def test_everything_is_escaped(document: dict[str, Any]) -> None:
    page = status_page(document, {}, 10.0).decode()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;" in page


def test_nothing_comes_from_elsewhere_and_no_style_but_its_own() -> None:
    page = status_page(shown(one()), {KEY: (Spell(1.0, "healthy"),)}, 10.0).decode()
    assert not re.findall(r"https?:|//|url\(|@import|<script|<link|<img| on\w+=| style=", page)
    assert set(re.findall(r'href="([^"]*)"', page)) == {"/metrics", "/healthz", "/readyz"}
    assert page.count(f"<style>{STYLE}</style>") == 1
    assert FIELDS["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")


def test_a_short_outage_can_be_seen() -> None:
    spells = (Spell(0.0, "healthy"), Spell(1800.0, "stale"), Spell(1800.01, "healthy"))
    page = status_page(shown(one()), {KEY: spells}, 3600.0).decode()
    assert "<rect class=bad x=500.0 y=0 width=5.0 height=14><title>stale for 10 ms</title>" in page
    assert "1 outage, the last one 21:43 UTC for 10 ms<" in page
    calm = status_page(shown(one()), {KEY: spells[:1]}, 2000.0).decode()
    assert "no outage<" in calm


@pytest.mark.parametrize(
    ("ago", "labels"),
    [
        (1800.0, ["21:13", "21:28", "21:43", "21:58", "now"]),
        (7200.0, ["16:13", "17:43", "19:13", "20:43", "now"]),
        (80000.0, ["22:13", "04:13", "10:13", "16:13", "now"]),
    ],
)
def test_the_axis_has_the_same_ticks_for_all(ago: float, labels: list[str]) -> None:
    history = {KEY: (Spell(-ago, "healthy"),), ("uid-b", "pv-1"): (Spell(-5.0, "stale"),)}
    binds = (one(), one("uid-b", verdict="stale", refusal="source_dead"))
    page = status_page(shown(*binds), history, 0.0).decode()
    assert re.findall(r"<span>([\d:]+|now)</span>", page) == labels * 2
    assert page.count("<line class=tick ") == 6
    assert "stale since 22:13 UTC (5 s)" in page


def test_shape_says_what_colour_says() -> None:
    spells = (Spell(0.0, "healthy"), Spell(100.0, "slow"), Spell(200.0, "stale"))
    page = status_page(shown(one()), {KEY: spells}, 300.0).decode()
    assert re.findall(r"<rect class=(\w+) [^>]* height=(\d+)>", page) == [
        ("good", "4"),
        ("odd", "8"),
        ("bad", "14"),
    ]


def test_one_cause_is_one_card_with_its_pods_and_the_command() -> None:
    source = {"path": "/media/a b", "why": "x"}
    binds = [
        one(f"u{n:02}", verdict="stale", refusal="source_dead", source=source)
        for n in range(MAX_PODS + 3)
    ]
    page = status_page(shown(one(), *binds), {}, 1.0).decode()
    assert page.count("<article class=bad>") == 1
    assert "<strong>source_dead</strong>" in page
    assert "<code>umount -l &#x27;/media/a b&#x27;</code>" in page
    assert page.count("<li>demo/web-u") == MAX_PODS
    assert "<li>and 3 more pods</li>" in page
    assert page.index("source_dead") < page.index("web-uid-a")
    assert f"<title>{MAX_PODS + 3} broken – node-7 – fusewatchd</title>" in page


def test_report_mode_and_a_pause_shout() -> None:
    page = status_page(shown(one(), mode="report", paused_until="2026-01-01"), {}, 1.0).decode()
    assert page.count("class='note shout'") == 2
    assert "Report mode: nothing is repaired." in page
    assert "class='note shout'" not in status_page(shown(one()), {}, 1.0).decode()


def test_healthy_volumes_that_are_too_many_are_counted() -> None:
    page = status_page(shown(*(one(f"u{n:04}") for n in range(MAX_SHOWN + 2))), {}, 1.0).decode()
    assert "and 2 more volumes" in page
    assert f"{MAX_SHOWN + 2} healthy volumes</summary>" in page


@pytest.mark.parametrize("has_status", [True, False])
def test_the_index_links_to_what_is_there(has_status: bool) -> None:
    page = index_page(has_status).decode()
    assert ('href="/status"' in page) is has_status
    assert 'href="/metrics"' in page


def test_a_node_without_volumes_says_so() -> None:
    assert "No pod of this node uses a FUSE volume." in status_page(shown(), {}, 1.0).decode()


@pytest.mark.parametrize("verdict", Verdict)
def test_the_history_knows_every_verdict(verdict: Verdict) -> None:
    history = Timelines()
    binds = (bind(), bind(kind=BindKind.SUBPATH))
    history.report(cycle(*(finding(one, verdict) for one in binds)))
    (spells,) = history.volumes().values()
    assert [spell.verdict for spell in spells] == [verdict.value]
