"""Rules and dashboard ask for nothing that the daemon does not export."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from fusewatchd.model.verdicts import Reason
from fusewatchd.report.metrics.metrics import Metrics
from tests.unit.cycles import incident, outage, with_ledger

DIRECTORY = Path(__file__).parents[2] / "conf/prometheus"
RULES = yaml.safe_load((DIRECTORY / "rules.yml").read_text())
DASHBOARD: Any = json.loads((DIRECTORY / "grafana-dashboard.json").read_text())
ADDED_BY_PROMETHEUS = {"instance", "job"}

Series = dict[str, dict[str, set[str]]]


def exported() -> Series:
    """Label values by label by name of series, as a node with an outage behind it has them."""
    metrics = Metrics("1.0", "beneath")
    for step in outage():
        metrics.report(step)
    metrics.report(with_ledger(outage()[2], incidents=[incident()]))
    found: Series = {}
    for family in text_string_to_metric_families(metrics.page().body.decode()):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    # What never held anything back has no series yet.
    found["fusewatchd_waiting_mounts"]["reason"] |= {reason.value for reason in Reason}
    return found


EXPORTED = exported()
RECORDED = {
    rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule
}


def rules() -> Iterator[dict[str, Any]]:
    for group in RULES["groups"]:
        yield from group["rules"]


def expressions() -> list[str]:
    asked = [rule["expr"] for rule in rules()]
    for panel in DASHBOARD["panels"]:
        asked += [target["expr"] for target in panel["targets"]]
    return asked


def complaints(expression: str) -> list[str]:
    """Return what an expression asks for that is not there."""
    found = []
    labels = set(ADDED_BY_PROMETHEUS)
    for name, selector in re.findall(
        r"\b((?:instance\w*:)?fusewatchd_\w+(?::\w+)?)(\{[^}]*\})?", expression
    ):
        if name in RECORDED:
            labels |= {"driver"}
            continue
        if name not in EXPORTED:
            found.append(name)
            continue
        labels |= set(EXPORTED[name])
        for label, _, value in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', selector):
            known = EXPORTED[name].get(label)
            if label in ADDED_BY_PROMETHEUS:
                continue
            if known is None:
                found.append(f"{name}{{{label}}}")
                continue
            found += [f"{name}{{{label}={v}}}" for v in value.split("|") if v not in known]
    for group in re.findall(r"\b(?:by|without) \(([^)]*)\)", expression):
        found += [label for label in group.split(", ") if label not in labels]
    return found


@pytest.mark.parametrize("expression", expressions())
def test_every_series_and_label_exists(expression: str) -> None:
    assert complaints(expression) == []


def test_the_comparison_sees_what_is_not_there() -> None:
    expression = (
        'sum by (colour) (fusewatchd_mounts{verdict=~"stale|ill", size="1"}) + fusewatchd_none'
    )
    assert complaints(expression) == [
        "fusewatchd_mounts{verdict=ill}",
        "fusewatchd_mounts{size}",
        "fusewatchd_none",
        "colour",
    ]


def test_every_rule_is_tested() -> None:
    files = (DIRECTORY / "rules_test.yml", DIRECTORY / "rules_days_test.yml")
    tests = [test for file in files for test in yaml.safe_load(file.read_text())["tests"]]
    tested = {case["alertname"] for test in tests for case in test["alert_rule_test"]}
    assert tested == {rule["alert"] for rule in rules() if "alert" in rule}


def test_labels_in_the_words_of_an_alert_are_those_of_its_series() -> None:
    for rule in rules():
        words = " ".join(rule.get("annotations", {}).values())
        for label in re.findall(r"\$labels\.(\w+)", words):
            known = {
                *ADDED_BY_PROMETHEUS,
                "driver",
                "reason",
                "thread",
                "resource",
                "source",
                "what",
                "mode",
                "class",
            }
            assert label in known, rule["alert"]


def test_the_dashboard_is_one_that_grafana_loads() -> None:
    """Places and identifiers; the models of Grafana's own SDK read it without a loss."""
    panels = DASHBOARD["panels"]
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD["uid"] == "fusewatchd"
    assert "id" not in DASHBOARD
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & own, panel["title"]
        cells |= own
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
        assert panel["fieldConfig"]["defaults"]["unit"]
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == [
        "datasource",
        "instance",
    ]


def test_every_alert_leads_to_its_section_of_the_runbook() -> None:
    page = (DIRECTORY / "README.md").read_text()
    anchors = {head.lower() for head in re.findall(r"^### (\w+)$", page, re.MULTILINE)}
    for rule in rules():
        if "alert" in rule:
            address, _, anchor = rule["annotations"]["runbook_url"].partition("#")
            assert address.endswith("/conf/prometheus/README.md")
            assert anchor == rule["alert"].lower()
            assert anchor in anchors


def test_the_operators_object_has_the_same_rules() -> None:
    document = yaml.safe_load((DIRECTORY / "prometheusrule.yaml").read_text())
    assert document["kind"] == "PrometheusRule"
    assert document["spec"] == RULES


def test_the_operators_scraping_names_the_job_that_alerts_ask_for() -> None:
    document = yaml.safe_load((DIRECTORY / "scrapeconfig.yaml").read_text())
    assert document["kind"] == "ScrapeConfig"
    (job,) = [
        r["replacement"] for r in document["spec"]["relabelings"] if r["targetLabel"] == "job"
    ]
    assert all(job in e for e in expressions() if "job=" in e)
