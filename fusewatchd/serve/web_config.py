"""The web configuration file in the format of Prometheus' exporter-toolkit, as a frozen value.

https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md; a file
that serves the other exporters of a node serves this one.  What cannot be done here is refused
and never left out silently.  Pure; ``web_security`` reads the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from fusewatchd.config.checks import count_or_none
from fusewatchd.config.schema import build, checked
from fusewatchd.errors import ConfigError
from fusewatchd.text import printable

MAX_COST = 14
"""Of bcrypt: a check takes most of a second, and twice as long with each more."""
MIN_COST = 4

_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
_DURATION = re.compile(r"0|(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

HEADERS: Mapping[str, tuple[str, ...]] = {
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
    "Content-Security-Policy": (),
}
"""Fields that may be added to answers, with the values that are allowed; none: any."""

CIPHERS: Mapping[str, str] = {
    f"TLS_{exchange}_WITH_{go}": f"{openssl_exchange}{openssl}"
    for exchange, openssl_exchange in (
        ("ECDHE_ECDSA", "ECDHE-ECDSA-"),
        ("ECDHE_RSA", "ECDHE-RSA-"),
        ("RSA", ""),
    )
    for go, openssl in (
        ("AES_128_GCM_SHA256", "AES128-GCM-SHA256"),
        ("AES_256_GCM_SHA384", "AES256-GCM-SHA384"),
        ("AES_128_CBC_SHA", "AES128-SHA"),
        ("AES_256_CBC_SHA", "AES256-SHA"),
        ("CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305"),
    )
    if (exchange, go) != ("RSA", "CHACHA20_POLY1305_SHA256")
}
"""Go's names of the suites up to TLS 1.2, and OpenSSL's."""
CIPHERS_OF_TLS13 = frozenset(
    {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}
)
"""Always on: neither library lets them be chosen here."""


class ClientAuth(Enum):
    """What is asked of a client's certificate; Go's names."""

    NONE = "NoClientCert"
    REQUEST = "RequestClientCert"
    ANY = "RequireAnyClientCert"
    ANY_OLD_NAME = "RequireClientCert"
    VERIFY_IF_GIVEN = "VerifyClientCertIfGiven"
    REQUIRE = "RequireAndVerifyClientCert"


_UNVERIFIED = (ClientAuth.REQUEST, ClientAuth.ANY, ClientAuth.ANY_OLD_NAME)


class TlsVersion(Enum):
    """Versions of the protocol."""

    TLS10 = "TLS10"
    TLS11 = "TLS11"
    TLS12 = "TLS12"
    TLS13 = "TLS13"


def _ciphers(value: tuple[str, ...]) -> str:
    known = all(name in CIPHERS or name in CIPHERS_OF_TLS13 for name in value)
    return "" if known else "a list of cipher suites by Go's names"


def _no_curves(value: tuple[str, ...]) -> str:
    return "nothing, since curves cannot be chosen here" if value else ""


def _duration(value: str) -> str:
    return "" if _DURATION.fullmatch(value) else "a duration as 1s or 500ms"


@dataclass(frozen=True, slots=True)
class TlsServerConfig:
    """Section ``tls_server_config``."""

    cert: str = field(default="", repr=False)
    key: str = field(default="", repr=False)
    client_ca: str = field(default="", repr=False)
    cert_file: str = ""
    key_file: str = ""
    client_auth_type: ClientAuth = ClientAuth.NONE
    client_ca_file: str = ""
    client_allowed_sans: tuple[str, ...] = ()
    min_version: TlsVersion = TlsVersion.TLS12
    max_version: TlsVersion = TlsVersion.TLS13
    cipher_suites: tuple[str, ...] = checked((), _ciphers)
    prefer_server_cipher_suites: bool = True
    curve_preferences: tuple[str, ...] = checked((), _no_curves)

    @property
    def is_on(self) -> bool:
        """True when anything says that TLS is meant."""
        given = (self.cert, self.key, self.client_ca, self.cert_file, self.key_file)
        return any((*given, self.client_ca_file)) or self.client_auth_type is not ClientAuth.NONE


@dataclass(frozen=True, slots=True)
class HttpServerConfig:
    """Section ``http_server_config``."""

    http2: bool = True
    """Taken and without effect: answers are HTTP/1.1."""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Section ``rate_limit``; off while the interval is 0."""

    interval: str = checked("0", _duration)
    burst: int = checked(0, count_or_none)

    @property
    def seconds(self) -> float:
        """Time between two requests."""
        parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", self.interval)
        return sum(float(number) * _UNITS[unit] for number, unit in parts)


@dataclass(frozen=True, slots=True)
class WebConfig:
    """The whole file."""

    tls_server_config: TlsServerConfig = field(default_factory=TlsServerConfig)
    http_server_config: HttpServerConfig = field(default_factory=HttpServerConfig)
    basic_auth_users: Mapping[str, str] = field(default_factory=dict, repr=False)
    """bcrypt hashes by name."""
    rate_limit: RateLimit = field(default_factory=RateLimit)

    @property
    def authenticates(self) -> bool:
        """True when nobody is answered who has not shown who he is."""
        is_required = self.tls_server_config.client_auth_type is ClientAuth.REQUIRE
        return bool(self.basic_auth_users) or is_required


OPEN = WebConfig()
"""Without a file: neither TLS nor users."""


def web_config_from(document: object, file: str) -> WebConfig:
    """Check a whole document and build the configuration from it.

    Raises:
        ConfigError: one line for each problem; no secret stands in it.
    """
    problems: list[str] = []
    config: WebConfig = build(WebConfig, {} if document is None else document, "", problems)
    if not problems:
        problems += [*_tls_problems(config.tls_server_config), *_other_problems(config)]
    if problems:
        raise ConfigError("\n".join(f"{file}: {problem}" for problem in problems))
    return config


def _tls_problems(tls: TlsServerConfig) -> list[str]:
    section = "tls_server_config"
    found = []
    for name in ("cert", "key", "client_ca"):
        if getattr(tls, name) and getattr(tls, f"{name}_file"):
            found.append(f"{section}: {name} and {name}_file exclude each other")
    if tls.is_on:
        for name in ("cert", "key"):
            if not getattr(tls, name) and not getattr(tls, f"{name}_file"):
                found.append(f"{section}: {name}_file is missing")
    has_ca = bool(tls.client_ca or tls.client_ca_file)
    auth = tls.client_auth_type
    if auth in _UNVERIFIED:
        found.append(
            f"{section}.client_auth_type: {auth.value} proves nothing and cannot be had here;"
            " use RequireAndVerifyClientCert"
        )
    elif has_ca and auth is ClientAuth.NONE:
        found.append(f"{section}: client_ca_file needs a client_auth_type")
    elif not has_ca and auth is not ClientAuth.NONE:
        found.append(f"{section}.client_auth_type: needs a client_ca_file")
    if tls.client_allowed_sans and auth is not ClientAuth.REQUIRE:
        found.append(f"{section}.client_allowed_sans: needs RequireAndVerifyClientCert")
    versions = list(TlsVersion)
    if versions.index(tls.min_version) > versions.index(tls.max_version):
        found.append(f"{section}: min_version is above max_version")
    return found


def _other_problems(config: WebConfig) -> list[str]:
    found = []
    for name, value in config.http_server_config.headers.items():
        if name not in HEADERS:
            found.append(f"http_server_config.headers.{printable(name)}: cannot be set")
        elif HEADERS[name] and value not in HEADERS[name]:
            allowed = " or ".join(HEADERS[name])
            found.append(f"http_server_config.headers.{name}: expected {allowed}")
        elif not (value.isascii() and value.isprintable()):
            found.append(f"http_server_config.headers.{name}: expected printable text")
    for user, hashed in config.basic_auth_users.items():
        match = _BCRYPT.fullmatch(hashed)
        if match is None:
            found.append(f"basic_auth_users.{printable(user)}: expected a bcrypt hash, $2y$10$…")
        elif not MIN_COST <= int(match[1]) <= MAX_COST:
            found.append(
                f"basic_auth_users.{printable(user)}: expected a cost from {MIN_COST} to"
                f" {MAX_COST}, found {int(match[1])}: a check would take seconds"
            )
    return found
