"""Where copies of binds are."""

from __future__ import annotations

import re

import pytest

from tests.model.copies import PLACES, place_of


@pytest.mark.parametrize(
    ("name", "is_of_a_pod"),
    [("plain3", False), ("kata3", False), ("root3", True), ("part3", True)],
)
def test_a_name_tells_of_which_shape_the_place_is(name: str, is_of_a_pod: bool) -> None:
    shape = re.compile("/pods/[0-9a-f-]{36}/(volumes|volume-subpaths)/")
    assert bool(shape.search(place_of(name))) == is_of_a_pod
    assert name.rstrip("0123456789") in PLACES
