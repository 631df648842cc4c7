"""One life of a node: steps, one after the other, and a look after each."""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

from fusewatchd.demo.node.node import DemoNode
from tests.lab import LabFailure, run_in_lab
from tests.model.actors import carry_out
from tests.model.choice import choose, choose_emphasis, choose_scenario
from tests.model.judge import Judge
from tests.model.places import Violation
from tests.model.possible import NotPossible
from tests.model.stage import Stage
from tests.model.steps import Scenario, Step, parse

SETTLE_SECONDS = 20.0
SHORT_SETTLE_SECONDS = 9.0
"""When what fails is tried again and again; the kubelet's list alone may take six."""
FIRST_PAUSE_SECONDS = 0.005
LONGEST_PAUSE_SECONDS = 0.1
WATCH_SECONDS = 0.8
WATCHED = {"copy", "start-daemon", "start", "err"}
EPISODE_SECONDS = 600.0

Next = Callable[[Stage, int], Step | None]


@dataclass(frozen=True, slots=True)
class Result:
    """What an episode was, and how it ended."""

    scenario: Scenario
    steps: list[Step]
    counts: Counter[str] = field(default_factory=Counter)
    failure: str = ""
    log: str = ""

    def document(self) -> dict[str, object]:
        """Return it as JSON carries it out of the lab."""
        return {
            "scenario": str(self.scenario),
            "steps": [str(step) for step in self.steps],
            "counts": dict(self.counts),
            "failure": self.failure,
            "log": self.log,
        }

    def story(self) -> str:
        """Print what ``--replay`` reads."""
        return "\n".join([f"# scenario: {self.scenario}", *map(str, self.steps)])


def random_episode(seed: str, number: int, way: str, length: int) -> Result:
    """Live one episode; everything in it follows from the seed and the node's answers."""
    first = random.Random(f"{seed}/{number}")
    scenario, emphasis = choose_scenario(first, number, way), choose_emphasis(first)

    def draw(stage: Stage, index: int) -> Step | None:
        # A generator for each step: one that went another way changes no later choice.
        chance = random.Random(f"{seed}/{number}/{index}")
        return choose(chance, stage, index, emphasis) if index < length else None

    return _live(scenario, draw)


def replay(
    scenario: Scenario, steps: Sequence[Step], settle_seconds: float = SETTLE_SECONDS
) -> Result:
    """Live through steps that were printed; those that are not possible are left out."""
    left = list(steps)

    def draw(stage: Stage, index: int) -> Step | None:
        return left[index] if index < len(left) else None

    return _live(scenario, draw, settle_seconds)


def _live(scenario: Scenario, draw: Next, settle_seconds: float = SETTLE_SECONDS) -> Result:
    with tempfile.TemporaryFile("w+") as journal:
        try:
            found = run_in_lab(
                lambda node: _run(node, scenario, draw, settle_seconds, journal).document(),
                timeout=EPISODE_SECONDS,
            )
        except BaseException as exc:
            if type(exc).__name__ != "Failed" and not isinstance(exc, LabFailure):
                raise
            journal.seek(0)
            return Result(scenario, parse(journal), failure=f"the lab: {exc}")
    return Result(
        scenario, parse(found["steps"]), Counter(found["counts"]), found["failure"], found["log"]
    )


def _run(
    node: DemoNode, scenario: Scenario, draw: Next, settle_seconds: float, journal: IO[str]
) -> Result:
    stage = Stage(node, scenario)
    done: list[Step] = []
    failure = ""
    try:
        for step in _steps(stage, draw):
            done.append(step)
            # What it was doing when nothing came back from the lab.
            print(step, file=journal, flush=True)
            try:
                carry_out(stage, step)
            except NotPossible:
                done.pop()
                continue
            stage.counts[f"step {step.words[0]}"] += 1
            if step.settles:
                settle(stage, settle_seconds, watch_seconds(stage, step))
        settle(stage, settle_seconds)
    except Violation as exc:
        failure = str(exc)
        failure += f"\n\n{stage.what_is_mounted()}"
        if stage.is_daemon_up:
            failure += f"\n\n{stage.what_they_do()}"
    log = stage.new_log() if failure else ""
    try:
        stage.close()
    except (OSError, RuntimeError) as exc:
        failure = failure or f"the end of the daemon: {exc!r}"
    return Result(scenario, done, stage.counts, failure, log)


def _steps(stage: Stage, draw: Next) -> Iterator[Step]:
    index = 0
    while (step := draw(stage, index)) is not None:
        yield step
        index += 1


def watch_seconds(stage: Stage, step: Step) -> float:
    """Return for how long promises must hold that are kept by doing nothing."""
    is_odd = stage.copies or any(state.errno for state in stage.sources.values())
    return WATCH_SECONDS if is_odd and step.words[0] in WATCHED else 0.0


def settle(stage: Stage, seconds: float, least: float = 0.0) -> None:
    """Wait until every promise holds, and look on for so long at least.

    Raises:
        Violation: it does not in so many seconds.
    """
    judge = Judge(stage)
    began = time.monotonic()
    pause, held_at = FIRST_PAUSE_SECONDS, began
    while (found := judge.violations()) or time.monotonic() - began < least:
        if found and time.monotonic() - began > seconds:
            raise Violation("\n".join(found))
        time.sleep(pause)
        pause = min(LONGEST_PAUSE_SECONDS, pause * 1.5)
        held_at = time.monotonic() if found else held_at
    stage.counts["settled"] += 1
    longest = stage.counts["longest settling, ms"]
    stage.counts["longest settling, ms"] = max(longest, round((held_at - began) * 1000))
