"""What a front may say to the daemon, and what makes it a front that is replaced."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.errors import ParseError
from fusewatchd.front.messages import (
    MAX_COUNT,
    MAX_DOCUMENT,
    MAX_TEXT,
    MAX_TEXTS,
    Ask,
    ConditionTold,
    EventsKept,
    EventsTold,
    FromFront,
    PodsTold,
    Pong,
    Post,
    Serving,
    ThreadFailed,
    Topic,
    WebComplaint,
    from_front,
    to_front,
    to_json,
)

EVERY: tuple[FromFront, ...] = (
    Ask(3, Topic.KUBELET, version=2, used=1, is_openmetrics=True),
    Serving("x: no such file"),
    PodsTold(1, 12.5, "2xx", "", ("pod a: no uid",), '{"kind": "PodList"}'),
    EventsTold(1, 2, 3, ("a", "b"), True, 40),
    EventsKept(5, "{}"),
    ConditionTold("not allowed"),
    ThreadFailed("web", "ValueError at web.py:3"),
    WebComplaint("y: others can read it"),
    Pong(),
)


@pytest.mark.parametrize("message", EVERY, ids=lambda message: type(message).__name__)
def test_what_is_said_arrives(message: FromFront) -> None:
    assert from_front(json.loads(json.dumps(to_json(message)))) == message


def told(index: int, **changes: Any) -> Any:
    name, content = to_json(EVERY[index])
    return [name, {**content, **changes}]


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        ["Ask"],
        ["Ask", {}],
        ["Stop", {"seconds": 1.0}],
        to_json(Post("{}")),
        [["Ask"], {}],
        told(0, number=-1),
        told(0, number=MAX_COUNT + 1),
        told(0, number=True),
        told(0, number=1.5),
        told(0, topic="shadow"),
        told(0, is_openmetrics=1),
        told(1, problem="a\nb"),
        told(1, problem="a\x1b[31m"),
        told(1, problem="x" * (MAX_TEXT + 1)),
        told(1, problem=None),
        told(2, asked_at=float("nan")),
        told(2, asked_at=float("inf")),
        told(2, complaints=["x"] * (MAX_TEXTS + 1)),
        told(2, complaints=["a\x00"]),
        told(2, complaints="text"),
        told(2, document="x" * (MAX_DOCUMENT + 1)),
        told(3, posted=-1),
        told(3, posted=10**30),
        told(4, taken="5"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_it_must_not_say(value: Any) -> None:
    with pytest.raises(ParseError):
        from_front(value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(st.integers(0, len(EVERY) - 2), st.data())
def test_whatever_else_stands_in_a_field_is_a_message_or_none(
    index: int, data: st.DataObject
) -> None:
    name, content = to_json(EVERY[index])
    field = data.draw(st.sampled_from(sorted(content)))
    with contextlib.suppress(ParseError):
        message = from_front([name, {**content, field: data.draw(VALUES)}])
        assert from_front(to_json(message)) == message


@given(VALUES)
def test_whatever_is_said_raises_nothing_else(value: Any) -> None:
    with contextlib.suppress(ParseError):
        from_front(value)
    with contextlib.suppress(ParseError):
        to_front(value)
