"""A new verdict, reason, kind or Event is missing in no table: what lacks one ends the daemon."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from pathlib import Path

import pytest
import yaml

from fusewatchd.model.pods import BindKind
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.plan.planner import RANKS
from fusewatchd.report.events.volumes import ON_CLAIM
from fusewatchd.report.events.wording import NOT_FOR_GOOD, EventKind
from fusewatchd.report.log.binds import SAYINGS
from fusewatchd.serve.volume_history import BY_BADNESS, Timelines
from tests.unit.cycles import bind, cycle, finding

RULES = Path(__file__).parents[2] / "conf/prometheus/rules.yml"


@pytest.mark.parametrize(
    ("table", "members"),
    [(RANKS, BindKind), (SAYINGS, Verdict), (BY_BADNESS, Verdict), (ON_CLAIM, EventKind)],
    ids=["planner", "log", "timelines", "claims"],
)
def test_nothing_is_missing(table: Collection[Enum], members: type[Enum]) -> None:
    assert sorted(member.name for member in table) == sorted(member.name for member in members)


@pytest.mark.parametrize("verdict", Verdict)
def test_a_volume_with_two_binds_of_any_verdict_has_a_time_line(verdict: Verdict) -> None:
    history = Timelines()
    binds = (bind(), bind(kind=BindKind.CONTAINER))
    history.report(cycle(*(finding(of, verdict) for of in binds)))
    assert [spell.verdict for spell in history.volumes()["uid-a", "pv-1"]] == [verdict.value]


def test_the_alert_for_people_names_all_reasons_that_do_not_pass() -> None:
    rules = [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]
    (expr,) = (rule["expr"] for rule in rules if rule.get("alert") == "FuseVolumesNeedManualAction")
    asked = expr.split('reason=~"')[1].split('"')[0].split("|")
    assert sorted(asked) == sorted(reason.value for reason in set(Reason) - NOT_FOR_GOOD)
