"""Settings of all tests."""

from __future__ import annotations

import os
import sys
import zlib

import pytest
from hypothesis import settings

# How long an example takes says something about the machine and its load, and nothing about us.
settings.register_profile("patient", settings.default, deadline=None)
settings.load_profile("patient")

# Hundreds of tests start daemons, servers and containers of this package.  Told to write no
# bytecode every one of them would compile it anew, and every worker the tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run have a part of the tests that are not pure: two Pythons share them."""
    parser.addoption("--part", default="1/1", metavar="N/M", help="the N-th of M parts of them")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the other parts.  A test is in the same part in every run."""
    number, _, parts = config.getoption("--part").partition("/")
    out = [i for i in items if not _is_pure(i) and _part(i, int(parts)) != int(number) - 1]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in set(out)]


def _is_pure(item: pytest.Item) -> bool:
    return item.nodeid.startswith(("tests/unit/", "tests/fuzz/"))


def _part(item: pytest.Item, parts: int) -> int:
    return zlib.crc32(item.nodeid.encode()) % parts
