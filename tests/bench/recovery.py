"""Time from the new source mount to the first good open in every container.

    python -m tests.bench recovery [--quick]      (as root; a quarter of an hour, or two minutes)

In each case one server, or ten of them, are killed and started again, and one process enters the
containers in turn until the file opens.  The next crash follows at once, in the middle of the looks
at containers that follow a recovery, or ``after a rest``, as crashes do.  ``floor_ms`` is what that
process itself needs for one round through containers that all work, ``calls_ms`` what the bare
system calls need for the same binds in two plain loops, and ``calls_with_looks_ms`` what those with
which each replacement looks before and after it need as well; all of them are inside the other
numbers.  ``poll`` in the place of a way is an agent that does what node agents do today: look every
five seconds, stack ``mount --bind``.  ``toy`` is a process that knows its work and checks nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.sources import OldServer
from fusewatchd.demo.node.world import PrivateWorld
from fusewatchd.observe.namespaces.schedule import AFTER_RECOVERY_SECONDS
from tests.bench.bare import replace_by_hand
from tests.bench.opener import Opener
from tests.bench.others import PollingAgent
from tests.bench.rows import Row, measured
from tests.bench.stage import Layout, Stage, staged
from tests.bench.toy import Toy

WAYS = ("beneath", "on-top", "staged")
POLL = "poll"
TOY = "toy"
DEADLINE_SECONDS = 60.0
SETTLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured."""

    name: str
    layout: Layout
    crashes: int
    ways: tuple[str, ...] = WAYS
    is_drained: bool = False
    """The new source is up before the old server dies; measured from that death."""
    is_rested: bool = False
    """The node was left in peace after the last crash, until the looks that follow it were over."""
    is_quick: bool = field(default=False)


HUNDRED = Layout(volumes=100, containers=100)
CASES = (
    Case("1 volume", Layout(follows_host=True), 50, (*WAYS, POLL), is_quick=True),
    Case("1 volume, after a rest", Layout(follows_host=True), 20, is_rested=True),
    Case("2 volumes", Layout(volumes=2, containers=2), 50, (*WAYS, TOY), is_quick=True),
    Case("10 volumes", Layout(volumes=10, containers=10), 20),
    Case("10 volumes, 10 sources", Layout(10, 10, 10), 20),
    Case("100 volumes", HUNDRED, 10, is_quick=True),
    Case("100 volumes, after a rest", HUNDRED, 10, is_rested=True),
    Case("100 volumes, follow host", Layout(100, 1, 100, follows_host=True), 5, (*WAYS, POLL)),
    Case("100 volumes, 10 sources", Layout(100, 10, 100), 5),
    Case("100 volumes, 5,000 mounts", Layout(100, 1, 100, other_mounts=5000), 5),
    Case(
        "100 volumes, 2,000 processes",
        Layout(100, 1, 100, other_processes=2000, other_namespaces=300),
        5,
    ),
    Case("1,000 volumes", Layout(1000, 1, 200), 3),
    Case("1,000 volumes, 10 sources", Layout(1000, 10, 200), 3),
    Case("drain, 1 volume", Layout(), 20, is_drained=True),
    Case("drain, 100 volumes", HUNDRED, 5, is_drained=True),
)


def rows(*, is_quick: bool) -> Iterator[Row]:
    """Measure every case in every way, each in a world of its own."""
    for case in CASES:
        if is_quick and not case.is_quick:
            continue
        for way in case.ways:
            yield from measured(lambda world, w=way, c=case: measure(world, w, c))


def measure(world: PrivateWorld, way: str, case: Case) -> Row:
    """Crash and restart again and again; return a row of the table."""
    layout = case.layout
    with DemoNode(world) as node, staged(node, layout) as stage:
        floor = _round(stage.pids)
        row: Row = {"bench": "recovery", "case": case.name, "way": way}
        if way == POLL:
            return {**row, **summary(_polled(stage, min(case.crashes, 5)))}
        if way == TOY:
            return {**row, **summary(_by_toy(stage, case.crashes))}
        with DaemonProcess(node, way=way) as daemon:
            daemon.wait_until_watching(layout.binds, DEADLINE_SECONDS)
            taken: list[float] = []
            for _ in range(case.crashes):
                taken.append(_one_crash(stage, is_drained=case.is_drained))
                daemon.wait_until_watching(layout.binds, DEADLINE_SECONDS)
                if case.is_rested:
                    time.sleep(AFTER_RECOVERY_SECONDS[-1] + SETTLE_SECONDS)
        row |= {**summary(taken), "floor_ms": round(floor * 1e3, 1)}
        if way == "beneath" and not case.is_drained:
            row["calls_ms"] = round(_by_hand(stage, looks=False) * 1e3, 1)
            row["calls_with_looks_ms"] = round(_by_hand(stage, looks=True) * 1e3, 1)
        return row


def summary(taken: list[float]) -> Row:
    """Return what a table says of some durations in seconds."""
    taken = sorted(taken)
    return {
        "crashes": len(taken),
        "median_ms": round(statistics.median(taken) * 1e3, 1),
        "p95_ms": round(taken[max(0, -(-len(taken) * 95 // 100) - 1)] * 1e3, 1),
        "max_ms": round(taken[-1] * 1e3, 1),
    }


def _one_crash(stage: Stage, *, is_drained: bool) -> float:
    if is_drained:
        (source,) = stage.sources
        opener = Opener(stage.pids, "/data/hello", DEADLINE_SECONDS)
        source.restart(old=OldServer.DRAINING)
        time.sleep(SETTLE_SECONDS)
        start = source.draining.pop().kill()
    else:
        for source in stage.sources:
            source.kill()
        opener = Opener(stage.pids, "/data/hello", DEADLINE_SECONDS)
        start = max([source.restart() for source in stage.sources])
    opener.go()
    return max(opener.moments()) - start


def _by_hand(stage: Stage, *, looks: bool) -> float:
    """Return the least of three."""
    found = []
    for _ in range(3):
        for source in stage.sources:
            source.kill()
            source.restart()
        source = stage.sources[0].path
        found.append(replace_by_hand(source, stage.targets, stage.pids, looks=looks))
    return min(found)


def _polled(stage: Stage, crashes: int) -> list[float]:
    taken = []
    agent = PollingAgent(stage.sources[0].path, stage.targets)
    agent.start()
    try:
        for number in range(crashes):
            time.sleep(1.0 + number * 0.7 % 5.0)  # at another moment of the five seconds each time
            taken.append(_one_crash(stage, is_drained=False))
    finally:
        agent.stop()
    return taken


def _by_toy(stage: Stage, crashes: int) -> list[float]:
    toy = Toy(stage.sources[0].path, stage.targets, stage.pids)
    toy.start()
    try:
        return [_one_crash(stage, is_drained=False) for _ in range(crashes)]
    finally:
        toy.stop()


def _round(pids: Sequence[int]) -> float:
    opener = Opener(pids, "/data/hello", DEADLINE_SECONDS)
    start = time.monotonic()
    opener.go()
    return max(opener.moments()) - start
