"""Whatever is copied, in whichever order: a bind gets the file system that it had, or none."""

from __future__ import annotations

import random

import pytest

from tests.unit.copiednodes import CopiedNode

STEPS = 40


def run(seeds: range, has_ids: bool) -> tuple[int, int]:
    """Return how many binds were recovered, and how many of them had to be."""
    recovered = expected = 0
    for seed in seeds:
        node = CopiedNode(random.Random(seed), has_ids)
        try:
            node.run(STEPS)
        except AssertionError as exc:
            raise AssertionError(f"seed {seed}: {exc}") from exc
        recovered += node.recovered
        expected += node.expected
    return recovered, expected


IDS = pytest.mark.parametrize("has_ids", [True, False], ids=["ids", "order"])


@IDS
def test_a_bind_gets_the_file_system_that_it_had_or_none(has_ids: bool) -> None:
    recovered, expected = run(range(200), has_ids)
    assert recovered >= expected > 60


@pytest.mark.slow
@pytest.mark.timeout(3600)
@IDS
def test_so_it_is_on_ten_thousand_nodes(has_ids: bool) -> None:
    recovered, expected = run(range(1000, 6000), has_ids)
    assert recovered >= expected > 2000
