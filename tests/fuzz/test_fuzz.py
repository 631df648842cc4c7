"""The parsers against arbitrary input: a little in every run, a lot in the slow one."""

from __future__ import annotations

import random
import time

import pytest

from tests.fuzz.parsers import fuzz, report, try_out
from tests.fuzz.properties import PROPERTIES, Property

EXAMPLES = 25
SECONDS = 75.0


@pytest.mark.parametrize("one", PROPERTIES, ids=lambda one: one.name)
def test_quickly(one: Property) -> None:
    assert try_out(one, EXAMPLES) >= EXAMPLES // 2


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 6)
def test_for_more_than_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    number = random.SystemRandom().randrange(2**32)
    began = time.monotonic()
    counts = fuzz(SECONDS, number)
    with capsys.disabled():
        print("\n" + report(counts, time.monotonic() - began, number))
    assert min(counts.values()) > 0
