"""``python -m tests.model --minutes 8 --seed N [--way beneath]``: random lives of a node.

What fails is shortened and printed as steps that ``--replay FILE`` carries out again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence

from tests.model.choice import WAYS
from tests.model.episode import Result, random_episode, replay
from tests.model.shrink import shrink
from tests.model.steps import Scenario, parse

LENGTH = 60


def total(counts: Counter[str], more: Counter[str]) -> None:
    """Add what can be added, and keep the larger of what cannot."""
    for name, number in more.items():
        is_extreme = name.startswith(("most ", "longest "))
        counts[name] = max(counts[name], number) if is_extreme else counts[name] + number


def report(counts: Counter[str], episodes: int, seconds: float, seed: str) -> str:
    """Say how much was done, by rule."""
    steps = sum(number for name, number in counts.items() if name.startswith("step "))
    lines = [f"{number:7} {name.removeprefix('step ')}" for name, number in sorted(counts.items())]
    lines.append(
        f"{steps:7} steps in {episodes} episodes and {seconds:.0f} s,"
        f" {steps / max(seconds, 0.001):.1f} a second, seed {seed}"
    )
    return "\n".join(lines)


def tell(result: Result) -> None:
    """Print a failure: the steps, what was broken, what the daemon said."""
    print(f"\n{result.story()}\n\n{result.failure}\n\n{result.log[-6000:]}", flush=True)


def run(minutes: float, seed: str, way: str, length: int, *, first: int = 0, shortens: bool) -> int:
    """Live episodes until the time is over; return the exit status."""
    counts: Counter[str] = Counter()
    began = time.monotonic()
    episodes = 0
    while time.monotonic() - began < minutes * 60:
        number = first + episodes
        result = random_episode(seed, number, way, length)
        episodes += 1
        total(counts, result.counts)
        print(f"{time.monotonic() - began:6.0f} s  {result.scenario}: {len(result.steps)} steps")
        sys.stdout.flush()
        if result.failure:
            which = f"--seed {seed} --episode {number}" + (f" --way {way}" if way else "")
            print(f"FAILED; once more: python -m tests.model {which} --length {length}")
            tell(result)
            if shortens:
                tell(shrink(result))
            return 1
    print(report(counts, episodes, time.monotonic() - began, seed))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.model", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10**9)))
    parser.add_argument("--way", choices=WAYS, default="", help="all in turn when not given")
    parser.add_argument("--length", type=int, default=LENGTH, help="steps of one episode")
    parser.add_argument("--episode", type=int, help="only this one of the seed")
    parser.add_argument("--first", type=int, default=0, help="begin with this one of the seed")
    parser.add_argument("--as-it-is", action="store_true", help="do not shorten what fails")
    parser.add_argument("--replay", metavar="FILE", help="steps as a failure prints them")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        with open(options.replay, encoding="utf-8") as file:
            lines = file.read().splitlines()
        heads = [line.partition("scenario:")[2] for line in lines if "scenario:" in line]
        result = replay(Scenario.parse(heads[0]) if heads else Scenario(), parse(lines))
    elif options.episode is not None:
        result = random_episode(options.seed, options.episode, options.way, options.length)
    else:
        print(f"seed {options.seed}")
        return run(
            options.minutes,
            options.seed,
            options.way,
            options.length,
            first=options.first,
            shortens=not options.as_it_is,
        )
    if result.failure:
        tell(result)
        return 1
    print(report(result.counts, 1, 0.0, options.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
