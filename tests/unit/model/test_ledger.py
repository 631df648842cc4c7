"""Which outages are remembered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusewatchd.model.ledger import MAX_OF_ONE, MAX_OUTAGES, remember_outages
from fusewatchd.model.outages import Outage
from tests.unit.cycles import OLD, SOURCE, bind, closed, incident

OVER = closed(incident(bind()))


def test_what_became_of_an_incident() -> None:
    assert remember_outages((), [OVER], 30.0) == (
        Outage(OLD, SOURCE, 10.001, 20.0, 10.0, 19.9969, 20.0, binds=1, recovered=1),
    )
    (nothing,) = remember_outages((), [closed(incident(bind()), None)], 30.0)
    assert (nothing.recovered_at, nothing.ended_at, nothing.recovered) == (None, 30.0, 0)


@pytest.mark.parametrize(
    ("source_up_at", "gone_at", "noticed_at", "took"),
    [
        (19.75, 10.0, 10.5, 0.25),
        (5.0, 19.5, 19.75, 0.5),  # a drain: the new server was there long before
        (5.0, None, 19.75, 0.25),
        (None, 10.0, 10.5, None),
    ],
)
def test_a_recovery_counts_from_when_both_were_so(
    source_up_at: float | None, gone_at: float | None, noticed_at: float, took: float | None
) -> None:
    """The new source is visible, and the old server is gone."""
    times = {"source_up_at": source_up_at, "server_gone_at": gone_at, "noticed_at": noticed_at}
    over = replace(OVER, **times)
    assert over.recovery_seconds == took
    assert remember_outages((), [over], 30.0)[0].recovery_seconds == took


def test_without_news_nothing_changes() -> None:
    known = remember_outages((), [OVER], 30.0)
    assert remember_outages(known, [], 31.0) is known


def test_the_newest_of_each_source_and_of_all_are_kept() -> None:
    rare = replace(OVER, source_path="/rare")
    known = remember_outages((), [rare], 0.0)
    for number in range(3 * MAX_OF_ONE):
        known = remember_outages(known, [replace(OVER, noticed_at=float(number))], 0.0)
    assert [o.source_path for o in known] == ["/rare"] + [SOURCE] * MAX_OF_ONE
    assert known[-1].noticed_at == 3.0 * MAX_OF_ONE - 1
    many = [replace(OVER, source_path=f"/{n}") for n in range(2 * MAX_OUTAGES)]
    assert len(remember_outages(known, many, 0.0)) == MAX_OUTAGES
