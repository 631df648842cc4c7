"""Strategies: what stands in a parser's way, from noise to a real document with one thing wrong."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=30)
"""Lone surrogates too: that is how bytes that are no UTF-8 come in."""

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([0, -1, 2**63, "", "a", "/", "\n"])
    | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)
"""What json.loads can return."""


@st.composite
def mutated(draw: st.DrawFn, original: Any, replacement: st.SearchStrategy[Any] = JSON) -> Any:
    """Draw a copy of a JSON document with one to three parts replaced, removed or doubled."""
    document = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        document = _mutate(draw, document, replacement)
    return document


def _mutate(draw: st.DrawFn, document: Any, replacement: st.SearchStrategy[Any]) -> Any:
    if not document or not isinstance(document, (dict, list)) or not draw(st.integers(0, 9)):
        return draw(replacement)
    is_object = isinstance(document, dict)
    place = draw(st.sampled_from(sorted(document) if is_object else range(len(document))))
    match draw(st.sampled_from(["into", "into", "into", "remove", "double"])):
        case "remove":
            del document[place]
        case "double" if is_object:
            document[draw(ANY_TEXT)] = document[place]
        case "double":
            document.append(document[place])
        case _:
            document[place] = _mutate(draw, document[place], replacement)
    return document


@st.composite
def damaged(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """Draw one of these texts with one to four pieces cut out, doubled or overwritten."""
    data = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        end = draw(st.integers(begin, min(len(data), begin + 40)))
        other = draw(st.sampled_from(originals))
        at = draw(st.integers(0, len(other)))
        piece = draw(
            st.binary(max_size=8)
            | st.sampled_from([b"", b" ", b"\n", b" - ", b"\\", b"\\040", b"9" * 5000])
            | st.just(data[begin:end] * 2)
            | st.just(other[at : at + 40])
        )
        data = data[:begin] + piece + data[end:]
    return data


def texts_in(value: object) -> list[str]:
    """Return every text in a JSON-like value, keys too."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for part in pair for text in texts_in(part)]
    if isinstance(value, (list, tuple)):
        return [text for part in value for text in texts_in(part)]
    return []
