"""The thread that posts Events, against an API server on loopback that refuses as the real one."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fusewatchd.demo.cluster.apiserver import DemoApiServer
from fusewatchd.kube.clocks import Clocks
from fusewatchd.kube.endpoint import Endpoint
from fusewatchd.kube.events import outbox
from fusewatchd.kube.events import poster as poster_module
from fusewatchd.kube.events.news import PosterNews
from fusewatchd.kube.events.pace import PER_OBJECT
from fusewatchd.kube.events.poster import EventPoster
from fusewatchd.kube.events.series import PATCH_REST_SECONDS
from fusewatchd.rate_limit import Rate
from fusewatchd.report.events.draft import EventDraft, ObjectReference
from fusewatchd.report.events.wording import EventKind

POD = ObjectReference("Pod", "shop", "web-0", "u-1")
STALE = EventDraft(POD, "FuseMountStale", "WatchFuseMount", "gone", "Warning")
RECOVERED = replace(STALE, reason="FuseMountRecovered", note="back", type="Normal")
PATIENCE = 20.0
BURST = int(PER_OBJECT.burst)
FEW = Rate(per_second=5.0, burst=4.0)


class Hands:
    """A clock that a test moves; what waits for it is woken by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def posting(
    server: DemoApiServer,
    clock: Callable[[], float] = time.monotonic,
    *,
    seconds: float = 0.2,
    writes: Rate | None = None,
    **endpoint: Any,
) -> Iterator[EventPoster]:
    poster = EventPoster(
        Endpoint(server.url, **endpoint),
        "node-1",
        clocks=Clocks(clock, lambda: 1_700_000_000.25, lambda: 1.0),
        writes=writes,
        nodes=1,
    )
    poster.start()
    try:
        yield poster
    finally:
        poster.stop(seconds)


def news_until(poster: EventPoster, condition: Callable[[PosterNews], bool]) -> PosterNews:
    total = PosterNews()
    end = time.monotonic() + PATIENCE
    while not condition(total):
        assert time.monotonic() < end, total
        select.select([poster], [], [], 0.05)
        news = poster.collect()
        total = PosterNews(
            total.posted + news.posted,
            total.failed + news.failed,
            total.dropped + news.dropped,
            total.problems + news.problems,
            total.recovered or news.recovered,
        )
    return total


def wake(poster: EventPoster) -> None:
    with poster._lock:
        poster._lock.notify()


@pytest.mark.parametrize(
    "name", ["../../pods", "a?b#c", "a\r\nX-Evil: 1\r\n\r\n", "\ud800", "%2e%2e%2f", "\x1b[2J"]
)
def test_no_name_leads_to_another_path(name: str) -> None:
    strange = replace(STALE, regarding=replace(POD, namespace=name, name=name))
    with DemoApiServer() as server, posting(server) as poster:
        poster.post(strange)
        poster.post(STALE)
        news_until(poster, lambda n: n.posted == 1 and n.failed == 1)
        for method, path in server.requests:
            assert method == "POST"
            before, _, rest = path.removeprefix("/apis/events.k8s.io/v1/namespaces/").partition("/")
            assert (before == "shop" or "%" in before) and rest == "events"


def test_an_event_as_the_server_wants_it() -> None:
    with DemoApiServer() as server, posting(server) as poster:
        poster.post(STALE)
        assert news_until(poster, lambda n: n.posted == 1) == PosterNews(posted=1)
        (event,) = server.events()
    assert event["metadata"].pop("name").startswith("web-0.")
    for of_the_server in ("uid", "creationTimestamp", "resourceVersion"):
        del event["metadata"][of_the_server]
    assert event == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"namespace": "shop"},
        "eventTime": "2023-11-14T22:13:20.250000Z",
        "reportingController": "fusewatchd.io/fusewatchd",
        "reportingInstance": "node-1",
        "action": "WatchFuseMount",
        "reason": "FuseMountStale",
        "regarding": {
            "apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web-0", "uid": "u-1",
        },
        "note": "gone",
        "type": "Warning",
    }  # fmt: skip


def test_the_node_writes_no_faster_than_its_rate_and_nothing_is_lost() -> None:
    hands, burst = Hands(), int(FEW.burst)
    with DemoApiServer() as server, posting(server, hands, writes=FEW) as poster:
        pods = [replace(POD, name=f"p{n}", uid=f"u{n}") for n in range(burst + 3)]
        for regarding in pods:
            poster.post(replace(STALE, regarding=regarding))
        assert news_until(poster, lambda n: n.posted == burst) == PosterNews(posted=burst)
        wake(poster)
        time.sleep(0.1)
        assert len(server.requests) == burst
        hands.now += 1.5 / FEW.per_second
        wake(poster)
        news_until(poster, lambda n: n.posted == 1)
        hands.now += 60
        wake(poster)
        news_until(poster, lambda n: n.posted == 2)
        assert len(server.events()) == burst + 3


def test_what_waits_for_its_turn_still_goes_out_at_the_end() -> None:
    hands, burst = Hands(), int(FEW.burst)
    with DemoApiServer() as server:
        with posting(server, hands, seconds=PATIENCE, writes=FEW) as poster:
            for n in range(burst + 3):
                poster.post(replace(STALE, regarding=replace(POD, name=f"p{n}", uid=f"u{n}")))
            news_until(poster, lambda n: n.posted == burst)
        assert len(server.events()) == burst + 3


def test_a_server_that_is_away_for_a_day_is_still_asked_afterwards() -> None:
    hands = Hands()
    with DemoApiServer() as server, posting(server, hands) as poster:
        server.status = 503
        poster._failures = 24 * 60
        poster.post(STALE)
        news_until(poster, lambda n: bool(n.problems))
        server.status = 0
        hands.now += poster_module.MAX_BACK_OFF_SECONDS
        wake(poster)
        news_until(poster, lambda n: n.posted == 1)


def test_an_event_on_the_node_is_taken() -> None:
    with DemoApiServer() as server, posting(server) as poster:
        for kind in EventKind:
            poster.post(kind.draft_for_node("node-1"))
        news_until(poster, lambda n: n.posted == len(EventKind))
        for event in server.events():
            assert event["metadata"]["namespace"] == "default"
            node = {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "node-1"}
            assert event["regarding"] == node


def test_the_same_thing_again_is_a_series() -> None:
    hands = Hands()
    with DemoApiServer() as server, posting(server, hands) as poster:
        poster.post(STALE)
        news_until(poster, lambda n: n.posted == 1)
        for _ in range(4):
            poster.post(STALE)
        news_until(poster, lambda n: n.posted >= 1)
        hands.now += PATCH_REST_SECONDS + 1
        wake(poster)
        end = time.monotonic() + PATIENCE
        while server.events()[0].get("series", {}).get("count") != 5:
            assert time.monotonic() < end, server.events()
            time.sleep(0.01)
        (event,) = server.events()
        assert event["series"]["lastObservedTime"] == "2023-11-14T22:13:20.250000Z"
        assert len([m for m, _ in server.requests if m == "POST"]) == 1


def test_much_later_it_is_a_new_event() -> None:
    hands = Hands()
    with DemoApiServer() as server, posting(server, hands) as poster:
        poster.post(STALE)
        news_until(poster, lambda n: n.posted == 1)
        hands.now += outbox.SERIES_SECONDS + 1
        poster.post(STALE)
        news_until(poster, lambda n: n.posted == 1)
        assert len(server.events()) == 2


def test_an_event_that_the_server_forgot_is_created_anew() -> None:
    with DemoApiServer() as server, posting(server) as poster:
        poster.post(STALE)
        news_until(poster, lambda n: n.posted == 1)
        server._events.clear()
        poster.post(STALE)
        news_until(poster, lambda n: n.posted >= 1)
        assert [event["reason"] for event in server.events()] == ["FuseMountStale"]


def test_an_old_server_gets_core_events() -> None:
    with DemoApiServer(has_events_v1=False) as server, posting(server) as poster:
        poster.post(STALE)
        news_until(poster, lambda n: n.posted == 1)
        poster.post(STALE)
        news_until(poster, lambda n: n.posted >= 1)
        end = time.monotonic() + PATIENCE
        while server.events()[0]["count"] != 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        (event,) = server.events()
        assert event["involvedObject"]["uid"] == "u-1"
        assert (event["message"], event["source"]["component"]) == (
            "gone",
            "fusewatchd.io/fusewatchd",
        )
        assert len([p for _, p in server.requests if "events.k8s.io" in p]) == 1


def test_kept_and_counted_while_the_server_is_away() -> None:
    hands = Hands()
    with DemoApiServer() as server:
        server.status = 503
        with posting(server, hands) as poster:
            poster.post(STALE)
            news = news_until(poster, lambda n: bool(n.problems))
            assert "503" in news.problems[0]
            for _ in range(3):
                poster.post(STALE)
            poster.post(RECOVERED)
            server.status = 0
            hands.now += 120
            wake(poster)
            news = news_until(poster, lambda n: n.posted >= 3)
            assert news.recovered
            assert news.problems == ()
            stale, recovered = server.events()
            assert (stale["reason"], recovered["reason"]) == (STALE.reason, RECOVERED.reason)
            assert stale["series"]["count"] == 4


def test_retry_after_is_honoured() -> None:
    hands = Hands()
    with DemoApiServer() as server:
        server.status, server.retry_after = 429, "30"
        with posting(server, hands) as poster:
            poster.post(STALE)
            news_until(poster, lambda n: bool(n.problems))
            server.status = 0
            hands.now += 29
            wake(poster)
            time.sleep(0.1)
            assert server.events() == []
            hands.now += 2
            wake(poster)
            news_until(poster, lambda n: n.posted == 1)


@pytest.mark.parametrize("setting", ["missing_namespaces", "ending_namespaces"])
def test_an_event_of_a_namespace_that_goes_is_dropped(setting: str) -> None:
    with DemoApiServer() as server, posting(server) as poster:
        getattr(server, setting).add("shop")
        poster.post(STALE)
        assert news_until(poster, lambda n: bool(n.dropped)) == PosterNews(dropped=1)
        other = replace(STALE, regarding=replace(POD, namespace="other"))
        poster.post(other)
        news_until(poster, lambda n: n.posted == 1)


def test_what_the_server_finds_invalid_is_failed_and_said() -> None:
    with DemoApiServer() as server, posting(server) as poster:
        poster.post(replace(STALE, type="Loud"))
        news = news_until(poster, lambda n: bool(n.failed))
        assert "type: not valid" in news.problems[0]
        assert server.events() == []


def test_a_missing_permission_is_named_once() -> None:
    hands = Hands()
    with DemoApiServer() as server, posting(server, hands) as poster:
        server.status = 403
        poster.post(STALE)
        news = news_until(poster, lambda n: bool(n.problems))
        assert news.problems == ("not allowed to create events (events.k8s.io) in namespace shop",)
        hands.now += 61
        poster.post(STALE)
        before = len(server.requests)
        while len(server.requests) == before:
            time.sleep(0.01)
        time.sleep(0.05)
        assert poster.collect().problems == ()


def test_a_token_that_is_not_accepted_is_said(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("old")
    hands = Hands()
    with (
        DemoApiServer(token="new") as server,
        posting(server, hands, token_file=str(token)) as poster,
    ):
        poster.post(STALE)
        news = news_until(poster, lambda n: bool(n.problems))
        assert "401" in news.problems[0]
        token.write_text("new")
        hands.now += 61
        wake(poster)
        assert news_until(poster, lambda n: n.posted == 1).recovered


def test_names_that_are_taken_are_changed() -> None:
    with DemoApiServer() as server, posting(server) as poster:
        first = EventPoster(Endpoint(server.url), "x", clocks=Clocks(wall=lambda: 1_700_000_000.25))
        first.start()
        first.post(STALE)
        news_until(first, lambda n: n.posted == 1)
        first.stop()
        poster.post(STALE)
        news_until(poster, lambda n: n.posted == 1)
        assert len({event["metadata"]["name"] for event in server.events()}) == 2


def test_one_noisy_pod_does_not_silence_the_others() -> None:
    hands = Hands()
    with DemoApiServer() as server, posting(server, hands) as poster:
        for number in range(BURST + 10):
            poster.post(replace(STALE, reason=f"Reason{number}"))
        poster.post(replace(STALE, regarding=replace(POD, name="web-1")))
        news = news_until(poster, lambda n: n.posted == BURST + 1)
        assert news.dropped == 10


def test_the_table_is_bounded_and_keeps_the_newest() -> None:
    with DemoApiServer() as server:
        server.delay_seconds = 600
        with posting(server, timeout_seconds=600) as poster:
            for number in range(outbox.MAX_EVENTS + 50):
                poster.post(replace(STALE, regarding=replace(POD, name=f"web-{number}")))
            assert len(poster._outbox.all()) == outbox.MAX_EVENTS
            assert poster.collect().dropped == 50
            assert poster._outbox.all()[-1].draft.regarding.name == f"web-{outbox.MAX_EVENTS + 49}"


def test_stop_posts_what_waits() -> None:
    with DemoApiServer() as server:
        poster = EventPoster(Endpoint(server.url), "node-1")
        poster.post(STALE)
        poster.post(RECOVERED)
        poster.start()
        poster.stop(PATIENCE)
        assert server.reasons() == [STALE.reason, RECOVERED.reason]
        assert poster.collect() == PosterNews(posted=2)


def test_stop_does_not_wait_for_a_server_that_hangs() -> None:
    with DemoApiServer() as server:
        server.delay_seconds = 600
        poster = EventPoster(Endpoint(server.url, timeout_seconds=600), "node-1")
        poster.start()
        poster.post(STALE)
        while not server.requests:
            time.sleep(0.01)
        stopping = threading.Thread(target=poster.stop, args=(0.1,))
        stopping.start()
        stopping.join(PATIENCE)
        assert not stopping.is_alive()
        assert poster.collect().dropped == 1


def test_notes_are_cut_in_bytes_and_long_names_fit() -> None:
    draft = replace(STALE, note="ü" * 2000, regarding=replace(POD, name="x" * 253))
    with DemoApiServer() as server, posting(server) as poster:
        poster.post(draft)
        news_until(poster, lambda n: n.posted == 1)
        (event,) = server.events()
        assert len(event["note"].encode()) <= 1024
        assert len(event["metadata"]["name"]) <= 253
