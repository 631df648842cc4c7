"""What a cluster's API server hears when a storage dies on all nodes in the same second.

    python -m tests.bench fleet
    python -m tests.bench.fleet --nodes 5000 --plot fleet.svg

Nothing real is asked: what the daemon would say comes from its own reporters, when it says it from
its own outbox, on a clock that jumps.  Three cases: the server is there; it is away for the first
two minutes; and nobody keeps to a share.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fusewatchd.kube.events.outbox import Outbox, Wait
from fusewatchd.kube.events.pace import Pace, most_told, share
from fusewatchd.kube.events.poster import FIRST_BACK_OFF_SECONDS, MAX_BACK_OFF_SECONDS
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.pods import Pod, Volume
from fusewatchd.model.verdicts import Verdict
from fusewatchd.rate_limit import Rate, doubled
from fusewatchd.report.events.draft import EventDraft, VolumeReference
from fusewatchd.report.events.pods import PodEvents
from fusewatchd.report.events.volumes import VolumeEvents
from tests.bench.rows import Row
from tests.unit.cycles import NEW, bind, cycle, finding, mount, outcome, replace_action

PODS, VOLUMES = 30, 3
LONGEST_SECONDS = 7200.0
UNPACED = Rate(1e6, 1e6)


@dataclass(frozen=True, slots=True)
class Case:
    """What happens to the cluster at second 0."""

    name: str
    server_back_at: float = 0.0
    is_paced: bool = True


CASES = (
    Case("as it is"),
    Case("API server away for 120 s", server_back_at=120.0),
    Case("without shares (every node at once)", is_paced=False),
)


def words_of_one_node(most: int) -> list[EventDraft]:
    """Let the daemon's reporters tell an outage of all volumes of a node."""
    claim = (Volume("data", "persistentVolumeClaim", claim="data"),)
    pods = {
        f"uid-{n}": Pod(f"u{n}", f"uid-{n}", "shop", f"web-{n}", "Running", False, claim)
        for n in range(PODS)
    }
    binds = [bind(uid, volume=f"pv-{n % VOLUMES}") for n, uid in enumerate(pods)]
    healed = [finding(replace(b, mount=mount(b.key.mount_point, NEW))) for b in binds]
    steps: list[CycleReport] = [
        cycle(
            *(finding(b, Verdict.STALE, source=NEW) for b in binds),
            pods=pods,
            actions=[replace_action(b) for b in binds],
        ),
        cycle(*healed, pods=pods, outcomes=[outcome(b) for b in binds], looked_at=99.0),
        cycle(*healed, pods=pods, looked_at=100.0),
    ]
    words: list[EventDraft] = []
    for reporter in (
        PodEvents(words.append, "node", most=lambda: most),
        VolumeEvents(words.append, "node", lambda: most),
    ):
        for step in steps:
            reporter.report(step)
    return words


class Node:
    """One node's outbox, and how its thread would use it."""

    def __init__(self, nodes: int, seed: int, case: Case, words: list[EventDraft]) -> None:
        """Have everything to say at second 0."""
        self._chance: Callable[[], float] = random.Random(seed).random
        pace = Pace(self._chance, None if case.is_paced else UNPACED)
        pace.take_nodes(nodes)
        self._outbox = Outbox(pace)
        self._known: set[str] = set()
        self._failures = 0
        self._case = case
        for word in words:
            self._outbox.add(word, 0.0, 1e9)

    def step(self, now: float) -> tuple[int, float | None]:
        """Return the requests that are sent now, and when the next step is."""
        found = self._outbox.next(now)
        if isinstance(found, Wait):
            return 0, found.until
        requests, about = 1, found.draft.regarding
        if now < self._case.server_back_at:
            delay = doubled(FIRST_BACK_OFF_SECONDS, MAX_BACK_OFF_SECONDS, self._failures)
            delay = max(delay, self._outbox.pace.seconds_between)
            self._failures += 1
            self._outbox.retry_at = now + delay * (0.5 + 0.5 * self._chance())
            return requests, now
        if isinstance(about, VolumeReference) and about.volume not in self._known:
            self._known.add(about.volume)
            return requests, now
        self._outbox.was_created(found, found.count, has_counts=True)
        return requests, now


def simulate(nodes: int, case: Case) -> Counter[int]:
    """Return the requests that arrive in each second."""
    words = words_of_one_node(most_told(UNPACED if not case.is_paced else share(nodes)))
    fleet = [Node(nodes, seed, case, words) for seed in range(nodes)]
    heap: list[tuple[float, int]] = [(0.0, number) for number in range(nodes)]
    arrived: Counter[int] = Counter()
    while heap:
        now, number = heapq.heappop(heap)
        requests, again = fleet[number].step(now)
        arrived[int(now)] += requests
        if again is not None and again < LONGEST_SECONDS:
            heapq.heappush(heap, (again, number))
    return arrived


def row_of(nodes: int, arrived: Counter[int], case: Case) -> Row:
    """Return what a table says of one case."""
    peak = max(arrived.values())
    return {
        "bench": "fleet",
        "case": case.name,
        "nodes": nodes,
        "requests": sum(arrived.values()),
        "seconds": max(s for s, n in arrived.items() if n) + 1,
        "peak_per_second": peak,
        "peak_per_1000_nodes": round(peak / nodes * 1000, 1),
    }


def rows(*, is_quick: bool) -> Iterator[Row]:
    """Simulate clusters of several sizes."""
    for nodes in (10, 100, 1000) if is_quick else (10, 100, 1000, 5000):
        for case, arrived in _cases(nodes):
            yield row_of(nodes, arrived, case)


def plot(path: Path, nodes: int, found: dict[str, Counter[int]]) -> None:
    """Draw requests per second against time."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    # The same picture from the same numbers, byte for byte.
    plt.rcParams["svg.hashsalt"] = "fleet"
    figure, axes = plt.subplots(figsize=(8, 4))
    for name, arrived in found.items():
        seconds = range(max(arrived) + 2)
        axes.plot(list(seconds), [arrived[s] for s in seconds], label=name, linewidth=1)
    axes.axhline(
        nodes / 1000 * 50, color="grey", linestyle=":", label="50 a second per 1,000 nodes"
    )
    axes.set(xlabel="seconds after the storage died", ylabel="requests per second", yscale="symlog")
    axes.set_title(f"{nodes} nodes, {PODS} pods and {VOLUMES} volumes on each")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _cases(nodes: int) -> Iterator[tuple[Case, Counter[int]]]:
    for case in CASES:
        yield case, simulate(nodes, case)


def main() -> int:
    """Print one line for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    found: dict[str, Counter[int]] = {}
    for case, arrived in _cases(options.nodes):
        print(json.dumps(row_of(options.nodes, arrived, case)), flush=True)
        found[case.name] = arrived
    if options.plot is not None:
        plot(options.plot, options.nodes, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
