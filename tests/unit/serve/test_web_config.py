"""The web configuration file as a table: what is taken, and the one line for what is not."""

from __future__ import annotations

import pytest

from fusewatchd.errors import ConfigError
from fusewatchd.serve.web_config import CIPHERS, ClientAuth, TlsVersion, web_config_from

HASH = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"
TLS = {"cert_file": "a.crt", "key_file": "a.key"}
MUTUAL = {**TLS, "client_ca_file": "ca.crt", "client_auth_type": "RequireAndVerifyClientCert"}


def test_the_whole_format_is_taken() -> None:
    config = web_config_from(
        {
            "tls_server_config": {
                **MUTUAL,
                "client_allowed_sans": ["prometheus"],
                "min_version": "TLS13",
                "max_version": "TLS13",
                "cipher_suites": [
                    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
                    "TLS_AES_128_GCM_SHA256",
                ],
                "prefer_server_cipher_suites": False,
                "curve_preferences": [],
            },
            "http_server_config": {"http2": False, "headers": {"X-Frame-Options": "deny"}},
            "basic_auth_users": {"alice": HASH},
            "rate_limit": {"interval": "1m30.5s", "burst": 3},
        },
        "f",
    )
    assert config.tls_server_config.client_auth_type is ClientAuth.REQUIRE
    assert config.tls_server_config.min_version is TlsVersion.TLS13
    assert config.rate_limit.seconds == 90.5
    assert config.authenticates
    assert HASH not in repr(config)


@pytest.mark.parametrize(
    "document", [None, {}, {"basic_auth_users": None}, {"tls_server_config": TLS}]
)
def test_what_lets_everybody_in(document: object) -> None:
    assert not web_config_from(document, "f").authenticates


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ({"tls_config": {}}, "tls_config: no such key; did you mean tls_server_config?"),
        ({"tls_server_config": {"cert_file": "a"}}, "tls_server_config: key_file is missing"),
        ({"tls_server_config": {"key_file": "a"}}, "tls_server_config: cert_file is missing"),
        (
            {"tls_server_config": {**TLS, "key": "secret"}},
            "tls_server_config: key and key_file exclude each other",
        ),
        (
            {"tls_server_config": {**TLS, "min_version": "SSL30"}},
            "tls_server_config.min_version: expected TLS10 or TLS11 or TLS12 or TLS13, found SSL30",
        ),
        (
            {"tls_server_config": {**TLS, "min_version": "TLS13", "max_version": "TLS12"}},
            "tls_server_config: min_version is above max_version",
        ),
        (
            {"tls_server_config": {**MUTUAL, "client_auth_type": "RequireAnyClientCert"}},
            "tls_server_config.client_auth_type: RequireAnyClientCert proves nothing and cannot be"
            " had here; use RequireAndVerifyClientCert",
        ),
        (
            {"tls_server_config": {**TLS, "client_auth_type": "RequireAndVerifyClientCert"}},
            "tls_server_config.client_auth_type: needs a client_ca_file",
        ),
        (
            {"tls_server_config": {**TLS, "client_ca_file": "ca"}},
            "tls_server_config: client_ca_file needs a client_auth_type",
        ),
        (
            {
                "tls_server_config": {
                    **MUTUAL,
                    "client_auth_type": "VerifyClientCertIfGiven",
                    "client_allowed_sans": ["a"],
                }
            },
            "tls_server_config.client_allowed_sans: needs RequireAndVerifyClientCert",
        ),
        (
            {"tls_server_config": {**TLS, "curve_preferences": ["X25519"]}},
            "tls_server_config.curve_preferences: expected nothing, since curves cannot be chosen"
            " here, found ('X25519',)",
        ),
        (
            {"http_server_config": {"headers": {"Server": "x"}}},
            "http_server_config.headers.Server: cannot be set",
        ),
        (
            {"http_server_config": {"headers": {"X-Frame-Options": "all"}}},
            "http_server_config.headers.X-Frame-Options: expected deny or sameorigin",
        ),
        (
            {"http_server_config": {"headers": {"X-XSS-Protection": "1\r\nX: y"}}},
            "http_server_config.headers.X-XSS-Protection: expected printable text",
        ),
        (
            {"rate_limit": {"interval": "soon"}},
            "rate_limit.interval: expected a duration as 1s or 500ms, found soon",
        ),
        (
            {"basic_auth_users": {"alice": HASH.replace("$10$", "$18$")}},
            "basic_auth_users.alice: expected a cost from 4 to 14, found 18: a check would take seconds",
        ),
    ],
)
def test_a_bad_file_gives_one_line(document: object, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        web_config_from(document, "f")
    assert str(error.value) == f"f: {line}"


@pytest.mark.parametrize("password", ["hunter2", 12345, ["hunter2"], None, HASH[:-1], HASH + "x"])
def test_what_may_be_a_password_is_not_repeated(password: object) -> None:
    with pytest.raises(ConfigError) as error:
        web_config_from({"basic_auth_users": {"alice": password}}, "f")
    assert str(error.value).startswith("f: basic_auth_users.alice: expected ")
    assert "hunter2" not in str(error.value)
    assert "12345" not in str(error.value)


def test_suites_have_the_names_of_openssl() -> None:
    assert CIPHERS["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"] == "ECDHE-RSA-AES128-GCM-SHA256"
    assert (
        CIPHERS["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"] == "ECDHE-ECDSA-CHACHA20-POLY1305"
    )
    assert CIPHERS["TLS_RSA_WITH_AES_256_CBC_SHA"] == "AES256-SHA"
