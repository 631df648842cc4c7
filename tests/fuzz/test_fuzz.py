"""The parsers against arbitrary input: a little in every run, a lot in the slow one."""

from __future__ import annotations

import random
import time

import pytest

from tests.fuzz.parsers import fuzz, report, try_out
from tests.fuzz.properties import PROPERTIES, Property

EXAMPLES = 25
MORE: dict[str, int] = {"an_answer_is_json_or_an_error_of_the_client": 300}
"""What nobody but strangers writes."""
SECONDS = 75.0


@pytest.mark.parametrize("one", PROPERTIES, ids=lambda one: one.name)
def test_quickly(one: Property) -> None:
    examples = MORE.get(one.name, EXAMPLES)
    assert try_out(one, examples) >= examples // 2


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 6)
def test_for_more_than_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    number = random.SystemRandom().randrange(2**32)
    began = time.monotonic()
    counts = fuzz(SECONDS, number)
    with capsys.disabled():
        print("\n" + report(counts, time.monotonic() - began, number))
    assert min(counts.values()) > 0
