"""Answers of a kubelet or an API server, byte for byte: whatever comes, the client's own errors."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import cache

from hypothesis import strategies as st

from fusewatchd.errors import KubeError, ParseError
from fusewatchd.kube.endpoint import Endpoint
from fusewatchd.kube.http import Client
from fusewatchd.parse.pod_list import parse_pod_list
from tests.fuzz.mutation import damaged
from tests.fuzz.properties import holds_for
from tests.rawserver import RawServer, sends_once

TIMEOUT_SECONDS = 2.0
BODIES = [
    b'{"kind":"PodList","items":[]}', b'{"kind":"PodList","items":[{"metadata":{"uid":"u"}}]}',
    b"", b"null", b"[" * 5000, b"9" * 5000, b"1e999", b'"\\ud800"', b"\xff\xfe", b"{",
    b"5\r\nabcde\r\n0\r\n\r\n", b"\xb2\r\nabc\r\n", b"-1\r\n", b"f" * 100 + b"\r\n",
]  # fmt: skip
STATUSES = [
    b"HTTP/1.1 200 OK", b"HTTP/1.0 200", b"HTTP/1.1 403 Forbidden", b"HTTP/1.1 429 Later",
    b"HTTP/1.1 500 \xb2", b"HTTP/1.1 999 X", b"HTTP/1.1 301 Moved", b"HTTP/1.1 204 None",
    b"HTTP/1.1 \xb200 OK", b"HTTP/9.9 200 OK", b"", b"HTTP/1.1 100 Continue", b"SSH-2.0",
]  # fmt: skip
NAMES = [
    b"Content-Length", b"Retry-After", b"Date", b"Content-Encoding", b"Transfer-Encoding",
    b"Location", b"Connection", b"Content-Type", b"Set-Cookie", b"X\xb2",
]  # fmt: skip
VALUES = [
    b"\xb2", b"9" * 5000, b"9" * 20, b"-1", b"+5", b"1_0", b" 5", b"0x10", b"", b"5, 5", b"1e3",
    b"Tue, 99 Foo 99999 99:99:99 GMT", b"Sun, 06 Nov 1994 08:49:37 GMT", b"gzip", b"chunked",
    b"identity, chunked", b"http://[::1", b"//\xff", b"close", b"a=\xb2; Max-Age=\xb2", b"\x00",
]  # fmt: skip


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    fields = draw(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=3))
    lines = [draw(st.sampled_from(STATUSES)), *(name + b": " + value for name, value in fields)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + draw(st.sampled_from(BODIES))


WHOLE = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 29\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n"
    + BODIES[0],
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1d\r\n" + BODIES[0] + b"\r\n0\r\n\r\n",
    b'HTTP/1.1 503 Later\r\nRetry-After: 5\r\nContent-Length: 15\r\n\r\n{"message":"x"}',
]


@cache
def server() -> RawServer:
    return RawServer(sends_once(b""))


@holds_for(answers() | damaged(WHOLE))
def an_answer_is_json_or_an_error_of_the_client(data: bytes) -> None:
    server().script = sends_once(data)
    client = Client(Endpoint(server().url, timeout_seconds=TIMEOUT_SECONDS))
    began = time.monotonic()
    try:
        with suppress(ParseError):
            parse_pod_list(client.request("GET", "/pods"))
    except KubeError as exc:
        assert str(exc).isprintable(), exc
        assert "nobody foresaw" not in str(exc), exc
    finally:
        client.close()
    assert time.monotonic() - began < 30
