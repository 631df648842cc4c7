"""Events that outlive the daemon: what is written is read again, whatever else is not believed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.errors import ParseError
from fusewatchd.kube.events.series import Series, document_of, series_from
from fusewatchd.report.events.draft import (
    EventDraft,
    ObjectReference,
    VolumeObject,
    VolumeReference,
)

TEXT = st.text(max_size=20)
REGARDING = st.one_of(
    st.builds(ObjectReference, TEXT, TEXT, TEXT, TEXT, TEXT),
    st.builds(VolumeReference, TEXT, st.sampled_from(VolumeObject)),
)
DRAFTS = st.builds(EventDraft, REGARDING, TEXT, TEXT, TEXT, TEXT)


@st.composite
def all_series(draw: st.DrawFn) -> Series:
    last_at = draw(st.floats(1e9, 2e9))
    count = draw(st.integers(1, 1000))
    posted = draw(st.integers(0, count))
    return Series(draw(DRAFTS), last_at - 5, last_at, draw(TEXT), 0.0, count, posted, rest=4.0)


@given(st.lists(all_series(), max_size=3), st.floats(-100, 1e6))
def test_what_is_written_is_read(known: list[Series], age: float) -> None:
    now = 1e7
    for one in known:
        found = series_from(json.loads(json.dumps(document_of([one]))), now, one.last_at + age)
        (read,) = found
        assert read.began == pytest.approx(now - max(0.0, age), abs=1e-3)
        read.began = one.began
        assert read == one


GOOD = document_of(
    [Series(EventDraft(ObjectReference("Pod", "a", "b", "c"), "r", "a", "n", "t"), 1, 2, "x", 0)]
)


def changed(**entry: Any) -> Any:
    return {"version": 1, "events": [{**GOOD["events"][0], **entry}]}


@pytest.mark.parametrize(
    "document",
    [
        None, [], 7, "x", {}, {"version": 2, "events": []}, {"version": 1},
        {"version": 1, "events": 3}, {"version": 1, "events": [3]},
        changed(about={}), changed(about={"volume": "v", "object": "Secret"}),
        changed(about={"kind": 1, "namespace": "a", "name": "b", "uid": "c"}),
        changed(about={"kind": "Pod", "evil": "x"}), changed(count="many"),
        changed(posted=5), changed(posted=-1), changed(reason=None), changed(last_at="soon"),
        changed(last_at=float("nan")), changed(rest=float("inf")),
    ],
)  # fmt: skip
def test_what_is_not_as_written_is_not_believed(document: Any) -> None:
    with pytest.raises(ParseError):
        series_from(document, 0.0, 0.0)


def test_the_good_one_is_good() -> None:
    assert series_from(GOOD, 0.0, 0.0)
