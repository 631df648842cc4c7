"""The HTTP client against real servers on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.errors import CredentialsError, KubeError
from fusewatchd.kube import http
from fusewatchd.kube.endpoint import Endpoint
from fusewatchd.kube.errors import (
    AnswerError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    RejectedError,
    ServerError,
    TooManyRequestsError,
    UnauthorizedError,
    UnreachableError,
    code_class,
)
from fusewatchd.kube.http import Client
from tests.certificates import make_authority, make_certificate, make_self_signed

SECRET = "top-secret-token"
PODS: dict[str, Any] = {"kind": "PodList", "items": []}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    authority = make_authority(directory)
    make_certificate(authority, "server", "kubelet", "DNS:node-1,IP:127.0.0.1")
    make_certificate(authority, "client", "fusewatchd")
    make_authority(directory, "other")
    make_self_signed(directory, "self", "node-1")
    return directory


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(SECRET + "\n")
    return path


def serving(**how: Any) -> DemoKubelet:
    return DemoKubelet(lambda: PODS, **how)


def get(kubelet: DemoKubelet, **endpoint: Any) -> Any:
    client = Client(Endpoint(kubelet.url, **endpoint))
    try:
        return client.request("GET", "/pods")
    finally:
        client.close()


def texts(exc: BaseException | None) -> Iterator[str]:
    """Everything a log could print of an exception and its causes."""
    while exc is not None:
        yield f"{exc} {exc!r} {exc.args}"
        exc = exc.__cause__ or exc.__context__


# ---------------------------------------------------------------------------- trust


def test_an_authority_that_signed_the_server(certificates: Path) -> None:
    with serving(certificate=str(certificates / "server.pem")) as kubelet:
        assert get(kubelet, ca_file=str(certificates / "ca.crt")) == PODS


def test_a_kubelet_that_signed_itself_goes_by_its_name(certificates: Path) -> None:
    with serving(certificate=str(certificates / "self.pem")) as kubelet:
        trust = {"default_ca_files": ("/no/such/ca", str(certificates / "self.crt"))}
        assert get(kubelet, server_name="node-1", **trust) == PODS
        with pytest.raises(UnreachableError, match="certificate not accepted"):
            get(kubelet, server_name="node-2", **trust)
        with pytest.raises(UnreachableError, match="certificate not accepted"):
            get(kubelet, **trust)


def test_an_unknown_authority_is_refused(certificates: Path) -> None:
    with serving(certificate=str(certificates / "server.pem")) as kubelet:
        with pytest.raises(UnreachableError, match="certificate not accepted"):
            get(kubelet, ca_file=str(certificates / "other.crt"))
        assert kubelet.requests == []


def test_without_any_authority_nothing_is_sent(certificates: Path) -> None:
    kubelet = serving(certificate=str(certificates / "server.pem"))
    with kubelet, pytest.raises(CredentialsError, match="no certificate authority"):
        get(kubelet, default_ca_files=("/no/such/ca",))
    assert kubelet.requests == []


def test_not_verified_only_when_told_so(certificates: Path) -> None:
    with serving(certificate=str(certificates / "self.pem")) as kubelet:
        assert get(kubelet, skip_verify=True) == PODS


def test_public_authorities_are_not_trusted(certificates: Path) -> None:
    client = Client(Endpoint("https://127.0.0.1:1", ca_file=str(certificates / "ca.crt")))
    session = client._current_session()
    adapter = session.get_adapter("https://127.0.0.1:1")
    context = adapter._context  # type: ignore[attr-defined]
    assert len(context.get_ca_certs()) == 1
    client.close()


def test_client_certificates(certificates: Path) -> None:
    how = {
        "certificate": str(certificates / "server.pem"),
        "client_ca": str(certificates / "ca.crt"),
    }
    trust = {"ca_file": str(certificates / "ca.crt")}
    with serving(**how) as kubelet:
        assert get(kubelet, client_cert_file=str(certificates / "client.pem"), **trust) == PODS
        with pytest.raises(UnreachableError):
            get(kubelet, **trust)


def test_a_rotated_authority_is_read_again(certificates: Path, tmp_path: Path) -> None:
    trusted = tmp_path / "ca.crt"
    shutil.copy(certificates / "other.crt", trusted)
    with serving(certificate=str(certificates / "server.pem")) as kubelet:
        client = Client(Endpoint(kubelet.url, ca_file=str(trusted)))
        with pytest.raises(UnreachableError):
            client.request("GET", "/pods")
        fresh = tmp_path / "fresh"
        shutil.copy(certificates / "ca.crt", fresh)
        os.replace(fresh, trusted)
        assert client.request("GET", "/pods") == PODS
        client.close()


# --------------------------------------------------------------------------- tokens


def test_a_token_is_sent_and_read_again_when_it_changes(token_file: Path) -> None:
    with serving(token=SECRET) as kubelet:
        client = Client(Endpoint(kubelet.url, token_file=str(token_file)))
        assert client.request("GET", "/pods") == PODS
        kubelet.token = "second"
        with pytest.raises(UnauthorizedError):
            client.request("GET", "/pods")
        fresh = token_file.with_name("fresh")
        fresh.touch(mode=0o600)
        fresh.write_text("second")
        os.replace(fresh, token_file)
        assert client.request("GET", "/pods") == PODS
        client.close()


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o666, 0o602])
def test_a_token_that_others_can_read_is_not_sent(token_file: Path, mode: int) -> None:
    token_file.chmod(mode)
    with serving() as kubelet:
        with pytest.raises(CredentialsError, match="others can read it"):
            get(kubelet, token_file=str(token_file))
        assert kubelet.requests == []


@pytest.mark.parametrize("content", ["", "two words", "line\nline", "bell\x07", "ü"])
def test_what_is_no_token_is_not_sent(token_file: Path, content: str) -> None:
    token_file.write_text(content)
    with serving() as kubelet:
        with pytest.raises(CredentialsError, match="expected one token"):
            get(kubelet, token_file=str(token_file))
        assert kubelet.requests == []


def test_a_missing_token_names_the_file() -> None:
    with serving() as kubelet, pytest.raises(CredentialsError, match="/no/such/token: No such"):
        get(kubelet, token_file="/no/such/token")


def test_a_redirect_does_not_get_the_token(token_file: Path) -> None:
    with serving() as thief, serving() as kubelet:
        kubelet.status, kubelet.location = 302, f"{thief.url}/pods"
        with pytest.raises(AnswerError, match="redirect"):
            get(kubelet, token_file=str(token_file))
        assert thief.requests == []


def test_no_exception_shows_a_secret(token_file: Path, certificates: Path) -> None:
    with serving(token="another") as kubelet:
        client = Client(Endpoint(kubelet.url, token_file=str(token_file)))
        failures: list[KubeError] = []
        for status, body in ((200, None), (500, None), (200, b"{"), (302, None)):
            kubelet.token = SECRET if status != 200 or body else "another"
            kubelet.status, kubelet.body = status, body
            with pytest.raises(KubeError) as caught:
                client.request("GET", "/pods")
            failures.append(caught.value)
        client.close()
    with pytest.raises(KubeError) as caught:
        client.request("GET", "/pods")
    failures.append(caught.value)
    assert len(failures) == 5
    assert SECRET not in repr(client.endpoint)
    for failure in failures:
        assert not any(SECRET in text for text in texts(failure))


def test_proxies_of_the_environment_are_not_used() -> None:
    before = {name: os.environ.get(name) for name in ("http_proxy", "HTTP_PROXY", "no_proxy")}
    os.environ |= {"http_proxy": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1"}
    os.environ.pop("no_proxy", None)
    try:
        with serving() as kubelet:
            assert get(kubelet) == PODS
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# -------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("status", "error", "label"),
    [
        (400, RejectedError, "4xx"),
        (401, UnauthorizedError, "4xx"),
        (403, ForbiddenError, "4xx"),
        (404, NotFoundError, "4xx"),
        (409, ConflictError, "4xx"),
        (422, RejectedError, "4xx"),
        (429, TooManyRequestsError, "4xx"),
        (500, ServerError, "5xx"),
        (503, ServerError, "5xx"),
    ],
)
def test_every_status_has_its_error(status: int, error: type[KubeError], label: str) -> None:
    with serving() as kubelet:
        kubelet.status = status
        with pytest.raises(error) as caught:
            get(kubelet)
    assert caught.value.code == status
    assert code_class(caught.value.code) == label


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000])
def test_what_is_not_json_is_said(body: bytes) -> None:
    with serving() as kubelet:
        kubelet.body = body
        with pytest.raises(AnswerError, match="not JSON"):
            get(kubelet)


def test_an_answer_without_end_is_cut() -> None:
    with serving() as kubelet:
        kubelet.body = b'"' + b"x" * (http.MAX_ANSWER_BYTES + 1) + b'"'
        with pytest.raises(AnswerError, match="more than"):
            get(kubelet)


def test_an_answer_that_drips_ends_at_the_deadline() -> None:
    with serving() as kubelet:
        kubelet.body = b"x" * 10_000
        kubelet.pause_seconds = 0.01
        started = time.monotonic()
        with pytest.raises(UnreachableError):
            get(kubelet, timeout_seconds=0.3)
        assert time.monotonic() - started < 50  # ten thousand bytes would take 100 s


def test_nobody_there_is_said_in_plain_words() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(UnreachableError) as caught:
        Client(Endpoint(url)).request("GET", "/pods")
    assert str(caught.value) == f"{url}: Connection refused"


def test_no_answer_is_said_in_plain_words() -> None:
    with serving() as kubelet:
        kubelet.delay_seconds = 30
        with pytest.raises(UnreachableError, match="no answer in time"):
            get(kubelet, timeout_seconds=0.2)


def test_a_connection_that_the_server_closed_is_made_again() -> None:
    with serving() as kubelet:
        client = Client(Endpoint(kubelet.url))
        assert client.request("GET", "/pods") == PODS
        before = threading.active_count()
        kubelet._server.close_request = lambda *_: None  # type: ignore[method-assign]
        for _ in range(3):
            assert client.request("GET", "/pods") == PODS
        assert threading.active_count() <= before + 3
        client.close()
