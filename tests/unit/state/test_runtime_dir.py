"""The lock of the runtime directory, and groups."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fusewatchd.demo.environment import python_environment
from fusewatchd.errors import AlreadyRunningError, ConfigError
from fusewatchd.state.runtime_dir import LOCK_NAME, RuntimeLock, group_id

HOLD = "import sys; from fusewatchd.state.runtime_dir import RuntimeLock; held = RuntimeLock(sys.argv[1])"


def holder(directory: Path) -> subprocess.Popen[str]:
    """A process that has the lock and says so."""
    code = f"{HOLD}; print('held', flush=True); sys.stdin.read()"
    held = subprocess.Popen(
        [sys.executable, "-c", code, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=python_environment(),
    )
    assert held.stdout is not None
    assert held.stdout.readline() == "held\n"
    return held


def test_a_second_one_is_told_who_has_it(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with holder(directory) as first:
        with pytest.raises(AlreadyRunningError, match=rf"another .* runs \(pid {first.pid}\)"):
            RuntimeLock(str(directory))
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(AlreadyRunningError):
                RuntimeLock(str(directory))
        assert len(os.listdir("/proc/self/fd")) == before
        first.kill()
    # Whatever was left by a killed one is free at once.
    RuntimeLock(str(directory)).close()
    assert stat.S_IMODE(os.stat(directory).st_mode) & 0o027 == 0
    assert stat.S_IMODE(os.stat(directory / LOCK_NAME).st_mode) == 0o600


def test_closed_it_is_free_and_the_file_stays(tmp_path: Path) -> None:
    RuntimeLock(str(tmp_path)).close()
    inode = os.stat(tmp_path / LOCK_NAME).st_ino
    RuntimeLock(str(tmp_path)).close()
    assert os.stat(tmp_path / LOCK_NAME).st_ino == inode


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / LOCK_NAME).symlink_to("victim")
    with pytest.raises(OSError, match="symbolic links"):
        RuntimeLock(str(tmp_path))
    assert (tmp_path / "victim").read_text() == "precious"


def test_groups() -> None:
    assert group_id("root") == 0
    for name in ("no-such-group", "", "root:x", "bad\nname"):
        with pytest.raises(ConfigError, match="status_group: no group") as caught:
            group_id(name)
        assert "\n" not in str(caught.value)
