"""Short random lives of a node, the same ones every time, in every way of replacing mounts."""

from __future__ import annotations

import pytest

from tests.lab import WAYS
from tests.model.episode import EPISODE_SECONDS, random_episode
from tests.model.steps import Scenario, Step, parse

SEED = "node"
LENGTH = 50


def test_steps_are_read_as_they_are_printed() -> None:
    steps = [Step(("crash", "one")), Step(("stack", "p3/v", "2"), settles=False)]
    assert parse([*map(str, steps), "", "# a remark"]) == steps
    scenario = Scenario("on-top", "rebind", has_kubelet=True)
    assert Scenario.parse(str(scenario)) == scenario


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.timeout(EPISODE_SECONDS + 60)
@WAYS
@pytest.mark.parametrize("number", [0, 1])
def test_a_life(way: str, number: int) -> None:
    result = random_episode(SEED, number, way, LENGTH)
    assert not result.failure, f"{result.story()}\n\n{result.failure}\n\n{result.log[-4000:]}"
    assert len(result.steps) == LENGTH
