"""The web configuration file: read and checked, and read again when it or what it names changed."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from fusewatchd.config.credential_files import Signature, read_secret, signature
from fusewatchd.config.file import load_document
from fusewatchd.errors import ConfigError, CredentialsError
from fusewatchd.serve.web_config import TlsServerConfig, WebConfig, web_config_from

RETRY_SECONDS = 0.5
"""How soon a file that could not be used is looked at again, while clients come."""
_MAX_BYTES = 1 << 20


class WebConfigFile:
    """A configuration that follows its file."""

    def __init__(self, path: str) -> None:
        """Read nothing yet."""
        self.path = path
        self._signature: Signature = ()
        self._config: WebConfig | None = None
        self._problem = ""
        self._retry_at = 0.0

    def current(self) -> WebConfig:
        """Return the configuration, with whole paths in it; the same object until it changes.

        Raises:
            ConfigError: it cannot be used as it is now; one line for each problem.
        """
        if self._problem and time.monotonic() < self._retry_at:
            raise ConfigError(self._problem)
        try:
            files = [entry[0] for entry in self._signature]
            if self._config is None or self._problem or signature(*files) != self._signature:
                self._config, self._signature = read_web_config(self.path)
        except (ConfigError, CredentialsError) as exc:
            self._problem = str(exc)
            self._retry_at = time.monotonic() + RETRY_SECONDS
            raise ConfigError(self._problem) from exc
        self._problem = ""
        return self._config


def read_web_config(path: str) -> tuple[WebConfig, Signature]:
    """Read the file and look at what it names, which nobody else may be able to change.

    Raises:
        ConfigError: it cannot be used.
        CredentialsError: it is no file, or others can write or read it.
    """
    before = signature(path)
    config = web_config_from(load_document(path), path)
    tls = config.tls_server_config
    if tls.key:
        read_secret(path, _MAX_BYTES)
    tls = replace(
        tls,
        cert_file=_beside(path, tls.cert_file),
        key_file=_beside(path, tls.key_file),
        client_ca_file=_beside(path, tls.client_ca_file),
    )
    return replace(config, tls_server_config=tls), before + signature(*files_of(tls))


def files_of(tls: TlsServerConfig) -> tuple[str, ...]:
    """Return the files that a section names."""
    return tuple(path for path in (tls.cert_file, tls.key_file, tls.client_ca_file) if path)


def _beside(path: str, name: str) -> str:
    return os.path.join(os.path.dirname(path), name) if name else ""
