"""A changed copy is what a changed dict is, and the original stays as it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.model.overlay import MAX_CHANGES, Overlay

CHANGES = st.dictionaries(st.integers(0, 30), st.one_of(st.none(), st.integers()), max_size=8)


@given(st.dictionaries(st.integers(0, 30), st.integers()), st.lists(CHANGES, max_size=12))
def test_it_is_what_a_changed_dict_is(
    base: dict[int, int], steps: list[dict[int, int | None]]
) -> None:
    overlay, plain = Overlay(dict(base)), dict(base)
    for changes in steps:
        before, before_plain = overlay, dict(plain)
        overlay = overlay.changed(changes)
        for key, value in changes.items():
            if value is None:
                plain.pop(key, None)
            else:
                plain[key] = value
        assert overlay == plain
        assert (len(overlay), sorted(overlay)) == (len(plain), sorted(plain))
        assert before == before_plain
    for key in range(31):
        assert (key in overlay) == (key in plain)
        assert overlay.get(key) == plain.get(key)


def test_many_changes_are_put_together() -> None:
    overlay: Overlay[int, int] = Overlay({})
    for number in range(4 * MAX_CHANGES):
        overlay = overlay.changed({number: number})
        assert len(overlay._changes) <= MAX_CHANGES
    assert overlay == {n: n for n in range(4 * MAX_CHANGES)}


def test_what_is_gone_is_no_key() -> None:
    with pytest.raises(KeyError):
        Overlay({1: 1}).changed({1: None})[1]
