"""Try the parsers on as many inputs as a time allows: ``python -m tests.fuzz.parsers --minutes 5``.

A failure is shrunk, shown, and found again with the seed and the property that are printed.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz import http_answers
from tests.fuzz.properties import PROPERTIES, Property

assert http_answers.BODIES  # it adds its property

EXAMPLES_AT_A_TIME = 300


def try_out(one: Property, examples: int, number: int | None = None) -> int:
    """Run one property on this many inputs; return how many there were.

    Without a number the inputs are the same every time.
    """
    count = 0

    def counted(value: Any) -> None:
        nonlocal count
        count += 1
        one.check(value)

    test: Callable[[], None] = settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=number is None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )(given(one.inputs)(counted))
    (test if number is None else seed(number)(test))()
    return count


def fuzz(
    seconds: float, number: int, properties: Sequence[Property] = PROPERTIES
) -> dict[str, int]:
    """Try the properties in turn until the time is over; return the examples of each."""
    numbers = random.Random(number)
    end = time.monotonic() + seconds
    counts = dict.fromkeys((one.name for one in properties), 0)
    while time.monotonic() < end:
        for one in properties:
            chunk = numbers.randrange(2**32)
            try:
                counts[one.name] += try_out(one, EXAMPLES_AT_A_TIME, chunk)
            except BaseException:
                print(f"again: python -m tests.fuzz.parsers --property {one.name} --chunk {chunk}")
                raise
            if time.monotonic() >= end:
                break
    return counts


def report(counts: dict[str, int], seconds: float, number: int) -> str:
    """Say how much was tried."""
    lines = [f"{count:9} {name}" for name, count in counts.items()]
    total = sum(counts.values())
    return "\n".join([*lines, f"{total:9} examples in {seconds:.0f} s, seed {number}"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz.parsers", description="Fuzz the parsers.")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--property", choices=[one.name for one in PROPERTIES])
    parser.add_argument("--chunk", type=int, help="one seed of one property, as a failure names it")
    options = parser.parse_args(arguments)
    chosen = [one for one in PROPERTIES if options.property in (None, one.name)]
    if options.chunk is not None:
        for one in chosen:
            try_out(one, EXAMPLES_AT_A_TIME, options.chunk)
        return 0
    began = time.monotonic()
    counts = fuzz(options.minutes * 60, options.seed, chosen)
    print(report(counts, time.monotonic() - began, options.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
