"""Threads whose work fails in a way that nobody foresaw."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from fusewatchd import threads
from fusewatchd.threads import begin_each_with, guarded_thread, place_of

PATIENCE = 30.0


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[threading.ExceptHookArgs]]:
    found: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", found.append)
    monkeypatch.setattr(threads, "FIRST_REST_SECONDS", 0.001)
    yield found


def ended(thread: threading.Thread) -> None:
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_the_work_begins_again_and_each_failure_is_told(
    told: list[threading.ExceptHookArgs],
) -> None:
    failures: list[Exception] = [ValueError("a"), MemoryError(), KeyError("b")]
    recovered: list[Exception] = []
    left = list(failures)

    def run() -> None:
        if left:
            raise left.pop(0)

    ended(guarded_thread("kubelet", run, recover=recovered.append))
    assert recovered == failures
    assert [args.exc_value for args in told] == failures
    assert {args.thread.name for args in told if args.thread is not None} == {"kubelet"}


def test_a_recovery_that_fails_is_tried_again(told: list[threading.ExceptHookArgs]) -> None:
    runs: list[int] = []
    tries: list[int] = []

    def run() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError

    def recover(failure: Exception) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise OSError

    ended(guarded_thread("x", run, recover=recover))
    assert (len(runs), len(tries), len(told)) == (2, 3, 3)


def test_who_is_told_may_fail_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: object) -> None:
        raise OSError("the log is full")

    monkeypatch.setattr(threading, "excepthook", fails)
    runs: list[int] = []

    def run() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError

    ended(guarded_thread("x", run))
    assert len(runs) == 2
    assert "the log is full" in capsys.readouterr().err


def test_the_place_is_where_it_was_raised() -> None:
    with pytest.raises(ValueError) as caught:
        int("²")
    assert place_of(caught.value).startswith("test_threads.py:")
    assert place_of(ValueError()) == "?"


def test_every_thread_begins_with_what_all_are_to_do_first() -> None:
    done: list[str] = []
    begin_each_with(lambda: done.append(threading.current_thread().name))
    try:
        thread = guarded_thread("a", lambda: done.append("work"))
    finally:
        begin_each_with(None)
    later = guarded_thread("b", lambda: done.append("later"))
    for each in (thread, later):
        each.start()
        each.join(10.0)
    assert done == ["a", "work", "later"]
