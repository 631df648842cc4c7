"""Packages for the tests, built once from this tree and once as an older version."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
OLD_VERSION = "0.0.1"


@dataclass(frozen=True, slots=True)
class Packages:
    """What was built; ``directory`` holds it all."""

    directory: Path
    deb: Path
    rpm: Path
    old_deb: Path
    old_rpm: Path


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Build everything, once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    directory = base / "packages"
    with open(base / "packages.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            fresh = base / "packages-fresh"
            # At the same time: what tells versions apart must not be the age of files.
            epoch = {"SOURCE_DATE_EPOCH": "1700000000"}
            build(TOP, fresh, "deb", "rpm", **epoch)
            build(older(base / "older"), fresh, "deb", "rpm", **epoch)
            fresh.rename(directory)
    old = f"*{OLD_VERSION}[_-]*"
    (old_deb,), (old_rpm,) = directory.glob(f"{old}.deb"), directory.glob(f"{old}.rpm")
    (deb,) = set(directory.glob("*.deb")) - {old_deb}
    (rpm,) = set(directory.glob("*.rpm")) - {old_rpm}
    return Packages(directory, deb, rpm, old_deb, old_rpm)


def build(tree: Path, output: Path, *kinds: str, **environ: str) -> None:
    """Build packages of a source tree as ``make`` does."""
    command = [sys.executable, "packaging/build.py", *kinds, "--output", str(output)]
    environment = {**os.environ, **environ}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def copy_tree(target: Path) -> Path:
    """Copy the source tree without what is made in it."""
    ignored = shutil.ignore_patterns(
        ".*", "build", "dist", "__pycache__", "generated", "*.egg-info"
    )
    shutil.copytree(TOP, target, ignore=ignored)
    return target


def older(target: Path) -> Path:
    """Return the same sources as an older version."""
    copy_tree(target)
    file = target / "fusewatchd/__init__.py"
    file.write_text(re.sub(r'"[\d.]+"', f'"{OLD_VERSION}"', file.read_text()))
    return target
