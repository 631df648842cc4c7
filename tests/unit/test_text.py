"""Text for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.text import printable
from tests.unit.state.test_document import TEXT


@given(TEXT, st.integers(4, 40))
def test_printable_text_is_bounded_and_has_no_control(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", "a\\x0ab"),
        ("\x1b[31m", "\\x1b[31m"),
        ("back\\slash", "back\\\\slash"),
        ("\udcff", "\\xff"),
        ("\x85", "\\u0085"),
        ("\udc85", "\\x85"),
        ("\u202e", "\\u202e"),
        ("naïve", "naïve"),
    ],
)
def test_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown
