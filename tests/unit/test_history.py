"""Which outages are remembered."""

from __future__ import annotations

from dataclasses import replace

from fusewatchd.decision import Outage
from fusewatchd.history import MAX_OF_ONE, MAX_OUTAGES, remember
from tests.unit.cycles import OLD, SOURCE, bind, closed, incident

OVER = closed(incident(bind()))


def test_what_became_of_an_incident() -> None:
    assert remember((), [OVER], 30.0) == (
        Outage(OLD, SOURCE, 10.001, 20.0, 10.0, 19.9969, 20.0, binds=1, recovered=1),
    )
    (nothing,) = remember((), [closed(incident(bind()), None)], 30.0)
    assert (nothing.recovered_at, nothing.ended_at, nothing.recovered) == (None, 30.0, 0)


def test_without_news_nothing_changes() -> None:
    known = remember((), [OVER], 30.0)
    assert remember(known, [], 31.0) is known


def test_the_newest_of_each_source_and_of_all_are_kept() -> None:
    rare = replace(OVER, source_path="/rare")
    known = remember((), [rare], 0.0)
    for number in range(3 * MAX_OF_ONE):
        known = remember(known, [replace(OVER, noticed_at=float(number))], 0.0)
    assert [o.source_path for o in known] == ["/rare"] + [SOURCE] * MAX_OF_ONE
    assert known[-1].noticed_at == 3.0 * MAX_OF_ONE - 1
    many = [replace(OVER, source_path=f"/{n}") for n in range(2 * MAX_OUTAGES)]
    assert len(remember(known, many, 0.0)) == MAX_OUTAGES
