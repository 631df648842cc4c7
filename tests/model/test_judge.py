"""What the judge may do to look."""

from __future__ import annotations

from typing import cast

import pytest

from fusewatchd.demo.node.sources import ServerProcess, Source
from fusewatchd.model.mounts import Device, Mount
from tests.model.judge import is_readable
from tests.model.places import SourceState, Target, Upgraded

OLD, NEW = Device(0, 1), Device(0, 2)
TARGET = Target("/data", "one", "/", {frozenset()})


def source(*, is_hung: bool = False, errno: int = 0) -> SourceState:
    upgraded = [Upgraded(OLD, cast(ServerProcess, None))]
    return SourceState(cast(Source, None), NEW, is_hung=is_hung, upgraded=upgraded, errno=errno)


def top(device: Device) -> Mount:
    return Mount(1, 0, device, "/", "/data", "rw", 0, 0, "fuse.demofs", "s", "rw")


@pytest.mark.parametrize("device", [OLD, NEW], ids=["old", "new"])
def test_nothing_is_read_while_a_source_hangs(device: Device) -> None:
    """Its old server answers, but may be replaced between the look and the question."""
    assert is_readable(TARGET, source(), top(device))
    assert not is_readable(TARGET, source(is_hung=True), top(device))


def test_an_old_server_whose_number_is_used_again_serves_nothing() -> None:
    state = source()
    state.upgraded[0].is_gone = True
    assert not is_readable(TARGET, state, top(OLD))
    assert not is_readable(TARGET, state, None)


def test_a_server_that_answers_errors_is_alive_and_not_read_from() -> None:
    state = source(errno=5)
    assert state.is_served(NEW)
    assert not state.answers
    assert not is_readable(TARGET, state, top(NEW))
    assert is_readable(TARGET, state, top(OLD))
