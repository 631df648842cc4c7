"""Real memory cgroups with a limit, v1 or v2, whichever this machine counts memory with."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusewatchd.demo.timeouts import patient
from fusewatchd.observe.servers.oom_kills import find_hierarchies

LIMIT = 64 << 20
_HOG = "import sys; data = bytearray({size}); sys.stdin.read()"


@contextmanager
def memory_cgroup(limit: int = LIMIT, below: str = "") -> Iterator[Path]:
    """Give the directory of a new memory cgroup; what still runs in it at the end is killed.

    ``below`` is its path in a cgroup of our own, as ``kubepods/pod…/…``.
    """
    top = _parent() / f"fusewatchd-test.{os.getpid()}.{secrets.token_hex(4)}"
    chain = [top]
    for part in Path(below).parts:
        chain.append(chain[-1] / part)
    for directory in chain:
        directory.mkdir()
        if directory != chain[-1] and (directory / "cgroup.subtree_control").exists():
            (directory / "cgroup.subtree_control").write_text("+memory")
    leaf = chain[-1]
    try:
        for name in ("memory.max", "memory.limit_in_bytes"):
            if (leaf / name).exists():
                (leaf / name).write_text(str(limit))
        if (leaf / "memory.swap.max").exists():
            (leaf / "memory.swap.max").write_text("0")
        yield leaf
    finally:
        if leaf.exists():
            for pid in (leaf / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        for directory in reversed(chain):
            remove(directory)


def remove(directory: Path) -> None:
    """Remove a cgroup that has, or is about to have, no process any more."""
    end = time.monotonic() + patient(5)
    while directory.exists():
        try:
            directory.rmdir()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def run_out_of_memory(directory: Path, limit: int = LIMIT) -> None:
    """Use more memory in a cgroup than it may have; returns when the kernel has killed there.

    By many processes, each of them small: a process with an ``oom_score_adj`` of 1000 is killed
    before any of them, one with 0 only if it is larger.
    """
    before, end = _kills(directory), time.monotonic() + patient(60)
    command = begin_in(directory, sys.executable, "-c", _HOG.format(size=limit // 4))
    hogs: list[subprocess.Popen[bytes]] = []
    try:
        while _kills(directory) == before and time.monotonic() < end:
            if len(hogs) < 12:
                hogs.append(subprocess.Popen(command, stdin=subprocess.PIPE))
            time.sleep(0.05)
    finally:
        for hog in hogs:
            hog.kill()
            hog.communicate()


def _kills(directory: Path) -> int:
    for name in ("memory.events", "memory.oom_control"):
        if (directory / name).exists():
            (line,) = re.findall(r"^oom_kill (\d+)$", (directory / name).read_text(), re.M)
            return int(line)
    raise FileNotFoundError(directory)


def begin_in(directory: Path, *command: str) -> tuple[str, ...]:
    """Return the command line that runs ``command`` in a cgroup."""
    return ("sh", "-c", f'echo $$ > {directory}/cgroup.procs; exec "$@"', "sh", *command)


def _parent() -> Path:
    found = find_hierarchies(Path("/proc/self/mountinfo").read_bytes())
    if 1 in found:
        return Path(found[1].directory)
    if 2 in found:
        root = Path(found[2].directory)
        if "memory" in (root / "cgroup.controllers").read_text().split():
            (root / "cgroup.subtree_control").write_text("+memory")
            return root
    pytest.skip("nothing counts memory in cgroups here")
