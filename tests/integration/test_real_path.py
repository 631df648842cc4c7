"""Resolving links in front of a file system that may hang."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fusewatchd.linux.real_path import real_path


@pytest.fixture
def place(tmp_path: Path) -> str:
    place = os.path.realpath(tmp_path)
    os.makedirs(f"{place}/real/dir")
    os.symlink("real", f"{place}/link")
    os.symlink(f"{place}/link/dir/../dir", f"{place}/twice")
    os.symlink("loop", f"{place}/loop")
    return place


@pytest.mark.parametrize(
    "path",
    [
        "link/dir/x",
        "twice/x",
        "link//dir/./x/",
        "link/../real",
        "twice/../../x",
        "nowhere/../x",
        "",
    ],
)
def test_links_are_resolved_as_the_kernel_does(place: str, path: str) -> None:
    assert real_path(f"{place}/{path}", ()) == os.path.realpath(f"{place}/{path}")


def test_what_is_at_a_stop_or_below_is_not_looked_at(place: str) -> None:
    os.symlink("/etc", f"{place}/real/dir/inside")
    stops = {f"{place}/real/dir"}
    assert real_path(f"{place}/link/dir/inside/x", stops) == f"{place}/real/dir/inside/x"


def test_a_loop_ends(place: str) -> None:
    assert real_path(f"{place}/loop/x", ()) == f"{place}/loop/x"
