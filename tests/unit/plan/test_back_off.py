"""Delays after failures."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.model.mounts import TargetKey
from fusewatchd.plan.back_off import BackOff


@given(st.integers(1, 100_000), st.text(min_size=1, max_size=20))
def test_back_off_is_bounded_and_repeatable(failures: int, path: str) -> None:
    back_off = BackOff(0.25, 60.0)
    key = TargetKey(0, path)
    delay = back_off.delay(key, failures)
    full = min(60.0, 0.25 * 2.0 ** min(failures - 1, 20))
    assert 0.8 * full <= delay <= 1.2 * full
    assert delay == back_off.delay(key, failures)
