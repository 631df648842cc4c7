"""The HTTP client against servers that mean harm: every answer ends, in time and in memory."""

from __future__ import annotations

import gzip
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from fusewatchd.demo.cluster.apiserver import DemoApiServer
from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.environment import python_environment
from fusewatchd.errors import CredentialsError, KubeError
from fusewatchd.kube import http
from fusewatchd.kube.dates import MAX_RETRY_AFTER_SECONDS
from fusewatchd.kube.endpoint import Endpoint
from fusewatchd.kube.errors import AnswerError, ServerError, TooManyRequestsError, UnreachableError
from fusewatchd.kube.http import Client
from tests.certificates import make_authority, make_certificate, make_certificate_valid
from tests.rawserver import RawServer, Script, answer, later, sends, sends_once

SECRET = "top-secret-token"
PODS: dict[str, Any] = {"kind": "PodList", "items": []}
QUICK = 0.5
"""Seconds of a deadline that is meant to pass."""
MEMORY = 300 << 20
"""More than a client ever takes, less than what it is sent."""
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def get(url: str, **endpoint: Any) -> Any:
    client = Client(Endpoint(url, **endpoint))
    try:
        return client.request("GET", "/pods")
    finally:
        client.close()


def asked_again(client: Client) -> Any:
    """Ask with the same short deadline, which a busy machine may not meet at once."""
    for _ in range(20):
        with suppress(UnreachableError):
            return client.request("GET", "/pods")
    raise AssertionError("no answer")


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# ------------------------------------------------------------------------------ time


@pytest.mark.parametrize(
    "script",
    [
        sends(b"H", b"T", pause=0.01),
        sends(HEAD + b"X: ", b"y", pause=0.01),
        sends(HEAD, b"X: y\r\n", pause=0.05),
        sends(b"HTTP/1.1 100 Continue\r\n\r\n", pause=0.01),
        sends(b"HTTP/1.1 100 Continue\r\n\r\n"),
        sends(HEAD + b"Content-Length: 1000000\r\n\r\n", b"[", pause=0.01),
        sends(HEAD + b"\r\n", b"[", pause=0.01),
        sends(CHUNKED, b"1\r\n[\r\n", pause=0.01),
        sends(CHUNKED + b"5", b"0", pause=0.01),
        sends(CHUNKED + b"1\r\n[\r\n0\r\n", b"Trailer: x\r\n", pause=0.01),
        lambda client: client.recv(1),
    ],
    ids=[
        "status", "field", "fields", "interim", "interim flood", "body", "body to the end",
        "chunks", "chunk length", "trailers", "nothing",
    ],
)  # fmt: skip
def test_whatever_drips_ends_at_the_deadline(script: Script) -> None:
    before = open_descriptors()
    with RawServer(script) as server:
        client = Client(Endpoint(server.url, timeout_seconds=QUICK))
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="no answer in time"):
            client.request("GET", "/pods")
        assert time.monotonic() - began < 30
        # And the next request is a new one.
        server.script = sends_once(answer(b"{}"))
        assert asked_again(client) == {}
        client.close()
    end = time.monotonic() + 20
    while open_descriptors() > before:
        assert time.monotonic() < end, "descriptors stay open"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "script",
    [
        lambda client: client.recv(1),
        sends(b"\x16\x03\x03\x40\x00\x02", b"\x00", pause=0.01),
        sends(b"HTTP/1.0 400 Bad Request\r\n\r\n"),
        sends(b"\x15\x03\x03\x00\x02\x02\x28"),
    ],
    ids=["nothing", "drip", "no tls", "alerts"],
)
def test_a_handshake_that_does_not_come_about_ends(tmp_path: Path, script: Script) -> None:
    authority = make_authority(tmp_path)
    with RawServer(script, "https") as server, pytest.raises(UnreachableError):
        get(server.url, ca_file=authority.certificate, timeout_seconds=QUICK)


def test_a_connection_kept_from_the_request_before_is_cut_too() -> None:
    def script(client: socket.socket) -> None:
        client.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")
        client.recv(1 << 16)
        sends(HEAD + b"X: ", b"y", pause=0.01)(client)

    with RawServer(script) as server:
        client = Client(Endpoint(server.url, timeout_seconds=QUICK))
        assert asked_again(client) == {}
        connections = len(server.received)
        with pytest.raises(UnreachableError, match="no answer in time"):
            client.request("GET", "/pods")
        assert len(server.received) == connections
        client.close()


# ---------------------------------------------------------------------------- memory

ASK = """
import resource, sys
from fusewatchd.errors import KubeError
from fusewatchd.kube.endpoint import Endpoint
from fusewatchd.kube.http import Client
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    Client(Endpoint(sys.argv[1], timeout_seconds=20.0)).request("GET", "/pods")
except KubeError as exc:
    print(type(exc).__name__, exc.code, exc)
else:
    print("fine")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def asked_apart(url: str) -> tuple[str, int]:
    """Ask in a process of its own; return what came of it and the memory it took, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, url],
        capture_output=True,
        text=True,
        env=python_environment(),
        timeout=60,
        check=True,
    )
    what, memory = done.stdout.splitlines()
    return what, int(memory)


MEGABYTE = b"[" + b" " * ((1 << 20) - 2) + b"]"
LARGE = 200


def large(client: socket.socket) -> None:
    client.sendall(HEAD + f"Content-Length: {LARGE << 20}\r\n\r\n".encode())
    for _ in range(LARGE):
        client.sendall(MEGABYTE)


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        (large, "AnswerError 200 an answer of more than"),
        (sends(HEAD + b"\r\n", MEGABYTE), "AnswerError 200 an answer of more than"),
        (sends(CHUNKED, b"100000\r\n" + MEGABYTE + b"\r\n"), "AnswerError 200 an answer of"),
        (sends(CHUNKED, b"f" * (1 << 16)), "UnreachableError"),
        (sends(CHUNKED + b"1;", b"x" * (1 << 16)), "UnreachableError"),
        (sends(CHUNKED + b"1\r\n[\r\n0\r\n", b"X" * (1 << 16)), "UnreachableError"),
        (sends(HEAD + b"X: ", b"y" * (1 << 16)), "UnreachableError"),
        (sends(HEAD, b"X: y\r\n" * 1000), "UnreachableError"),
        (sends(b"x" * (1 << 16)), "UnreachableError"),
        (
            later(lambda: sends_once(answer(gzip.compress(b" " * (256 << 20), 1), "Content-Encoding: gzip"))),
            "AnswerError 200 a compressed answer",
        ),
        (
            later(lambda: sends_once(answer(b"[" + b"{}," * 8_000_000 + b"{}]"))),
            "AnswerError 200 an answer of more than",
        ),
        (later(lambda: sends_once(answer(b"[" * 30_000_000))), "AnswerError 200 an answer of more than"),
        (later(lambda: sends_once(answer(b'"' + b"\xf0\x9f\x92\xa9" * 7_000_000 + b'"'))), "fine"),
        (later(lambda: sends_once(answer(b"[" + b'{"a":1},' * 499_000 + b"1]"))), "fine"),
    ],
    ids=[
        "200 MB", "no end", "chunks", "chunk length", "chunk extension", "trailer", "field",
        "fields", "status line", "gzip", "many values", "deep", "wide text", "as much as may be",
    ],
)  # fmt: skip
@pytest.mark.slow
def test_memory_is_bounded_whatever_is_sent(script: Script, problem: str) -> None:
    with RawServer(script) as server:
        what, memory = asked_apart(server.url)
    assert what.startswith(problem)
    assert memory < MEMORY


# --------------------------------------------------------------------------- nonsense


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\r\n\r\n",
        b"\x00" * 100,
        b"SSH-2.0-OpenSSH_9.0\r\n",
        b"{}",
        b"HTTP/1.1 \r\n\r\n",
        b"HTTP/1.1 99999 Fine\r\n\r\n",
        b"HTTP/1.1 abc Fine\r\n\r\n{}",
        b"HTTP/9.9 200 OK\r\n\r\n{}",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        HEAD + b"Content-Length: 1000\r\n\r\n{}",
        CHUNKED + b"zz\r\n{}\r\n",
        CHUNKED + b"-1\r\n{}\r\n",
        CHUNKED + b"2\r\n{}",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n\x1f\x8b\r\n0\r\n\r\n",
        answer(b"\x1f\x8b\x08", "Content-Encoding: br, gzip"),
        answer(b"{}", status="304 Not Modified"),
        answer(b"{}", "Location: http://127.0.0.1:1/", status="307 Temporary Redirect"),
        answer(b"\xff\xfe{\x00}\x00"[:3]),
        answer(b'{"a": NaN, "b": ' + b"9" * 5000 + b"}"),
    ],
)
def test_nonsense_is_an_error_with_a_reason(said: bytes) -> None:
    with RawServer(sends_once(said)) as server, pytest.raises(KubeError) as caught:
        get(server.url, timeout_seconds=5.0)
    assert isinstance(caught.value, AnswerError | UnreachableError)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "", "9" * 40])
def test_a_length_that_is_none_does_no_harm(length: str) -> None:
    head = HEAD + f"Content-Length: {length}\r\n\r\n".encode()
    with RawServer(sends_once(head + b"{}")) as server:
        try:
            assert get(server.url, timeout_seconds=5.0) == {}
        except KubeError as exc:
            assert isinstance(exc, AnswerError | UnreachableError)


def test_a_reason_from_the_server_is_short_and_printable() -> None:
    nasty = b"HTTP/1.1 500 " + b"\x1b[31m\x07" * 2000 + b"\r\nConnection: close\r\n\r\n"
    message = {"kind": "Status", "message": "a\nb\x1b[0m" * 10_000}
    both = [nasty, answer(json.dumps(message).encode(), status="403 Forbidden")]
    for said in both:
        with RawServer(sends_once(said)) as server, pytest.raises(KubeError) as caught:
            get(server.url)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500


# ---------------------------------------------------------------------------- waiting


def http_date(seconds: float) -> str:
    moment = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    return format_datetime(moment, usegmt=True)


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("0", 0, 0),
        ("7", 7, 7),
        ("9" * 300, MAX_RETRY_AFTER_SECONDS, MAX_RETRY_AFTER_SECONDS),
        ("-5", 0, 0),
        ("1.5", 0, 0),
        ("nan", 0, 0),
        ("²", 0, 0),
        ("in 100", 1, 100),
        ("in -100", 0, 0),
        ("in 315360000", MAX_RETRY_AFTER_SECONDS, MAX_RETRY_AFTER_SECONDS),
        ("Sun, 06 Nov 1994 08:49:37 -0000", 0, 0),
        ("Sun, 99 Nov 9999999 08:49:37 GMT", 0, 0),
        ("Fri, 31 Dec 9999 23:59:59 -2359", 0, MAX_RETRY_AFTER_SECONDS),
        ("soon", 0, 0),
        ("", 0, 0),
    ],
)
def test_how_long_a_server_wants_peace_is_bounded(
    status: str, text: str, least: float, most: float
) -> None:
    if text.startswith("in "):
        text = http_date(float(text[3:]))
    script = sends_once(answer(b"{}", f"Retry-After: {text}", status=status))
    with RawServer(script) as server, pytest.raises(KubeError) as caught:
        get(server.url)
    assert isinstance(caught.value, TooManyRequestsError | ServerError)
    assert least <= caught.value.retry_after <= most


# ------------------------------------------------------------------------------ trust


@pytest.mark.parametrize(
    ("names", "valid", "words"),
    [
        ("IP:127.0.0.1", "20200101000000Z,20200201000000Z", "expired"),
        ("IP:127.0.0.1", "20490101000000Z,20491231000000Z", "not yet valid"),
        ("IP:127.0.0.2,DNS:localhost", "", "127.0.0.1"),
        ("DNS:127.0.0.1", "", "127.0.0.1"),
        ("", "", "certificate"),
    ],
    ids=["expired", "not yet", "other names", "an address as a name", "no name"],
)
def test_a_certificate_that_does_not_hold_gets_no_token(
    tmp_path: Path, names: str, valid: str, words: str
) -> None:
    authority = make_authority(tmp_path)
    if valid:
        certificate = make_certificate_valid(authority, "server", names, valid)
    else:
        certificate = make_certificate(authority, "server", "somebody", names)
    token = secret_file(tmp_path / "token")
    with DemoKubelet(lambda: PODS, certificate=certificate) as kubelet:
        with pytest.raises(UnreachableError, match="certificate not accepted") as caught:
            get(kubelet.url, ca_file=authority.certificate, token_file=str(token))
        assert words in str(caught.value)
        assert kubelet.requests == []


@pytest.mark.parametrize("mode", [0o646, 0o666, 0o664])
def test_an_authority_that_others_can_change_is_not_trusted(tmp_path: Path, mode: int) -> None:
    authority = make_authority(tmp_path)
    certificate = make_certificate(authority, "server", "kubelet", "IP:127.0.0.1")
    os.chown(authority.certificate, 0, 65534)
    os.chmod(authority.certificate, mode)
    with DemoKubelet(lambda: PODS, certificate=certificate) as kubelet:
        with pytest.raises(CredentialsError, match=r"others can .mode"):
            get(kubelet.url, ca_file=authority.certificate)
        os.chmod(authority.certificate, 0o644)
        assert get(kubelet.url, ca_file=authority.certificate) == PODS
        os.chown(authority.certificate, 65534, 0)
        with pytest.raises(CredentialsError, match="belongs to uid 65534"):
            get(kubelet.url, ca_file=authority.certificate)
        assert len(kubelet.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
def test_no_redirect_is_followed_whatever_the_method(
    tmp_path: Path, status: int, method: str
) -> None:
    token = secret_file(tmp_path / "token")
    with DemoApiServer() as thief:
        script = sends_once(answer(b"", f"Location: {thief.url}/x", status=f"{status} Moved"))
        with RawServer(script) as server:
            client = Client(Endpoint(server.url, token_file=str(token)))
            with pytest.raises(AnswerError, match="redirect"):
                client.request(method, "/x", {"a": 1} if method != "GET" else None)
            client.close()
        assert thief.requests == []


# ------------------------------------------------------------------------------ secrets


def secret_file(path: Path, content: bytes = SECRET.encode(), mode: int = 0o600) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def given(path: Path, uid: int, gid: int) -> None:
    os.chown(path, uid, gid)


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "problem"),
    [
        (0o600, 0, 0, ""),
        (0o400, 0, 0, ""),
        (0o640, 0, 0, ""),
        (0o640, 0, 65534, "others can read it"),
        (0o660, 0, 65534, "others can read it"),
        (0o610, 0, 65534, "others can read it"),
        (0o644, 0, 0, "others can read it"),
        (0o604, 0, 0, "others can read it"),
        (0o601, 0, 0, "others can read it"),
        (0o600, 65534, 0, "belongs to uid 65534"),
        (0o600, 65534, 65534, "belongs to uid 65534"),
    ],
)
def test_who_else_can_get_at_a_token(
    tmp_path: Path, mode: int, uid: int, gid: int, problem: str
) -> None:
    token = secret_file(tmp_path / "token", mode=mode)
    given(token, uid, gid)
    with DemoKubelet(lambda: PODS, token=SECRET) as kubelet:
        if not problem:
            assert get(kubelet.url, token_file=str(token)) == PODS
            return
        with pytest.raises(CredentialsError, match=problem):
            get(kubelet.url, token_file=str(token))
        assert kubelet.requests == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"two words",
        b"token\r\nX-Remote-User: admin",
        b"token\nnext",
        b"token\x00",
        b"token\x1b[0m",
        b"t\xc3\xb6ken",
        b"x" * (10 << 20),
    ],
    ids=["empty", "blank", "words", "crlf", "lf", "nul", "escape", "utf-8", "10 MB"],
)
def test_what_is_no_token_never_gets_into_a_header(tmp_path: Path, content: bytes) -> None:
    token = secret_file(tmp_path / "token", content)
    with DemoKubelet(lambda: PODS) as kubelet:
        with pytest.raises(CredentialsError, match="expected") as caught:
            get(kubelet.url, token_file=str(token))
        assert "admin" not in str(caught.value)
        assert kubelet.requests == []


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        os.mkdir,
        lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5)),
        lambda path: os.mknod(path, 0o600 | stat.S_IFSOCK),
        lambda path: os.symlink(path, path),
        lambda path: os.symlink("/proc/self/mem/..", path),
    ],
    ids=["fifo", "directory", "endless device", "socket", "loop", "dangling"],
)
@pytest.mark.parametrize("key", ["token_file", "ca_file", "client_cert_file", "client_key_file"])
def test_what_is_no_file_is_refused_and_blocks_nobody(
    tmp_path: Path, make: Callable[[str], None], key: str
) -> None:
    path = str(tmp_path / "thing")
    make(path)
    files = {"ca_file": make_authority(tmp_path).certificate, key: path}
    client = Client(Endpoint("https://127.0.0.1:1", **files))
    for _ in range(2):
        with pytest.raises(CredentialsError):
            client.request("GET", "/pods")
    before = open_descriptors()
    for _ in range(3):
        with pytest.raises(CredentialsError):
            client.request("GET", "/pods")
    assert open_descriptors() == before


def test_a_link_is_followed_and_what_it_leads_to_counts(tmp_path: Path) -> None:
    """As the projected volumes of Kubernetes have it, which turn a token over that way."""
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    secret_file(tmp_path / "first" / "token")
    secret_file(tmp_path / "second" / "token", mode=0o644)
    (tmp_path / "data").symlink_to("first")
    (tmp_path / "token").symlink_to("data/token")
    with DemoKubelet(lambda: PODS, token=SECRET) as kubelet:
        client = Client(Endpoint(kubelet.url, token_file=str(tmp_path / "token")))
        assert client.request("GET", "/pods") == PODS
        (tmp_path / "fresh").symlink_to("second")
        os.replace(tmp_path / "fresh", tmp_path / "data")
        with pytest.raises(CredentialsError, match="others can read it"):
            client.request("GET", "/pods")
        client.close()


@pytest.mark.parametrize("where", ["message", "reason", "both"])
def test_a_server_that_repeats_the_token_does_not_get_it_logged(tmp_path: Path, where: str) -> None:
    token = secret_file(tmp_path / "token")
    body = b'{"message": "no such token: Bearer ' + SECRET.encode() + b'"}'
    said = answer(
        body if where != "reason" else b"{}",
        status=f"401 No {SECRET}" if where != "message" else "401 Unauthorized",
    )
    with RawServer(sends_once(said)) as server, pytest.raises(KubeError) as caught:
        get(server.url, token_file=str(token))
    assert "(token)" in str(caught.value)
    exc: BaseException | None = caught.value
    while exc is not None:
        assert SECRET not in f"{exc} {exc!r} {exc.args}"
        exc = exc.__cause__ or exc.__context__
    assert http.MAX_TOKEN_BYTES < 10 << 20
