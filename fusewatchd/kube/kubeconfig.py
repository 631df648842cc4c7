"""The API server as a kubeconfig file describes it (client-go, tools/clientcmd/api/v1).

What stands in the file itself (``certificate-authority-data`` and the like, base64) is put into
files of the runtime directory that only root can read, since OpenSSL takes keys from files.
Programs that fetch credentials (``exec``, ``auth-provider``) are not run by a root daemon.
"""

from __future__ import annotations

import base64
import binascii
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fusewatchd.config.credential_files import Signature, read_secret, signature
from fusewatchd.errors import ConfigError, CredentialsError
from fusewatchd.kube.endpoint import Endpoint

MAX_BYTES = 1 << 20
_UNSUPPORTED = ("exec", "auth-provider", "username", "password", "as", "as-groups", "as-uid")


@dataclass(frozen=True, slots=True)
class _Material:
    """A file by its path, or what is to stand in one."""

    path: str = ""
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Kubeconfig:
    """The current context of a kubeconfig."""

    url: str
    server_name: str
    skip_verify: bool
    authority: _Material
    certificate: _Material
    key: _Material
    token: _Material


def parse_kubeconfig(document: object, path: str) -> Kubeconfig:
    """Return the current context.

    Args:
        document: as the YAML says it.
        path: of the file; relative paths in it are meant from its directory.

    Raises:
        ConfigError: one line that names the key and what was expected.
    """
    root = _mapping(document, "the file", path)
    context_name = _text(root, "current-context", "current-context", path)
    if not context_name:
        raise ConfigError(f"{path}: current-context: expected the name of a context, found nothing")
    context = _named(root, "contexts", "context", context_name, path)
    name = _text(context, "cluster", "contexts.cluster", path)
    cluster = _named(root, "clusters", "cluster", name, path)
    user = _named(root, "users", "user", _text(context, "user", "contexts.user", path), path)
    for key in _UNSUPPORTED:
        if user.get(key):
            raise ConfigError(
                f"{path}: users.{key}: not supported; expected a token or certificate"
            )
    url = _text(cluster, "server", "clusters.server", path)
    if not url.startswith(("https://", "http://")):
        raise ConfigError(f"{path}: clusters.server: expected a URL")
    token = _text(user, "token", "users.token", path)
    return Kubeconfig(
        url,
        _text(cluster, "tls-server-name", "clusters.tls-server-name", path),
        cluster.get("insecure-skip-tls-verify") is True,
        _material(cluster, "certificate-authority", "clusters", path),
        _material(user, "client-certificate", "users", path),
        _material(user, "client-key", "users", path),
        _Material(data=token.encode())
        if token
        else _Material(_beside(path, _text(user, "tokenFile", "users.tokenFile", path))),
    )


class KubeconfigSource:
    """An endpoint that follows its kubeconfig; safe to use from any thread."""

    def __init__(
        self,
        path: str,
        directory: str,
        parse_yaml: Callable[[bytes, str], object],
        timeout_seconds: float,
    ) -> None:
        """Read nothing yet.

        Args:
            path: of the kubeconfig.
            directory: where what stands in it is kept as files.
            parse_yaml: reads a document.
            timeout_seconds: for a whole request.
        """
        self._path = path
        self._directory = directory
        self._parse_yaml = parse_yaml
        self._timeout = timeout_seconds
        self._signature: Signature = ()
        self._endpoint: Endpoint | None = None
        self._lock = threading.Lock()

    def current(self) -> Endpoint:
        """Return the endpoint as the file describes it now.

        Raises:
            CredentialsError: it cannot be used.
        """
        with self._lock:
            found = signature(self._path)
            if self._endpoint is None or found != self._signature:
                self._endpoint = self._read()
                self._signature = found
            return self._endpoint

    def _read(self) -> Endpoint:
        try:
            text = read_secret(self._path, MAX_BYTES).encode("latin-1")
            found = parse_kubeconfig(self._parse_yaml(text, self._path), self._path)
            return Endpoint(
                found.url,
                server_name=found.server_name,
                token_file=self._file(found.token, "token"),
                ca_file=self._file(found.authority, "ca.crt"),
                client_cert_file=self._file(found.certificate, "client.crt"),
                client_key_file=self._file(found.key, "client.key"),
                skip_verify=found.skip_verify,
                timeout_seconds=self._timeout,
            )
        except ConfigError as exc:
            raise CredentialsError(str(exc)) from exc
        except OSError as exc:
            raise CredentialsError(f"{exc.filename or self._directory}: {exc.strerror}") from exc

    def _file(self, material: _Material, name: str) -> str:
        if not material.data:
            return material.path
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        path = os.path.join(self._directory, name)
        with suppress(FileNotFoundError):
            os.unlink(f"{path}.new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(f"{path}.new", flags, 0o600), "wb") as file:
            file.write(material.data)
        os.rename(f"{path}.new", path)
        return path


def _mapping(value: object, key: str, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}: {key}: expected keys and values")
    return value


def _text(mapping: Mapping[str, Any], name: str, key: str, path: str) -> str:
    value = mapping.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(f"{path}: {key}: expected text")
    return value


def _named(
    root: Mapping[str, Any], kinds: str, kind: str, name: str, path: str
) -> Mapping[str, Any]:
    entries = root.get(kinds)
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: {kinds}: expected a list")
    for entry in entries:
        if isinstance(entry, Mapping) and entry.get("name") == name:
            return _mapping(entry.get(kind) or {}, f"{kinds}.{kind}", path)
    raise ConfigError(f"{path}: {kinds}: expected one with the name {name!r}")


def _material(mapping: Mapping[str, Any], name: str, kinds: str, path: str) -> _Material:
    data = _text(mapping, f"{name}-data", f"{kinds}.{name}-data", path)
    if not data:
        return _Material(_beside(path, _text(mapping, name, f"{kinds}.{name}", path)))
    try:
        return _Material(data=base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError) as exc:
        raise ConfigError(f"{path}: {kinds}.{name}-data: expected base64") from exc


def _beside(path: str, name: str) -> str:
    return os.path.join(os.path.dirname(path), name) if name else ""
