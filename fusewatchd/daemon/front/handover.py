"""Files that root opens and looks at, and that the front reads: configuration, tokens, keys.

They are looked at when the front asks, which it does before each use, and opened again when they
changed.  Safe to use from any thread.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

from fusewatchd.config.credential_files import open_secret, open_trusted, signature
from fusewatchd.errors import FusewatchError
from fusewatchd.json_values import encode
from fusewatchd.kube.endpoint import Endpoint, EndpointSource
from fusewatchd.serve.web_config import WebConfig
from fusewatchd.serve.web_config_file import WebConfigFile

_versions = count(1)


@dataclass(frozen=True, slots=True)
class Handover:
    """One state of what is handed over."""

    version: int
    """No other state of anything has it."""
    document: str
    """JSON: what is said, and the names of the files in the order of the descriptors."""
    descriptors: tuple[int, ...]

    def copy(self, known: int) -> Handover:
        """Return it with descriptors that are the caller's; without, to one who has it."""
        if known == self.version:
            return Handover(self.version, "", ())
        return Handover(self.version, self.document, tuple(map(os.dup, self.descriptors)))

    def close(self) -> None:
        """Close the descriptors; what was sent already stays open at the front."""
        for fd in self.descriptors:
            with suppress(OSError):
                os.close(fd)


Opener = Callable[[str], int]


def _opened(content: object, files: dict[str, Opener]) -> Handover:
    descriptors: list[int] = []
    try:
        for path, opener in files.items():
            descriptors.append(opener(path))
    except FusewatchError:
        for fd in descriptors:
            os.close(fd)
        raise
    document = json.dumps({"content": encode(content), "files": list(files)})
    return Handover(next(_versions), document, tuple(descriptors))


class EndpointFiles:
    """How to reach a server, and what is needed for that."""

    def __init__(self, source: Endpoint | EndpointSource) -> None:
        """Open nothing yet."""
        self._source = source
        self._found: object = None
        self._handover: Handover | None = None
        self._lock = threading.Lock()

    def current(self, known: int) -> Handover:
        """Return a copy of what holds now; ``known`` is the version that the front has.

        Raises:
            CredentialsError: a file cannot or must not be used.
        """
        with self._lock:
            source = self._source
            endpoint = source if isinstance(source, Endpoint) else source.current()
            files = files_of_endpoint(endpoint)
            found = (endpoint, signature(*files))
            if self._handover is None or found != self._found:
                fresh = _opened(endpoint, files)
                self._close()
                self._found, self._handover = found, fresh
            return self._handover.copy(known)

    def close(self) -> None:
        """Close what is open."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._handover is not None:
            self._handover.close()
            self._handover = None


def files_of_endpoint(endpoint: Endpoint) -> dict[str, Opener]:
    """Return the files of an endpoint, and how each of them is opened.

    Raises:
        CredentialsError: there is no authority to verify the server.
    """
    files: dict[str, Opener] = dict.fromkeys(endpoint.authorities(), open_trusted)
    if endpoint.client_cert_file:
        files[endpoint.client_cert_file] = open_trusted
        files[endpoint.client_key_file or endpoint.client_cert_file] = open_secret
    if endpoint.token_file:
        files[endpoint.token_file] = open_secret
    return files


class WebFiles:
    """The web configuration, and the certificates and keys that it names."""

    def __init__(self, file: WebConfigFile) -> None:
        """Open nothing yet."""
        self._file = file
        self._config: WebConfig | None = None
        self._handover: Handover | None = None
        self._accepted: Handover | None = None
        """The last one that a front could use."""
        self._lock = threading.Lock()

    def current(self, known: int, used: int) -> Handover:
        """Return a copy of what holds now.

        Args:
            known: the version that the front has.
            used: the one that is in force there, so that it is known to be usable.

        Raises:
            ConfigError: the configuration cannot be used.
            CredentialsError: a file that it names cannot.
        """
        with self._lock:
            if self._handover is not None and used == self._handover.version:
                self._accept(self._handover)
            return self._current().copy(known)

    def usable(self) -> Handover:
        """Return what a new front begins with: the last that one could use, or what holds now.

        Raises:
            ConfigError, CredentialsError: as ``current``.
        """
        with self._lock:
            return (self._accepted or self._current()).copy(0)

    def _current(self) -> Handover:
        config = self._file.current()
        if self._handover is None or config is not self._config:
            tls = config.tls_server_config
            files: dict[str, Opener] = {}
            for path in filter(None, (tls.cert_file, tls.client_ca_file)):
                files[path] = open_trusted
            if tls.key_file:
                files[tls.key_file] = open_secret
            fresh = _opened(config, files)
            if self._handover is not None and self._handover is not self._accepted:
                self._handover.close()
            self._config, self._handover = config, fresh
        return self._handover

    def close(self) -> None:
        """Close what is open."""
        with self._lock:
            for each in {id(h): h for h in (self._handover, self._accepted) if h}.values():
                each.close()
            self._handover = self._accepted = None

    def _accept(self, handover: Handover) -> None:
        if self._accepted is not None and self._accepted is not handover:
            self._accepted.close()
        self._accepted = handover
