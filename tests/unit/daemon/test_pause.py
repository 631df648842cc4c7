"""Until when a node is paused: kept in a file, ended by time, and never forgotten by mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusewatchd.daemon.pause import UNREADABLE_SECONDS, Pause
from fusewatchd.log import Entry, Level, Log
from fusewatchd.state.pause import MAX_SECONDS, NAME


class Clock:
    def __init__(self) -> None:
        self.wall = 1_700_000_000.0
        self.monotonic = 100.0
        self.texts: list[str] = []

    def pause(self, directory: Path) -> Pause:
        log = Log(self, Level.INFO)
        return Pause(str(directory), log, lambda: self.wall, lambda: self.monotonic)

    def write(self, entry: Entry) -> bool:
        self.texts.append(entry.text)
        return True

    def close(self) -> None:
        pass

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


def test_nothing_is_paused_at_first(tmp_path: Path) -> None:
    pause = Clock().pause(tmp_path)
    assert (pause.until, pause.due_at, pause.current()) == (None, None, None)


def test_a_pause_outlives_the_daemon_and_ends_at_its_time(tmp_path: Path) -> None:
    clock = Clock()
    clock.pause(tmp_path).begin(3600.0)
    clock.pass_by(600.0)
    clock.monotonic = 5.0  # another boot
    later = clock.pause(tmp_path)
    assert later.until == 1_700_003_600.0
    assert later.due_at == 3005.0
    clock.pass_by(2999.0)
    assert later.current() == later.until
    clock.pass_by(1.0)
    assert later.current() is None
    assert clock.texts[-1] == "recovery is resumed: the pause is over"
    assert not (tmp_path / NAME).exists()
    assert clock.pause(tmp_path).until is None


def test_one_that_ended_while_no_daemon_ran_is_over(tmp_path: Path) -> None:
    clock = Clock()
    clock.pause(tmp_path).begin(60.0)
    clock.pass_by(61.0)
    pause = clock.pause(tmp_path)
    assert pause.until is None
    assert not (tmp_path / NAME).exists()


def test_a_clock_that_is_set_does_not_lengthen_it(tmp_path: Path) -> None:
    clock = Clock()
    pause = clock.pause(tmp_path)
    pause.begin(60.0)
    clock.wall -= 1e6
    clock.monotonic += 60.0
    assert pause.current() is None


def test_no_pause_is_longer_than_the_longest(tmp_path: Path) -> None:
    clock = Clock()
    clock.pause(tmp_path).begin(10 * MAX_SECONDS)
    assert clock.pause(tmp_path).until == clock.wall + MAX_SECONDS
    clock.wall -= 1e7
    assert clock.pause(tmp_path).until == clock.wall + MAX_SECONDS


@pytest.mark.parametrize("text", ["", "{", "[]", '{"until": "x"}', '{"until": NaN}', "{}"])
def test_what_cannot_be_read_pauses_for_a_while_and_is_reported(tmp_path: Path, text: str) -> None:
    file = tmp_path / NAME
    file.write_text(text)
    file.chmod(0o600)
    clock = Clock()
    assert clock.pause(tmp_path).until == clock.wall + UNREADABLE_SECONDS
    assert "the end of the pause cannot be read" in clock.texts


def test_one_that_others_can_write_is_not_believed(tmp_path: Path) -> None:
    clock = Clock()
    clock.pause(tmp_path).begin(MAX_SECONDS)
    (tmp_path / NAME).chmod(0o666)
    assert clock.pause(tmp_path).until == clock.wall + UNREADABLE_SECONDS


def test_a_pause_that_cannot_be_kept_is_not_begun(tmp_path: Path) -> None:
    clock = Clock()
    directory = tmp_path / "a"
    pause = clock.pause(directory)
    directory.write_text("")
    with pytest.raises(OSError):
        pause.begin(60.0)
    assert pause.until is None
    assert clock.texts == []
