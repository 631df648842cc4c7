"""Rows of results: made in private worlds, kept as JSON lines, compared with earlier ones."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fusewatchd.demo.node.world import PrivateWorld, run_in_private_world

Row = dict[str, Any]

LIMIT_SECONDS = 900.0
_NAMES = ("bench", "case", "way", "mounts", "pods", "volumes", "containers", "nodes", "source")
"""What a row is about; everything else in it was measured."""


def measured(body: Callable[[PrivateWorld], Row], seconds: float = LIMIT_SECONDS) -> Iterator[Row]:
    """Measure in a private world, which is a process of its own, and yield the row."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "row"

        def run(world: PrivateWorld) -> int:
            path.write_text(json.dumps(body(world)))
            return 0

        run_in_private_world(run, deadline_seconds=seconds)
        yield json.loads(path.read_text())


def machine() -> Row:
    """Return what the numbers were measured on."""
    return {"bench": "machine", "kernel": os.uname().release, "cpus": os.cpu_count()}


def key_of(row: Row) -> tuple[tuple[str, Any], ...]:
    """Return what tells this row from others."""
    return tuple((name, row[name]) for name in _NAMES if name in row)


def load(path: Path) -> dict[tuple[tuple[str, Any], ...], Row]:
    """Return the rows of an earlier run; none if there was none."""
    if not path.exists():
        return {}
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return {key_of(row): row for row in found}


def line_of(row: Row, before: Row | None) -> str:
    """Return a row for a person, each number with what it was before."""
    words = [str(value) for _, value in key_of(row)]
    for name, value in row.items():
        if name in _NAMES:
            continue
        old = before.get(name) if before else None
        words.append(f"{name} {value}" + (f" (was {old})" if old not in (None, value) else ""))
    return "  ".join(words)


def keep(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows down; those of other benchmarks that were kept there stay."""
    known = load(path) | {key_of(row): row for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in known.values()))
