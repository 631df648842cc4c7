"""HTTP to the kubelet and the API server: verified, bounded, and quiet about secrets.

Files with tokens, keys and certificates are looked at before every request and read again
when they changed, since all of them rotate.  Redirects are not followed: a token must never
go where it was not meant to.  Proxies of the environment are not used.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
import warnings
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from fusewatchd import __version__
from fusewatchd.config.credential_files import (
    Signature,
    read_secret,
    read_token,
    require_own_place,
    signature,
)
from fusewatchd.errors import CredentialsError, KubeError
from fusewatchd.kube.cutoff import CutOff
from fusewatchd.kube.dates import http_date, retry_after
from fusewatchd.kube.endpoint import (
    MAX_CERTIFICATE_BYTES,
    MAX_TOKEN_BYTES,
    Endpoint,
    EndpointSource,
)
from fusewatchd.kube.errors import AnswerError, UnreachableError, refusal_of
from fusewatchd.text import printable
from fusewatchd.threads import place_of

MAX_ANSWER_BYTES = 32 << 20
MAX_VALUES = 1_000_000
"""In one answer: small ones take many times the room in memory that they take in JSON."""
MAX_DIGITS = 20
"""Of a length: 64 bits have no more."""
CONNECT_SECONDS = 3.0
_CHUNK = 1 << 16
_LATE = "no answer in time"


class Client:
    """Sends requests to one endpoint; for one thread."""

    def __init__(self, endpoint: Endpoint | EndpointSource) -> None:
        """Keep the endpoint; files are read and a connection is made with the first request."""
        self._source = endpoint
        self.endpoint = endpoint if isinstance(endpoint, Endpoint) else Endpoint("")
        self._session: requests.Session | None = None
        self._tls_files: Signature = ()
        self._token = ""
        self._token_signature: Signature = ()
        self._cut_off = CutOff()
        self.asked_at = 0.0
        """When the last request was sent, seconds since the epoch."""
        self.server_time: float | None = None
        """The same moment by the server's clock, as its last answer's ``Date`` field has it."""

    def close(self) -> None:
        """Close idle connections."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def request(
        self,
        method: str,
        path: str,
        body: object | None = None,
        content_type: str = "application/json",
    ) -> Any:
        """Send a request and return the JSON of a 2xx answer.

        Raises:
            KubeError: the subclass says what kind of answer, or lack of one, it was.
        """
        try:
            return self._request(method, path, body, content_type)
        except KubeError:
            raise
        except Exception as exc:
            # Whatever a server brings a library to raise: its user has one kind to catch.
            self.close()
            what = f"{type(exc).__name__} at {place_of(exc)}"
            raise AnswerError(f"{self.endpoint.url}: an answer nobody foresaw: {what}") from exc

    def _request(self, method: str, path: str, body: object | None, content_type: str) -> Any:
        if not isinstance(self._source, Endpoint):
            self._follow(self._source.current())
        headers = {"Accept": "application/json", "Content-Type": content_type}
        token = self._current_token()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        session, seconds = self._current_session(), self.endpoint.timeout_seconds
        self.asked_at = time.time()
        try:
            with (
                self._cut_off.after(seconds),
                session.request(
                    method,
                    self.endpoint.url.rstrip("/") + path,
                    data=data,
                    headers=headers,
                    timeout=(min(CONNECT_SECONDS, seconds), seconds),
                    allow_redirects=False,
                    stream=True,
                ) as answer,
            ):
                self.server_time = http_date(answer.headers.get("Date", ""))
                body = _body(answer)
            if not self._cut_off.has_struck:
                return _content(answer, body, token)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            why = _LATE if self._cut_off.has_struck else _reason(exc)
            raise UnreachableError(f"{self.endpoint.url}: {why}") from exc
        # What was cut off may look whole: the end of a connection ends fields and bodies too.
        raise UnreachableError(f"{self.endpoint.url}: {_LATE}")

    def _follow(self, endpoint: Endpoint) -> None:
        if endpoint != self.endpoint:
            self.close()
            self.endpoint = endpoint

    # ------------------------------------------------------------------------ secrets

    def _current_token(self) -> str:
        path = self.endpoint.token_file
        if not path:
            return ""
        found = signature(path)
        if found != self._token_signature:
            self._token = read_token(path, MAX_TOKEN_BYTES)
            self._token_signature = found
        return self._token

    def _current_session(self) -> requests.Session:
        files = signature(*self.endpoint.authorities(), *self._client_files())
        if self._session is None or files != self._tls_files:
            self.close()
            session = _Session()
            session.trust_env = False
            session.headers["User-Agent"] = f"fusewatchd/{__version__}"
            # A compressed answer could not be bounded before it is unpacked.
            session.headers["Accept-Encoding"] = "identity"
            session.mount("http://", _PlainAdapter(self._cut_off.watch))
            if self.endpoint.url.startswith("https:"):
                name = self.endpoint.server_name or urlsplit(self.endpoint.url).hostname or ""
                adapter = _TlsAdapter(self._cut_off.watch, self._tls_context(), name)
                session.mount("https://", adapter)
            self._session, self._tls_files = session, files
        return self._session

    def _client_files(self) -> tuple[str, ...]:
        return tuple(
            p for p in (self.endpoint.client_cert_file, self.endpoint.client_key_file) if p
        )

    def _tls_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # The name is compared by urllib3: its older releases tell OpenSSL no name when the
        # host is an address.
        context.check_hostname = False
        # A kubelet's own certificate may be the only one there is: trust it as it stands.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        endpoint, files = self.endpoint, self.endpoint.authorities()
        if endpoint.skip_verify:
            # Asked for in so many words: no need to be told with every request.
            warnings.filterwarnings("ignore", message="Unverified HTTPS request")
            context.verify_mode = ssl.CERT_NONE
        for path in files:
            require_own_place(path)
            try:
                context.load_verify_locations(cafile=path)
            except (OSError, ssl.SSLError) as exc:
                raise CredentialsError(f"{path}: no usable certificates: {_words(exc)}") from exc
        if endpoint.client_cert_file:
            key = endpoint.client_key_file or endpoint.client_cert_file
            read_secret(key, MAX_CERTIFICATE_BYTES)
            try:
                # The callback keeps a locked key from asking for a pass phrase on a terminal.
                context.load_cert_chain(endpoint.client_cert_file, key, lambda: b"")
            except (OSError, ssl.SSLError) as exc:
                detail = f"{endpoint.client_cert_file}, {key}: {_words(exc)}"
                raise CredentialsError(f"no usable client certificate: {detail}") from exc
        return context


class _Session(requests.Session):
    """Knows no redirects: even one that is not followed would be read to its end."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


_Watch = Callable[[socket.socket], None]


class _PlainAdapter(HTTPAdapter):
    """Shows each new connection to those who may have to cut it."""

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _pools(self._watch)


def _pools(watch: _Watch) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            watch(self.sock)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            watch(self.sock)

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


class _TlsAdapter(_PlainAdapter):
    """Uses one TLS context, and one name to verify."""

    def __init__(self, watch: _Watch, context: ssl.SSLContext, server_name: str) -> None:
        self._context = context
        self._server_name = server_name
        super().__init__(watch)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        kwargs["ssl_context"] = self._context
        kwargs["server_hostname"] = self._server_name
        kwargs["assert_hostname"] = self._server_name
        super().init_poolmanager(*args, **kwargs)

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Leave out what the base class does: add every public authority to those trusted."""
        is_verified = self._context.verify_mode is ssl.CERT_REQUIRED
        conn.cert_reqs = "CERT_REQUIRED" if is_verified else "CERT_NONE"
        conn.ca_certs = conn.ca_cert_dir = None


def _body(answer: requests.Response) -> bytes:
    code = answer.status_code
    if 300 <= code < 400:
        raise AnswerError(f"{answer.request.url}: a redirect is not followed", code)
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise AnswerError("a compressed answer, which nobody asked for", code)
    body = bytearray()
    # Not iter_content: it unpacks, and reads a chunk's length however long that line is.
    while chunk := answer.raw.read(_CHUNK, decode_content=False):
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise AnswerError(f"an answer of more than {MAX_ANSWER_BYTES} bytes", code)
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise AnswerError(f"an answer of more than {MAX_VALUES} values", code)
    return bytes(body)


def _is_number(text: str) -> bool:
    """Say whether these are digits of ASCII, and no more than any length has."""
    return text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS


def _content(answer: requests.Response, body: bytes, secret: str) -> Any:
    code = answer.status_code
    expected = answer.headers.get("Content-Length", "")
    if _is_number(expected) and len(body) < int(expected):
        # Older releases of requests take a body that ends too soon for a whole one.
        raise UnreachableError(f"{answer.request.url}: the answer did not end in time")
    try:
        document = json.loads(body) if body else None
    except (ValueError, RecursionError) as exc:
        if answer.ok:
            raise AnswerError("the answer is not JSON", code) from exc
        document = None
    if answer.ok:
        return document
    raise _refusal(answer, document, secret)


def _refusal(answer: requests.Response, document: object, secret: str) -> KubeError:
    code = answer.status_code
    said = document.get("message") if isinstance(document, dict) else None
    words = said if isinstance(said, str) else str(answer.reason)
    # A server may repeat what it was sent, and this is logged.
    words = printable(words.replace(secret, "(token)") if secret else words)
    message = f"{answer.request.method} {answer.request.path_url}: {code} {words}"
    rest = retry_after(answer.headers.get("Retry-After", ""), time.time())
    return refusal_of(code, message, rest)


def _reason(exc: BaseException) -> str:
    """Find the words of the first cause; those of the layers between repeat URLs and objects."""
    if isinstance(exc, requests.Timeout):
        return _LATE
    seen: BaseException | None = exc
    best = type(exc).__name__
    for _ in range(12):
        if seen is None:
            break
        if type(seen).__name__ == "CertificateError":  # urllib3's, which moved about
            return f"certificate not accepted: {printable(str(seen))}"
        if isinstance(seen, ssl.SSLError | OSError) and not isinstance(
            seen, requests.RequestException
        ):
            best = _words(seen)
        inner = getattr(seen, "reason", None)
        causes = [inner, *seen.args, seen.__cause__, seen.__context__]
        seen = next((c for c in causes if isinstance(c, BaseException)), None)
    return best


def _words(exc: BaseException) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {printable(exc.verify_message)}"
    if isinstance(exc, ssl.SSLError):
        return f"TLS: {printable(exc.reason or 'error')}"
    if isinstance(exc, OSError) and exc.strerror:
        return printable(str(exc.strerror))
    return type(exc).__name__
