"""The thread that asks the kubelet, against a kubelet on loopback."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.kube.endpoint import Endpoint
from fusewatchd.kube.kubelet import KubeletPods, PodsAnswer
from tests.rawserver import RawServer, answer, sends_once

POD = {"metadata": {"name": "web", "namespace": "shop", "uid": "u-1"}, "spec": {}}
PATIENCE = 20.0


def pods(*items: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"kind": "PodList", "apiVersion": "v1", "items": list(items)}


@contextmanager
def asking(
    kubelet: DemoKubelet, refresh_seconds: float = 3600, **endpoint: Any
) -> Iterator[KubeletPods]:
    client = KubeletPods(Endpoint(kubelet.url, **endpoint), refresh_seconds)
    client.start()
    try:
        yield client
    finally:
        client.stop()


def next_answers(client: KubeletPods) -> list[PodsAnswer]:
    readable, _, _ = select.select([client], [], [], PATIENCE)
    assert readable, "no answer"
    return client.collect()


def test_asks_at_once_and_says_so_on_a_descriptor() -> None:
    with DemoKubelet(pods(POD)) as kubelet, asking(kubelet) as client:
        before = time.monotonic()
        (answer,) = next_answers(client)
        assert answer.pods is not None
        assert [pod.name for pod in answer.pods] == ["web"]
        assert (answer.problem, answer.code, answer.complaints) == ("", "2xx", ())
        assert answer.asked_at < time.monotonic()
        assert before - 10 < answer.asked_at
        assert client.collect() == []
        assert select.select([client], [], [], 0) == ([], [], [])


def test_many_wishes_are_few_requests() -> None:
    with DemoKubelet(pods()) as kubelet, asking(kubelet) as client:
        next_answers(client)
        end = time.monotonic() + 0.5
        wishes = 0
        while time.monotonic() < end:
            client.refresh()
            wishes += 1
        assert wishes > 100
        assert 2 <= len(kubelet.requests) <= 4


def test_asks_again_by_the_timer() -> None:
    with DemoKubelet(pods()) as kubelet, asking(kubelet, refresh_seconds=0.05) as client:
        for _ in range(3):
            next_answers(client)
        assert len(kubelet.requests) >= 3


def test_a_wish_while_a_request_is_under_way_is_another_request() -> None:
    with DemoKubelet(pods()) as kubelet:
        kubelet.delay_seconds = 0.3
        with asking(kubelet) as client:
            while not kubelet.requests:
                time.sleep(0.01)
            client.refresh()
            next_answers(client)
            next_answers(client)
        assert len(kubelet.requests) == 2


@pytest.mark.parametrize(("status", "code"), [(401, "4xx"), (403, "4xx"), (503, "5xx")])
def test_a_refusal_is_an_answer(status: int, code: str) -> None:
    with DemoKubelet(pods()) as kubelet:
        kubelet.status = status
        with asking(kubelet) as client:
            (answer,) = next_answers(client)
    assert answer.pods is None
    assert answer.code == code
    assert str(status) in answer.problem


def test_what_is_no_pod_list_is_a_problem() -> None:
    with DemoKubelet(pods()) as kubelet:
        kubelet.body = b'{"kind": "Status"}'
        with asking(kubelet) as client:
            (answer,) = next_answers(client)
    assert (answer.pods, answer.code) == (None, "2xx")
    assert answer.problem == "the kubelet's answer: not a PodList"


def test_a_pod_that_cannot_be_read_is_a_complaint() -> None:
    with DemoKubelet(pods({}, POD)) as kubelet, asking(kubelet) as client:
        (answer,) = next_answers(client)
        assert answer.pods is not None
        assert len(answer.pods) == len(answer.complaints) == 1


def test_comes_back_by_itself() -> None:
    with DemoKubelet(pods()) as kubelet:
        kubelet.status = 500
        with asking(kubelet) as client:
            (answer,) = next_answers(client)
            assert answer.pods is None
            kubelet.status = 200
            (answer,) = next_answers(client)
            assert answer.pods == ()


def test_a_kubelet_that_does_not_answer_holds_nobody_up() -> None:
    with DemoKubelet(pods()) as kubelet:
        kubelet.delay_seconds = 600
        with asking(kubelet, timeout_seconds=600) as client:
            while not kubelet.requests:
                time.sleep(0.01)
            for _ in range(1000):
                client.refresh()
                assert client.collect() == []
            started = time.monotonic()
        assert time.monotonic() - started < 60  # the request itself takes ten minutes


@pytest.mark.slow
def test_a_kubelet_that_wants_peace_gets_it_for_a_while() -> None:
    said = answer(b"", "Retry-After: 2", status="429 Too Many Requests")
    with RawServer(sends_once(said)) as server:
        client = KubeletPods(Endpoint(server.url), 3600)
        client.start()
        try:
            (first,) = next_answers(client)
            client.refresh()
            (second,) = next_answers(client)
        finally:
            client.stop()
    assert (first.code, first.retry_after) == ("4xx", 2.0)
    assert second.asked_at - first.asked_at >= 2.0


@pytest.mark.parametrize("length", ["\xb2", "9" * 5000, "-1", "1_0"])
def test_a_length_that_is_none_does_not_end_the_thread(length: str) -> None:
    text = b"HTTP/1.1 200 OK\r\nContent-Length: %b\r\n\r\n{}" % length.encode("latin-1")
    with RawServer(sends_once(text)) as server:
        client = KubeletPods(Endpoint(server.url), 3600)
        client.start()
        try:
            (first,) = next_answers(client)
            assert first.problem
            server.script = sends_once(answer(b'{"kind":"PodList","items":[]}'))
            client.refresh()
            found = first
            while found.pods is None:
                found = next_answers(client)[-1]
        finally:
            client.stop()


def test_a_failure_that_nobody_foresaw_is_an_answer_with_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    wrong = cast(float, "no number")
    with DemoKubelet(pods(POD)) as kubelet, asking(kubelet, wrong) as client:
        found = next_answers(client)
        while not any(each.problem for each in found):
            found += next_answers(client)
        problem = next(each.problem for each in found if each.problem)
        assert problem.startswith("asking failed: TypeError at kubelet.py:")
        asked = len(found)
        while not any(each.pods for each in found[asked:]):
            found += next_answers(client)
    assert {args.exc_type for args in told} == {TypeError}
