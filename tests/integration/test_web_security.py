"""TLS, client certificates, users and limits of the metrics port, over real connections."""

from __future__ import annotations

import base64
import http.client
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.timeouts import patient
from fusewatchd.errors import ConfigError
from fusewatchd.report.metrics.exposition import Page
from fusewatchd.serve.bcrypt import find_bcrypt
from fusewatchd.serve.health import Health
from fusewatchd.serve.listeners import inherited, listen_on, name_of
from fusewatchd.serve.passwords import MAX_WAITING, Credentials, PasswordChecker, credentials_of
from fusewatchd.serve.web import Pages, WebServer
from fusewatchd.serve.web_config_file import WebConfigFile
from fusewatchd.serve.web_security import WebSecurity, rules_of_file
from tests.certificates import Authority, make_authority, make_certificate
from tests.waiting import wait_until

SECRET_HASH = "$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW"
"""Of ``secret``, at the cheapest cost there is."""
BIG = b"x" * 3_000_000


def fine() -> Health:
    return Health(True, "fine")


@contextmanager
def serving(
    config: Path | None,
    complaints: list[str] | None = None,
    body: bytes = b"up 1\n",
    **bounds: float,
) -> Iterator[WebServer]:
    told = complaints if complaints is not None else []
    security = WebSecurity(WebConfigFile(str(config)) if config else None, told.append)
    pages = Pages(lambda accept: Page("text/plain", body), fine, fine)
    seconds = bounds.get("timeout_seconds", 60.0)
    server = WebServer(listen_on(["127.0.0.1:0"]), pages, security, timeout_seconds=seconds)
    server.start()
    with closing(server):
        yield server


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def get(
    server: WebServer, context: ssl.SSLContext | None = None, user: str = ""
) -> tuple[int, dict[str, str], bytes]:
    connection: http.client.HTTPConnection
    if context is None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    else:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", server.port, timeout=60, context=context
        )
    fields = {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()} if user else {}
    with closing(connection):
        connection.request("GET", "/metrics", headers=fields)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = make_authority(tmp_path_factory.mktemp("ca"))
    make_certificate(made, "server", "server", "IP:127.0.0.1")
    make_certificate(made, "other", "other", "IP:127.0.0.1")
    make_certificate(made, "prometheus", "prometheus", "DNS:prometheus.example")
    for key in made.directory.glob("*.key"):
        key.chmod(0o600)
    return made


def trusting(authority: Authority, client: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.certificate)
    # Strict from Python 3.13 on about extensions that an authority of a test does not have.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if client:
        context.load_cert_chain(authority.directory / f"{client}.pem")
    return context


def tls_config(authority: Authority, more: str = "", name: str = "server") -> Path:
    text = f"tls_server_config:\n  cert_file: {name}.crt\n  key_file: {name}.key\n{more}"
    return written(authority.directory / f"web-{time.monotonic_ns()}.yml", text)


# ------------------------------------------------------------------------------- TLS


def test_metrics_over_tls_and_large_ones(authority: Authority) -> None:
    with serving(tls_config(authority), body=BIG) as server:
        status, _, body = get(server, trusting(authority))
        assert (status, body) == (200, BIG)


def test_plain_http_gets_no_answer_from_tls(authority: Authority) -> None:
    with serving(tls_config(authority)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock:
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"up 1" not in everything_from(sock)
        assert get(server, trusting(authority))[0] == 200


def everything_from(sock: socket.socket) -> bytes:
    received = b""
    try:
        while data := sock.recv(65536):
            received += data
    except ConnectionError:
        pass
    return received


def test_certificates_and_keys_may_stand_in_the_file(authority: Authority, tmp_path: Path) -> None:
    def block(path: Path) -> str:
        return "|\n" + "".join(f"    {line}\n" for line in path.read_text().splitlines())

    base = authority.directory
    text = f"tls_server_config:\n  cert: {block(base / 'server.crt')}  key: {block(base / 'server.key')}"
    with serving(written(tmp_path / "web.yml", text)) as server:
        assert get(server, trusting(authority))[0] == 200


def test_old_versions_are_refused(authority: Authority) -> None:
    old = trusting(authority)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with serving(tls_config(authority, "  min_version: TLS13\n")) as server:
        with pytest.raises(ssl.SSLError):
            get(server, old)
        assert get(server, trusting(authority))[0] == 200


@pytest.mark.parametrize(
    ("sans", "client", "status"),
    [
        ("", "prometheus", 200),
        ("", "", 0),
        ("  client_allowed_sans: [prometheus.example]\n", "prometheus", 200),
        ("  client_allowed_sans: [prometheus.example]\n", "other", 403),
        ("  client_allowed_sans: [127.0.0.1]\n", "other", 200),
    ],
)
def test_client_certificates(authority: Authority, sans: str, client: str, status: int) -> None:
    more = f"  client_ca_file: ca.crt\n  client_auth_type: RequireAndVerifyClientCert\n{sans}"
    with serving(tls_config(authority, more)) as server:
        assert answered(server, trusting(authority, client)) == status


def answered(server: WebServer, context: ssl.SSLContext) -> int:
    """Status of the answer; 0: there was none."""
    try:
        return get(server, context)[0]
    except (OSError, http.client.HTTPException):
        return 0


def test_a_certificate_of_nobody_known_is_refused(authority: Authority, tmp_path: Path) -> None:
    stranger = make_authority(tmp_path)
    make_certificate(stranger, "prometheus", "prometheus", "DNS:prometheus.example")
    context = trusting(authority)
    context.load_cert_chain(tmp_path / "prometheus.pem")
    more = "  client_ca_file: ca.crt\n  client_auth_type: VerifyClientCertIfGiven\n"
    with serving(tls_config(authority, more)) as server:
        assert answered(server, context) == 0
        assert answered(server, trusting(authority)) == 200


@pytest.mark.slow
def test_what_never_ends_its_handshake_is_cut_off(authority: Authority) -> None:
    with (
        serving(tls_config(authority), timeout_seconds=2.0) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as slow,
    ):
        slow.sendall(b"\x16\x03\x01")
        assert get(server, trusting(authority))[0] == 200
        assert everything_from(slow) == b""


def test_new_certificates_are_served_and_bad_ones_are_not(authority: Authority) -> None:
    complaints: list[str] = []
    config = tls_config(authority)
    with serving(config, complaints) as server:
        assert served_certificate(server) == pem(authority, "server")
        config.write_text(config.read_text().replace("server.", "other."))
        assert served_certificate(server) == pem(authority, "other")
        config.write_text("tls_server_config: {cert_file: gone.crt, key_file: gone.key}\n")
        for _ in range(3):
            assert served_certificate(server) == pem(authority, "other")
        assert complaints == [f"{authority.directory}/gone.crt: No such file or directory"]
        # What is put right is taken over, though nothing but the missing files changed.
        for end in ("crt", "key"):
            text = (authority.directory / f"server.{end}").read_text()
            written(authority.directory / f"gone.{end}", text)
        wait_until(lambda: served_certificate(server) == pem(authority, "server"))


def pem(authority: Authority, name: str) -> str:
    return (authority.directory / f"{name}.crt").read_text()


def served_certificate(server: WebServer) -> str:
    return ssl.get_server_certificate(("127.0.0.1", server.port))


@pytest.mark.parametrize(
    ("text", "mode", "problem"),
    [
        (
            "tls_server_config: {cert_file: server.crt, key_file: ca.crt}\n",
            0o600,
            "ca.crt: others can read it",
        ),
        (
            "tls_server_config: {cert_file: server.crt, key_file: other.key}\n",
            0o600,
            "no usable certificate and key",
        ),
        (
            "tls_server_config: {cert_file: web.yml, key_file: server.key}\n",
            0o600,
            "no usable certificate and key",
        ),
        ("basic_auth_users: {a: b}\n", 0o600, "expected a bcrypt hash"),
        ("basic_auth_users: {a: b}\n", 0o666, "others can .mode 0666"),
        ("tls_server_config: {cert: a, key: b}\n", 0o644, "others can read it"),
        ("a: [\n", 0o600, "line 2"),
    ],
)
def test_a_file_that_cannot_be_used(
    authority: Authority, text: str, mode: int, problem: str
) -> None:
    config = written(authority.directory / "web.yml", text)
    Path(authority.certificate).chmod(0o644)
    config.chmod(mode)
    with pytest.raises(ConfigError, match=problem) as error:
        rules_of_file(str(config))
    assert len(str(error.value).splitlines()) == 1


# ----------------------------------------------------------------------------- users


@pytest.mark.parametrize(
    ("user", "status"),
    [
        ("", 401),
        ("alice:secret", 200),
        ("alice:Secret", 401),
        ("alice:secret\0", 401),
        ("alice:", 401),
        ("bob:secret", 401),
        ("alice", 401),
    ],
)
def test_users(tmp_path: Path, user: str, status: int) -> None:
    config = written(tmp_path / "web.yml", f"basic_auth_users: {{alice: {SECRET_HASH}}}\n")
    with serving(config) as server:
        for _ in range(2):
            found, fields, body = get(server, user=user)
            assert found == status
            assert (body == b"up 1\n") == (status == 200)
            assert ("WWW-Authenticate" in fields) == (status == 401)


def test_a_changed_password_counts_at_once(tmp_path: Path) -> None:
    config = written(tmp_path / "web.yml", f"basic_auth_users: {{alice: {SECRET_HASH}}}\n")
    with serving(config) as server:
        assert get(server, user="alice:secret")[0] == 200
        config.write_text("basic_auth_users: {alice: " + SECRET_HASH[:-1] + "u}\n")
        assert get(server, user="alice:secret")[0] == 401


def test_fields_and_a_limit(tmp_path: Path) -> None:
    text = "http_server_config: {headers: {X-Frame-Options: deny}}\nrate_limit: {interval: 1h, burst: 2}\n"
    with serving(written(tmp_path / "web.yml", text)) as server:
        answers = [get(server) for _ in range(3)]
    assert [status for status, _, _ in answers] == [200, 200, 429]
    assert all(fields["X-Frame-Options"] == "deny" for _, fields, _ in answers)


@pytest.mark.parametrize(
    "field",
    [
        "Basic",
        "Basic !",
        "Basic YQ",
        "Bearer YTpi",
        "Basic YTpi YTpi",
        "Basic \xff",
        "",
        "Basic " + "A" * 7000,
    ],
)
def test_what_is_no_basic_authorization(field: str) -> None:
    assert credentials_of(field) is None


def test_basic_authorization() -> None:
    assert credentials_of("bAsIc YTpiOmM=") == Credentials("a", b"b:c")


def test_the_hash_is_that_of_others() -> None:
    """The last one stands in the exporter-toolkit's source (web/handler.go)."""
    verify = find_bcrypt()
    assert verify is not None
    assert verify(b"secret", SECRET_HASH.encode())
    assert not verify(b"secret\0", SECRET_HASH.encode())
    assert not verify(b"x" * 100_000, SECRET_HASH.encode())
    assert verify(b"fakepassword", b"$2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi")


def test_guesses_take_one_thread_and_hold_up_nobody_who_is_known() -> None:
    entered, proceed = threading.Event(), threading.Event()

    def verify(password: bytes, hashed: bytes) -> bool:
        entered.set()
        if password == b"guess":
            proceed.wait(60)
        return password == b"secret"

    checker = PasswordChecker(verify, lambda: None)
    users = {"alice": SECRET_HASH}
    first = checker.begin(Credentials("alice", b"secret"), users)
    assert not isinstance(first, bool)
    wait_until(lambda: first() is True)
    entered.clear()
    before = threading.active_count()
    pending = [checker.begin(Credentials("alice", b"guess"), users) for _ in range(500)]
    assert entered.wait(60)
    assert threading.active_count() <= before + 1
    assert checker.begin(Credentials("alice", b"secret"), users) is True
    assert checker.waiting <= MAX_WAITING
    proceed.set()
    last = pending[-1]
    assert not isinstance(last, bool)
    checker.close()


def test_a_name_that_is_not_known_costs_what_a_known_one_does() -> None:
    asked: list[bytes] = []

    def verify(password: bytes, hashed: bytes) -> bool:
        asked.append(hashed)
        return True

    checker = PasswordChecker(verify, lambda: None)
    look = checker.begin(Credentials("nobody", b"x"), {"a": SECRET_HASH.replace("$04$", "$12$")})
    assert not isinstance(look, bool)
    wait_until(lambda: look() is False)
    assert asked[0].startswith(b"$2y$12$")


# --------------------------------------------------------------------------- sockets


def test_several_addresses() -> None:
    pages = Pages(lambda accept: Page("text/plain", b""), fine, fine)
    listeners = listen_on(["127.0.0.1:0", "[::1]:0"])
    server = WebServer(listeners, pages)
    server.start()
    with closing(server):
        for listener in listeners:
            with socket.create_connection(listener.getsockname()[:2], timeout=60) as client:
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                assert everything_from(client).startswith(b"HTTP/1.1 200 ")
    assert name_of(listen_on(["[::1]:0"])[0]).startswith("[::1]:")


ACTIVATED = """
import os, sys
from fusewatchd.serve.listeners import inherited, name_of
os.environ["LISTEN_PID"] = str(os.getpid())
found = inherited(os.environ, os.getpid())
assert not any(os.get_inheritable(sock.fileno()) for sock in found)
assert not [name for name in os.environ if name.startswith("LISTEN_")]
print(*map(name_of, found))
"""


def activated(*sockets: socket.socket, count: str) -> subprocess.CompletedProcess[str]:
    """Run a process as systemd does: the sockets are its descriptors from 3 on."""
    code = """
import fcntl, os, sys
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[2].split(",")]
for number, fd in enumerate(high, 3):
    os.dup2(fd, number)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""
    fds = [sock.fileno() for sock in sockets]
    return subprocess.run(
        [sys.executable, "-c", code, ACTIVATED, ",".join(map(str, fds))],
        env={**python_environment(), "LISTEN_FDS": count, "LISTEN_FDNAMES": "a"},
        pass_fds=fds,
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )


def test_sockets_of_systemd(tmp_path: Path) -> None:
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "s"))
    unix.listen()
    (tcp,) = listen_on(["127.0.0.1:0"])
    with closing(unix), closing(tcp):
        done = activated(tcp, unix, count="2")
        assert done.stdout.split() == [name_of(tcp), f"unix:{tmp_path}/s"], done.stderr
    with socket.socket() as idle:
        assert "expected a listening stream socket" in activated(idle, count="1").stderr


def test_sockets_for_another_process_are_left_alone() -> None:
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid() + 1)}
    assert inherited(environ, os.getpid()) == []
    assert environ == {}
