"""The golden cases of drivers are what this kernel shows when their layouts are really made."""

from __future__ import annotations

import copy
import json

import pytest

from tests import drivercases
from tests.drivercapture import DEAD, DIRECTORY, STATES, capture, case_names, layout_of
from tests.features import Feature, needs
from tests.lab import why_no_lab

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_no_lab()), reason=why_no_lab() or "-"),
    needs(Feature.STATMOUNT),
]


@pytest.mark.parametrize("case", case_names())
def test_a_case_is_captured_as_it_is_kept(case: str) -> None:
    captured = capture(layout_of(case))
    kept = {name: (DIRECTORY / case / name).read_text() for name in captured}
    assert captured == kept, f"python -m tests.drivercapture {case}"


def test_all_cases_but_the_one_of_another_node_have_a_layout() -> None:
    assert set(drivercases.case_names()) - set(case_names()) == {"captured"}
    for case in case_names():
        found = {path.name for path in (DIRECTORY / case).iterdir()}
        assert found == {"case.json", "layout.json", DEAD, *(f"{s}.mountinfo" for s in STATES)}


def test_what_is_captured_follows_the_layout() -> None:
    layout = copy.deepcopy(layout_of("juicefs-moved"))
    before = capture(layout)
    layout["binds"][0]["flags"] = "ro"
    layout["servers"][0]["lives_on"] = True
    after = capture(layout)
    assert " ro,nosuid,nodev,relatime " in after["healthy.mountinfo"]
    assert after["broken.mountinfo"] == after["healthy.mountinfo"] != before["healthy.mountinfo"]
    assert json.loads(after[DEAD]) == {state: [] for state in STATES}
