"""The metrics server over real connections, the unfriendly ones included."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.errors import ConfigError
from fusewatchd.report.metrics.exposition import Page
from fusewatchd.report.metrics.metrics import Metrics
from fusewatchd.serve.listeners import listen_on, parse_address
from fusewatchd.serve.web import (
    MAX_REQUEST_BYTES,
    BadRequestError,
    Health,
    Pages,
    WebServer,
    means_this_node,
    page_answer,
    parse_request,
)

BIG = b"x" * 3_000_000
HUGE = 30_000_000
"""More than the kernel takes for a reader that does not read."""
SHORT_SECONDS = 2.0
"""A deadline that a friendly client on a busy machine still meets."""


class Node:
    """What the pages say; tests change it."""

    def __init__(self) -> None:
        self.alive = Health(True, "last cycle 0.2 s ago")
        self.ready = Health(False, "first look under way")
        self.accepts: list[str] = []
        self.metrics: Callable[[str], Page] = self._page

    def pages(self) -> Pages:
        return Pages(self._metrics, lambda: self.alive, lambda: self.ready)

    def _metrics(self, accept: str) -> Page:
        return self.metrics(accept)

    def _page(self, accept: str) -> Page:
        self.accepts.append(accept)
        return Page("text/plain; version=0.0.4", b"up 1\n")


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def server(node: Node) -> Iterator[WebServer]:
    web = WebServer(listen_on(["127.0.0.1:0"]), node.pages(), timeout_seconds=60.0)
    web.start()
    with closing(web):
        yield web


def get(
    server: WebServer, path: str, method: str = "GET", **fields: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    with closing(connection):
        connection.request(method, path, headers=fields)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def raw(server: WebServer, data: bytes) -> bytes:
    """Send bytes and return everything that comes back."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        sock.sendall(data)
        return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    received = b""
    while True:
        data = sock.recv(65536)
        if not data:
            return received
        received += data


# ----------------------------------------------------------------------------- pages


def test_metrics_are_served_with_their_type(server: WebServer, node: Node) -> None:
    status, fields, body = get(server, "/metrics?x=1", Accept="text/plain")
    assert (status, body) == (200, b"up 1\n")
    assert fields["Content-Type"] == "text/plain; version=0.0.4"
    assert fields["Content-Length"] == "5"
    assert fields["Connection"] == "close"
    assert node.accepts == ["text/plain"]


def test_the_real_metrics(server: WebServer, node: Node) -> None:
    metrics = Metrics("1.0")
    node.metrics = metrics.page
    plain = get(server, "/metrics")
    assert b'fusewatchd_build_info{version="1.0",way=""} 1.0' in plain[2]
    accept = "application/openmetrics-text;version=1.0.0"
    status, fields, body = get(server, "/metrics", Accept=accept)
    assert status == 200
    assert fields["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_health_and_readiness(server: WebServer, node: Node) -> None:
    assert get(server, "/healthz")[::2] == (200, b"last cycle 0.2 s ago\n")
    assert get(server, "/readyz")[::2] == (503, b"first look under way\n")
    node.alive, node.ready = Health(False, "no cycle\nfor 90 s"), Health(True, "ready")
    assert get(server, "/healthz")[::2] == (503, b"no cycle\\x0afor 90 s\n")
    assert get(server, "/readyz")[0] == 200


def test_other_paths_and_methods(server: WebServer) -> None:
    assert get(server, "/")[0] == 200
    assert get(server, "/nothing")[0] == 404
    assert get(server, "/../etc/passwd")[0] == 404
    status, fields, _ = get(server, "/metrics", "POST")
    assert (status, fields["Allow"]) == (405, "GET, HEAD")
    status, fields, body = get(server, "/metrics", "HEAD")
    assert (status, fields["Content-Length"], body) == (200, "5", b"")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /metrics\r\n\r\n",
        b"GET  /metrics HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nhost: y\r\n\r\n",
        b"GET /metrics SPDY/3\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n folded: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"\r\n\r\n",
    ],
)
def test_malformed_requests_are_refused(server: WebServer, request_bytes: bytes) -> None:
    assert raw(server, request_bytes).startswith(b"HTTP/1.1 400 ")
    assert get(server, "/metrics")[0] == 200


def test_a_request_may_come_byte_by_byte(server: WebServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n":
            sock.sendall(bytes((byte,)))
        assert read_all(sock).endswith(b"\r\n\r\nup 1\n")


def test_a_body_after_the_request_does_not_cost_the_answer(server: WebServer) -> None:
    head = b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    assert raw(server, head + b"x" * 100_000).startswith(b"HTTP/1.1 405 ")


def test_of_several_requests_on_one_connection_the_first_is_answered(server: WebServer) -> None:
    answer = raw(server, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n")
    assert answer.endswith(b"\r\n\r\nup 1\n")
    assert answer.count(b"HTTP/1.1 ") == 1


ACCEPTED = ("application/openmetrics-text", "text/plain", "*/*", "", ",", ";", ";;,")
OPTIONS = (
    "version=abc",
    "version",
    "version=",
    "version=9.9.9.9",
    "version=" + "9" * 5000,
    "version=\x00",
    "version=1.0.0;escaping=allow-utf-8",
    "version=1.0.0;escaping=a=b",
    "version=1.0.0\r\nX-Mine: 1",
    "q=nan",
)


@pytest.mark.parametrize("kind", ACCEPTED)
@pytest.mark.parametrize("option", OPTIONS)
def test_no_accept_field_ends_the_server_or_is_repeated(kind: str, option: str) -> None:
    for accept in (f"{kind};{option}", f"{kind}; {option}, {kind};{option}"):
        page = Metrics("1.0").page(accept)
        assert page.content_type.isprintable()
        assert "X-Mine" not in page.content_type
        assert page.content_type.startswith(("text/plain; version=", "application/openmetrics"))
        assert "9.9" not in page.content_type


@given(st.binary(max_size=200))
def test_whatever_is_sent_is_answered_refused_or_waited_for(data: bytes) -> None:
    pages = Pages(Metrics("1.0").page, lambda: Health(True, ""), lambda: Health(True, ""))
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text;" + data
    for received in (data, data + b"\r\n\r\n", request + b"\r\n\r\n"):
        with contextlib.suppress(BadRequestError):
            parsed = parse_request(received)
            assert parsed is None or page_answer(parsed, pages, {}).startswith(b"HTTP/1.1 ")


def test_large_pages_arrive_whole(server: WebServer, node: Node) -> None:
    node.metrics = lambda accept: Page("text/plain", BIG)
    assert get(server, "/metrics")[2] == BIG


# ---------------------------------------------------------------------------- bounds


def test_a_request_without_end_is_cut_off(server: WebServer) -> None:
    data = b"GET /metrics HTTP/1.1\r\nX: " + b"y" * MAX_REQUEST_BYTES
    assert raw(server, data).startswith(b"HTTP/1.1 431 ")


def test_slow_clients_are_cut_off_and_others_are_served(node: Node) -> None:
    """The third one speaks HTTP/0.9, which has no header and no version."""
    web = WebServer(listen_on(["127.0.0.1:0"]), node.pages(), timeout_seconds=SHORT_SECONDS)
    web.start()
    with closing(web), ExitStack() as held:
        slow = []
        for sent in (b"", b"GET /metr", b"GET /metrics\r\n", b"\x00\xff" * 100):
            client = socket.create_connection(("127.0.0.1", web.port), timeout=30)
            held.enter_context(client).sendall(sent)
            slow.append(client)
        assert get(web, "/metrics")[0] == 200
        for client in slow:
            assert read_all(client) == b""


def test_a_client_that_trickles_is_cut_off_too(node: Node) -> None:
    web = WebServer(listen_on(["127.0.0.1:0"]), node.pages(), timeout_seconds=SHORT_SECONDS)
    web.start()
    with closing(web), socket.create_connection(("127.0.0.1", web.port), timeout=30) as slow:
        slow.settimeout(0.05)
        is_cut = False
        for _ in range(1000):
            try:
                slow.sendall(b"x")
                is_cut = slow.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                is_cut = True
            if is_cut:
                break
        assert is_cut


def test_a_client_that_never_reads_is_cut_off(node: Node) -> None:
    node.metrics = lambda accept: Page("text/plain", b"x" * HUGE)
    web = WebServer(listen_on(["127.0.0.1:0"]), node.pages(), timeout_seconds=SHORT_SECONDS)
    web.start()
    with closing(web), socket.create_connection(("127.0.0.1", web.port), timeout=30) as deaf:
        deaf.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert get(web, "/healthz")[0] == 200
        for _ in range(600):
            if web.connection_count == 0:
                break
            time.sleep(0.05)
        assert web.connection_count == 0
        received = 0
        with contextlib.suppress(ConnectionError):
            while data := deaf.recv(1 << 20):
                received += len(data)
        assert received < HUGE


def test_a_crowd_cannot_shut_out_the_next_one(node: Node) -> None:
    web = WebServer(
        listen_on(["127.0.0.1:0"]), node.pages(), timeout_seconds=600.0, max_connections=4
    )
    web.start()
    crowd: list[socket.socket] = []
    with closing(web):
        for _ in range(40):
            crowd.append(socket.create_connection(("127.0.0.1", web.port), timeout=30))
        assert get(web, "/metrics")[0] == 200
        assert web.connection_count <= 4
        for early in crowd[:36]:
            assert read_all(early) == b""
        for sock in crowd:
            sock.close()


def test_closing_cuts_what_is_open_and_frees_the_port(node: Node) -> None:
    before = set(threading.enumerate())
    listeners = listen_where_nobody_is_sent()
    address = "{}:{}".format(*listeners[0].getsockname())
    web = WebServer(listeners, node.pages(), timeout_seconds=600.0)
    web.start()
    assert set(threading.enumerate()) - before
    with socket.create_connection(("127.0.0.1", web.port), timeout=30) as waiting:
        assert get(web, "/healthz")[0] == 200
        web.close()
        assert read_all(waiting) == b""
    assert set(threading.enumerate()) <= before
    again = WebServer(listen_on([address]), node.pages())
    again.close()


def listen_where_nobody_is_sent() -> list[socket.socket]:
    """Listen on a port that the kernel gives nobody who asks for any: it stays free, once it is."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        first = int(file.read().split()[0])
    for port in random.sample(range(max(1025, first // 2), first), 20):
        with contextlib.suppress(OSError):
            return listen_on([f"127.0.0.1:{port}"])
    raise AssertionError("20 ports are taken")


# --------------------------------------------------------------------------- address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9847", ("127.0.0.1", 9847)),
        ("localhost:0", ("127.0.0.1", 0)),
        ("[::1]:9847", ("::1", 9847)),
        ("[::]:65535", ("::", 65535)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
        (":9847", ("", 9847)),
        ("0.0.0.0:9847", ("0.0.0.0", 9847)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9847",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:http",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:+1",
        "127.0.0.1:²",
        "::1:9847",
        "[::1]",
        "[]:1",
        "[127.0.0.1]:1",
        "example.com:9847",
        "1.2.3:80",
        "a\nb:1",
    ],
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="listen_address: ") as caught:
        parse_address(text)
    assert "\n" not in str(caught.value)


def test_taken_port_names_the_address(server: WebServer) -> None:
    address = f"127.0.0.1:{server.port}"
    with pytest.raises(OSError, match=address) as caught:
        listen_on(["127.0.0.1:0", address])
    assert caught.value.errno == 98


def test_every_address_and_ipv6_loopback(node: Node) -> None:
    web = WebServer(listen_on([":0"]), node.pages())
    web.start()
    with closing(web):
        assert get(web, "/healthz")[0] == 200
    v6 = WebServer(listen_on(["[::1]:0"]), node.pages())
    v6.start()
    with closing(v6), socket.create_connection(("::1", v6.port), timeout=30) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 200 ")


# -------------------------------------------------------------------- whom Host means


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LocalHost", "localhost.", "localhost:9847", "localhost.:9847", "localhost:",
        "127.0.0.1", "127.0.0.1:9847", "127.1.2.3", "[::1]", "[::1]:9847", "[::ffff:127.0.0.1]",
        "[0:0:0:0:0:0:0:1]",
    ],
)  # fmt: skip
def test_names_of_this_node(host: str) -> None:
    assert means_this_node(host)


@pytest.mark.parametrize(
    "host",
    [
        "", ":", ":9847", "127.0.0.1.evil.example", "127.evil.example", "127.evil.example:80",
        "localhost.evil.example", "evil.localhost", "localhost..", ".localhost", "127.1", "127.",
        "2130706433", "0x7f.0.0.1", "0177.0.0.1", "127.0.0.1.", "0.0.0.0", "10.0.0.1", "::1",
        "[::1", "::1]", "[::1]x", "[::1].evil.example", "[::1]:x", "[::1]:\xb2", "[localhost]",
        "[127.0.0.1]", "[::]", "[::ffff:10.0.0.1]", "localhost:x", "127.0.0.1:80:80",
        "localhost:" + "9" * 5000, "\xb227.0.0.1", "evil@localhost", "localhost,evil.example",
        "localhost evil.example", " localhost",
    ],
)  # fmt: skip
def test_names_of_others(host: str) -> None:
    assert not means_this_node(host)


@given(st.text(st.characters(max_codepoint=255), max_size=40))
def test_any_text_is_the_one_or_the_other(text: str) -> None:
    means_this_node(text)
    assert not means_this_node(text + ".example")
