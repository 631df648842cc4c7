"""Run benchmarks, print them beside the last results, and keep them.

python -m tests.bench [--quick] [recovery|notice|changes|idle|start|fleet|attack|soak ...]      (as root)
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from tests.bench.rows import keep, key_of, line_of, load, machine

NAMES = ("recovery", "notice", "changes", "idle", "start", "fleet")
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Print one line for each row, for a person or as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="benchmark", help="all but attack and soak if none"
    )
    parser.add_argument("--quick", action="store_true", help="a few minutes; numbers are rough")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-keep", action="store_true", help="leave the last results alone")
    options = parser.parse_args()
    for name in options.names or NAMES:
        path = RESULTS / f"{name}.jsonl"
        before = load(path)
        rows = []
        for row in importlib.import_module(f"tests.bench.{name}").rows(is_quick=options.quick):
            rows.append(row)
            text = json.dumps(row) if options.json else line_of(row, before.get(key_of(row)))
            print(text, flush=True)
        if not options.no_keep and not options.quick:
            keep(path, [*rows, machine()])
    return 0


if __name__ == "__main__":
    sys.exit(main())
