"""What is told of a thread that failed: each kind once in the log, each time in the metric."""

from __future__ import annotations

import ast
import threading
from pathlib import Path

import fusewatchd
from fusewatchd.daemon.reporting import ThreadFailures
from fusewatchd.log import Entry, Level, Log
from fusewatchd.report.metrics.metrics import THREADS, Metrics


class Kept:
    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def write(self, entry: Entry) -> bool:
        self.entries.append(entry)
        return True

    def close(self) -> None:
        pass


def failed(name: str, text: str) -> threading.ExceptHookArgs:
    try:
        int(text)
    except ValueError as exc:
        thread = threading.Thread(name=name)
        return threading.ExceptHookArgs((type(exc), exc, exc.__traceback__, thread))
    raise AssertionError(text)


def test_each_kind_once_in_the_log_and_each_time_in_the_metric() -> None:
    sink, metrics = Kept(), Metrics("1")
    failures = ThreadFailures(metrics, Log(sink, Level.INFO))
    for text in ("²", "top-secret"):
        failures.take(failed("kubelet", text))
    failures.take(failed("web", "²"))
    failures.take(failed("nobody's", "²"))
    lines = [(entry.level, entry.fields["thread"]) for entry in sink.entries]
    assert lines == [(Level.ERROR, name) for name in ("kubelet", "web", "nobody's")]
    assert not any("secret" in str(entry) for entry in sink.entries)
    page = metrics.page().body.decode()
    for thread, count in (("kubelet", 2), ("web", 1), ("other", 1), ("state", 0)):
        assert f'fusewatchd_thread_failures_total{{thread="{thread}"}} {count}.0\n' in page


def test_every_thread_has_a_guard_and_a_series_of_its_own() -> None:
    names: set[str] = set()
    for path in sorted(Path(fusewatchd.__file__).parent.rglob("*.py")):
        for call in calls_in(path.read_text()):
            made = ast.unparse(call.func)
            is_ours = path.name == "threads.py" or "demo" in path.parts
            assert is_ours or not made.endswith("Thread"), path
            if made == "guarded_thread" and isinstance(call.args[0], ast.Constant):
                names.add(call.args[0].value)
    assert names | {"status", "web"} == set(THREADS), "those two are names of servers"


def calls_in(text: str) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
