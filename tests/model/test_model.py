"""Short lives of a node, and what they are written down in; long ones: ``python -m tests.model``."""

from __future__ import annotations

import pytest

from fusewatchd.demo.timeouts import patient
from fusewatchd.linux.mount_kernel import Way
from tests.features import best_way, needs_way
from tests.model.episode import EPISODE_SECONDS, random_episode
from tests.model.steps import Scenario, Step, parse

SEED = "suite"
SHORT, LONGER = 8, 30
LIVES = 3


def live(way: Way, number: int, length: int) -> None:
    result = random_episode(SEED, number, way.value, length)
    again = f"--seed {SEED} --episode {number} --way {way.value} --length {length}"
    assert not result.failure, f"{again}\n{result.story()}\n\n{result.failure}\n{result.log}"


@pytest.mark.kernel
@pytest.mark.timeout(patient(EPISODE_SECONDS))
def test_a_short_life() -> None:
    live(best_way(), 0, SHORT)


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.timeout(patient(EPISODE_SECONDS))
@pytest.mark.parametrize("number", range(1, 1 + LIVES))
@pytest.mark.parametrize("way", [pytest.param(way, marks=needs_way(way)) for way in Way])
def test_longer_lives(way: Way, number: int) -> None:
    live(way, number, LONGER)


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.timeout(2 * patient(EPISODE_SECONDS))
def test_what_a_seed_chooses_rests_on_nothing_else() -> None:
    """Not on how mounts are replaced, nor on which of two that run at once is faster."""
    one, other = (random_episode(SEED, LIVES + 1, way.value, LONGER) for way in _two_ways())
    assert one.steps == other.steps
    assert not (one.failure or other.failure)


def _two_ways() -> list[Way]:
    return [best_way(), Way.STAGED]


def test_steps_are_read_as_they_are_printed() -> None:
    steps = [Step(("crash", "one")), Step(("stack", "p3/v", "2"), settles=False)]
    assert parse([*map(str, steps), "", "# a remark"]) == steps
    for scenario in (
        Scenario("on-top", "rebind", has_kubelet=True),
        Scenario(detaches=True, is_old_kernel=True),
    ):
        assert Scenario.parse(str(scenario)) == scenario
