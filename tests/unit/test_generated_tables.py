"""The tables of the README files are what the code says; `make reference` writes them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("reference", TOP / "packaging/reference.py")
assert _spec is not None
assert _spec.loader is not None
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)


@pytest.mark.parametrize("name", reference.PAGES)
def test_the_tables_of_a_page_are_those_of_the_code(name: str) -> None:
    page = (TOP / name).read_text()
    assert page == reference.filled(page), "make reference"


def test_every_family_of_series_alert_and_driver_has_its_row() -> None:
    pages = "".join((TOP / name).read_text() for name in reference.PAGES)
    for family in ("fusewatchd_mounts", "fusewatchd_recoveries_total", "fusewatchd_gaps"):
        assert f"| `{family}` |" in pages
    assert "### FuseVolumesUnusable\n" in pages
    assert "csi.juicefs.com" in pages
