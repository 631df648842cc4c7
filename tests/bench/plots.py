"""Draw what was measured against the size of the node.

    python -m tests.bench.plots      (after python -m tests.bench; needs matplotlib)

Writes ``recovery.svg``, ``idle.svg``, ``changes.svg`` and ``fleet.svg`` beside the results, the same bytes
from the same numbers.  Both axes of the first three are logarithmic: what grows in proportion has slope 1, which each
legend gives for the last two sizes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from tests.bench.fleet import CASES, plot, simulate
from tests.bench.rows import Row, load

matplotlib.use("svg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
Line = tuple[str, Sequence[tuple[float, float]]]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return by which power the last value grew with the size."""
    (x1, y1), (x2, y2) = points[-2:]
    return math.log(y2 / y1) / math.log(x2 / x1) if min(y1, y2, x1) > 0 and x2 != x1 else 0.0


def draw(path: Path, title: str, x: str, y: str, lines: Sequence[Line]) -> None:
    """Draw lines on logarithmic axes."""
    plt.rcParams["svg.hashsalt"] = path.stem
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, points in lines:
        label = f"{name} (slope {slope(points):.2f})" if len(points) > 1 else name
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xlabel=x, ylabel=y, title=title, xscale="log", yscale="log")
    axes.grid(which="both", alpha=0.2)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def rows_of(name: str) -> list[Row]:
    """Return what was kept of a benchmark."""
    return [row for row in load(RESULTS / f"{name}.jsonl").values() if row["bench"] == name]


def recovery() -> list[Line]:
    """Median time to recover, by the number of volumes of one source."""
    sizes = {"1 volume": 1, "10 volumes": 10, "100 volumes": 100, "1,000 volumes": 1000}
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows_of("recovery"):
        if row["case"] in sizes:
            found.setdefault(row["way"], []).append((sizes[row["case"]], row["median_ms"]))
            if "calls_ms" in row:
                floor = found.setdefault("bare system calls", [])
                floor.append((sizes[row["case"]], row["calls_ms"]))
    return [(name, sorted(points)) for name, points in found.items()]


def by_mounts(name: str, value: str, groups: Sequence[tuple[str, dict[str, Any]]]) -> list[Line]:
    """Return lines of one value against the number of mounts."""
    lines: list[Line] = []
    for label, wanted in groups:
        points = sorted(
            (row["mounts"], row[value])
            for row in rows_of(name)
            if row["mounts"] and all(row.get(key) == v for key, v in wanted.items())
        )
        if points:
            lines.append((label, points))
    return lines


def main() -> int:
    """Draw everything for which there are results."""
    draw(
        RESULTS / "recovery.svg", "From the new source to the last container that reads again",
        "volumes of one source", "ms", recovery(),
    )  # fmt: skip
    draw(
        RESULTS / "idle.svg", "An idle daemon", "mounts on the node", "% of one processor",
        by_mounts("idle", "cpu_percent", [("all sizes", {})]),
    )  # fmt: skip
    draw(
        RESULTS / "changes.svg", "One mount or unmount that is nobody's business",
        "mounts on the node", "ms of CPU",
        by_mounts(
            "changes", "cpu_ms_each",
            [("fanotify", {"case": "fanotify"}), ("mountinfo", {"case": "polling mountinfo"})],
        ),
    )  # fmt: skip
    nodes = 5000
    plot(RESULTS / "fleet.svg", nodes, {case.name: simulate(nodes, case) for case in CASES})
    return 0


if __name__ == "__main__":
    sys.exit(main())
