"""Each claim of SECURITY.md names a test, and that test is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
CLAIMS = sorted(set(re.findall(r"`(tests/\S+)::(\w+)`", PAGE)))


def test_the_page_makes_claims() -> None:
    assert len(CLAIMS) > 30
    assert PAGE.count("::") == len(re.findall(r"`tests/\S+::\w+`", PAGE)), "one is misspelt"


@pytest.mark.parametrize(("file", "name"), CLAIMS)
def test_a_claim_is_shown_by_a_test(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_link_leads_to_a_section() -> None:
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\(#([^)]+)\)", PAGE))
    assert len(links) >= 5
    assert links <= anchors
