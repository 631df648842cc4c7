"""What is asked of clients: made from the web configuration, and again when that changed.

A configuration that became wrong changes nothing: what was in force before stays, and the problem
is told once, in one line.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from fusewatchd.config.credential_files import read_secret, require_own_place
from fusewatchd.errors import ConfigError, CredentialsError
from fusewatchd.serve.bcrypt import Verify, find_bcrypt
from fusewatchd.serve.web_config import (
    CIPHERS,
    OPEN,
    ClientAuth,
    TlsServerConfig,
    TlsVersion,
    WebConfig,
)
from fusewatchd.serve.web_config_file import WebConfigFile
from fusewatchd.text import printable

_MAX_BYTES = 1 << 20
_VERSIONS = {
    TlsVersion.TLS10: ssl.TLSVersion.TLSv1,
    TlsVersion.TLS11: ssl.TLSVersion.TLSv1_1,
    TlsVersion.TLS12: ssl.TLSVersion.TLSv1_2,
    TlsVersion.TLS13: ssl.TLSVersion.TLSv1_3,
}
_SAN_KINDS = ("DNS", "email", "IP Address", "URI")


@dataclass(frozen=True, slots=True)
class Rules:
    """What is asked of clients now."""

    config: WebConfig = OPEN
    tls: ssl.SSLContext | None = None
    verify: Verify | None = None
    """Checks passwords; there when there are users."""

    def admits(self, client: socket.socket) -> bool:
        """Return True when the names in a client's certificate are among those allowed."""
        allowed = self.config.tls_server_config.client_allowed_sans
        if not allowed:
            return True
        certificate: Any = client.getpeercert() if isinstance(client, ssl.SSLSocket) else None
        names = (certificate or {}).get("subjectAltName", ())
        return any(kind in _SAN_KINDS and name in allowed for kind, name in names)


class ConfigSource(Protocol):
    """Where the configuration is to be had."""

    path: str
    """Of the file, for people."""

    def current(self) -> WebConfig:
        """Return it as it is now; the same object as long as nothing changed.

        Raises:
            ConfigError: it cannot be used as it is now.
        """


class WebSecurity:
    """The rules that follow from a configuration; without one everybody is answered."""

    def __init__(
        self,
        source: ConfigSource | None = None,
        complain: Callable[[str], None] = lambda problem: None,
        accept: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the configuration that there is now.

        Args:
            source: of the configuration; None: there is none, and all get plain HTTP.
            complain: takes what is wrong with a later state of it.
            accept: called when what the source returned last is in force.

        Raises:
            ConfigError: it cannot be used.
        """
        self._source = source
        self._complain = complain
        self._accept = accept
        self._problem = ""
        self._config = self._failed = OPEN
        self._rules = Rules()
        if source is not None:
            self._config = source.current()
            self._rules = rules_of(self._config, source.path)
            accept()

    def current(self) -> Rules:
        """Return the rules in force, after a look at whether the configuration changed."""
        if self._source is None:
            return self._rules
        try:
            config = self._source.current()
            if config is self._failed:
                return self._rules
            if config is not self._config:
                self._failed = config
                self._rules = rules_of(config, self._source.path)
                self._config, self._failed = config, OPEN
                self._accept()
            self._problem = ""
        except ConfigError as exc:
            if str(exc) != self._problem:
                self._problem = str(exc)
                self._complain(self._problem)
        return self._rules


def rules_of_file(path: str) -> Rules:
    """Return what follows from a file; without one (an empty path) everybody is answered.

    Raises:
        ConfigError: it cannot be used.
    """
    return rules_of(WebConfigFile(path).current(), path) if path else Rules()


def rules_of(config: WebConfig, path: str) -> Rules:
    """Read what the configuration at ``path`` names; the names in it are whole paths.

    Raises:
        ConfigError: something cannot be used; one line for each problem.
    """
    tls = config.tls_server_config
    try:
        context = _context(tls, path) if tls.is_on else None
    except CredentialsError as exc:
        raise ConfigError(str(exc)) from exc
    verify = find_bcrypt() if config.basic_auth_users else None
    if config.basic_auth_users and verify is None:
        raise ConfigError(
            f"{path}: basic_auth_users: this system's libcrypt cannot check bcrypt"
            " (libxcrypt is needed); use client certificates, or leave them out"
        )
    return Rules(config, context, verify)


def _context(tls: TlsServerConfig, path: str) -> ssl.SSLContext:
    certificate = tls.cert or _read(tls.cert_file)
    key = tls.key or read_secret(tls.key_file, _MAX_BYTES)
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS[tls.min_version]
        context.maximum_version = _VERSIONS[tls.max_version]
        context.options |= ssl.OP_NO_RENEGOTIATION
        if tls.prefer_server_cipher_suites:
            context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
        chosen = [CIPHERS[name] for name in tls.cipher_suites if name in CIPHERS]
        if chosen:
            context.set_ciphers(":".join(chosen))
    except (ssl.SSLError, ValueError) as exc:
        raise ConfigError(f"{path}: tls_server_config: {_words(exc)}") from exc
    try:
        with _as_file(certificate) as cert_path, _as_file(key) as key_path:
            # The callback keeps a locked key from asking for a pass phrase on a terminal.
            context.load_cert_chain(cert_path, key_path, lambda: b"")
    except (OSError, ValueError) as exc:
        what = f"{tls.cert_file or 'cert'}, {tls.key_file or 'key'}"
        raise ConfigError(f"{path}: {what}: no usable certificate and key: {_words(exc)}") from exc
    if tls.client_auth_type in (ClientAuth.REQUIRE, ClientAuth.VERIFY_IF_GIVEN):
        _trust_clients(context, tls, path)
    return context


def _trust_clients(context: ssl.SSLContext, tls: TlsServerConfig, path: str) -> None:
    authority = tls.client_ca or _read(tls.client_ca_file)
    try:
        context.load_verify_locations(cadata=authority)
    except (OSError, ValueError) as exc:
        what = tls.client_ca_file or "client_ca"
        raise ConfigError(f"{path}: {what}: no usable certificates: {_words(exc)}") from exc
    is_required = tls.client_auth_type is ClientAuth.REQUIRE
    context.verify_mode = ssl.CERT_REQUIRED if is_required else ssl.CERT_OPTIONAL


def _read(path: str) -> str:
    require_own_place(path)
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES)
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    return data.decode("latin-1")


@contextmanager
def _as_file(text: str) -> Iterator[str]:
    """Give text a name: the library reads certificates and keys from files only."""
    fd = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(text.encode("latin-1", "replace"))
        yield f"/proc/self/fd/{fd}"
    finally:
        with suppress(OSError):
            os.close(fd)


def _words(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLError):
        return printable(exc.reason or "it is none")
    return printable(getattr(exc, "strerror", None) or str(exc))
