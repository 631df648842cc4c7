"""What single detectors say; that they are asked in the right order is tested with diagnosis."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusewatchd.diagnose.detectors import Case, detect_held
from fusewatchd.model.mounts import Device
from fusewatchd.model.servers import Connection
from fusewatchd.model.verdicts import Verdict

CONNECTION = Connection(Device(0, 50), None)


def case(connection: Connection | None) -> Case:
    return Case(None, connection, None, None, None)  # type: ignore[arg-type]  # never looked at


@pytest.mark.parametrize(
    ("server_gone_at", "whose"), [(5.0, "its server ended,"), (None, "a server ended,")]
)
def test_a_held_one_claims_no_more_than_is_known(server_gone_at: float | None, whose: str) -> None:
    held = replace(CONNECTION, held_since=5.0, server_gone_at=server_gone_at)
    opinion = detect_held(case(held))
    assert opinion is not None
    assert opinion.verdict is Verdict.HELD
    assert opinion.evidence.startswith(whose)


@pytest.mark.parametrize("connection", [None, CONNECTION])
def test_others_are_not_held(connection: Connection | None) -> None:
    assert detect_held(case(connection)) is None
