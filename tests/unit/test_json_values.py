"""Values as JSON and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.errors import ParseError
from fusewatchd.json_values import decode, encode
from fusewatchd.model.mounts import Device, Mount
from fusewatchd.model.servers import FuseServer
from tests.unit.state.test_document import TEXT


@given(TEXT, TEXT, st.integers(0, 2**40))
def test_values_survive_the_wire(point: str, root: str, number: int) -> None:
    mount = Mount(number, 1, Device(0, 5), root, point, "rw", 0, 0, "fuse", "s", "rw", number)
    assert decode(Mount, json.loads(json.dumps(encode(mount)))) == mount


@pytest.mark.parametrize(
    "value", [None, 1, {}, {"major": "x", "minor": 1}, {"major": True, "minor": 1}]
)
def test_what_has_another_shape_is_refused(value: Any) -> None:
    with pytest.raises(ParseError):
        decode(Device, value)


@pytest.mark.parametrize("layers", ["", {}, {"1": 2}, None])
def test_only_a_list_is_a_list(layers: Any) -> None:
    point = encode(FuseServer(1, 2, ()))
    with pytest.raises(ParseError):
        decode(FuseServer, {**point, "devices": layers})
