"""What the random lives of a node are written down in."""

from __future__ import annotations

from tests.model.steps import Scenario, Step, parse


def test_steps_are_read_as_they_are_printed() -> None:
    steps = [Step(("crash", "one")), Step(("stack", "p3/v", "2"), settles=False)]
    assert parse([*map(str, steps), "", "# a remark"]) == steps
    scenario = Scenario("on-top", "rebind", has_kubelet=True)
    assert Scenario.parse(str(scenario)) == scenario
