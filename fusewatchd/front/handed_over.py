"""What the daemon handed over: documents, and files that root opened.

The code that uses files knows them by name, and this process can open none of them.  So what
stands in a file is copied into memory that has a name here, and messages for people show the name
that the file has.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fusewatchd.config.credential_files import OWN_DESCRIPTOR
from fusewatchd.config.schema import build
from fusewatchd.errors import ConfigError, CredentialsError
from fusewatchd.front.asking import Daemon, Question
from fusewatchd.front.messages import Topic
from fusewatchd.json_values import decode
from fusewatchd.kube.endpoint import Endpoint
from fusewatchd.serve.web_config import WebConfig

MAX_FILE_BYTES = (1 << 20) + 1
"""A longer file is none that can be used, and what is copied shows that."""
ANSWER_SECONDS = 10.0
_shown: dict[str, str] = {}
"""Names of files by those of their copies."""


def for_people(text: str) -> str:
    """Return a text with the names of files in the place of those of their copies."""
    return OWN_DESCRIPTOR.sub(lambda found: _shown.get(found[0], found[0]), text)


@dataclass(frozen=True, slots=True)
class Files:
    """Copies of files."""

    names: dict[str, str]
    """Of the copies, by those of the files."""
    descriptors: tuple[int, ...]

    def close(self) -> None:
        """Give the copies up."""
        for fd in self.descriptors:
            os.close(fd)


NO_FILES = Files({}, ())


def take_over(document: str, descriptors: Sequence[int]) -> tuple[Any, Files]:
    """Return the content of a document, and copies of its files; closes the descriptors."""
    whole = json.loads(document)
    copies: list[int] = []
    names: dict[str, str] = {}
    for path, fd in zip(whole["files"], descriptors, strict=True):
        copies.append(_copy(fd))
        name = names[path] = f"/proc/self/fd/{copies[-1]}"
        _shown[name] = path
    return whole["content"], Files(names, tuple(copies))


def _copy(fd: int) -> int:
    copy = os.memfd_create("file", os.MFD_CLOEXEC)
    # Not read(2): the place in the file is shared with all who were handed it.
    data = b""
    while part := os.pread(fd, MAX_FILE_BYTES - len(data), len(data)):
        data += part
    os.close(fd)
    with open(copy, "wb", closefd=False) as file:
        file.write(data)
    return copy


class HandedEndpoint:
    """An endpoint that the daemon looks after; for one thread."""

    def __init__(self, daemon: Daemon, topic: Topic) -> None:
        """Ask nothing yet."""
        self._daemon = daemon
        self._topic = topic
        self._version = 0
        self._endpoint = Endpoint("")
        self._files = NO_FILES

    def current(self) -> Endpoint:
        """Return how to reach the server now.

        Raises:
            CredentialsError: the daemon says why not, or nothing.
        """
        question = Question()
        self._daemon.ask(question, self._topic, version=self._version)
        answer = self._daemon.wait(question, ANSWER_SECONDS)
        if answer is None:
            raise CredentialsError("the daemon does not say how to reach the server")
        if not answer.is_good:
            raise CredentialsError(answer.text)
        if answer.version != self._version:
            content, files = take_over(answer.text, question.descriptors)
            self._files.close()
            self._endpoint = endpoint_with(decode(Endpoint, content), files)
            self._version, self._files = answer.version, files
        return self._endpoint


def endpoint_with(endpoint: Endpoint, files: Files) -> Endpoint:
    """Return an endpoint that names the copies of its files."""
    name = files.names.get
    return replace(
        endpoint,
        token_file=name(endpoint.token_file, ""),
        ca_file=name(endpoint.ca_file, ""),
        default_ca_files=tuple(filter(None, map(name, endpoint.default_ca_files))),
        client_cert_file=name(endpoint.client_cert_file, ""),
        client_key_file=name(endpoint.client_key_file, ""),
    )


class HandedWebConfig:
    """The web configuration, which the daemon looks after."""

    def __init__(
        self, daemon: Daemon, path: str, document: str, version: int, descriptors: Sequence[int]
    ) -> None:
        """Take what the daemon handed over at the start."""
        self.path = path
        self._daemon = daemon
        self._used = 0
        self._is_new = True
        self._take(document, version, descriptors, NO_FILES)

    def current(self) -> WebConfig:
        """Return the configuration; the same object until it changes.

        Raises:
            ConfigError: the daemon says why it cannot be used, or nothing.
        """
        if self._is_new:  # handed over this moment; and who takes it over cannot wait
            self._is_new = False
            return self._config
        question = Question()
        self._daemon.ask(question, Topic.WEB, version=self._version, used=self._used)
        answer = self._daemon.wait(question, ANSWER_SECONDS)
        if answer is None:
            raise ConfigError(f"{self.path}: the daemon does not say what holds now")
        if not answer.is_good:
            raise ConfigError(answer.text)
        if answer.version != self._version:
            self._take(answer.text, answer.version, question.descriptors, self._files)
        return self._config

    def note_used(self) -> None:
        """Note that what ``current`` returned last is in force."""
        self._used = self._version

    def _take(self, document: str, version: int, descriptors: Sequence[int], before: Files) -> None:
        content, files = take_over(document, descriptors)
        before.close()
        self._version, self._files = version, files
        self._config = web_config_with(content, files)


def web_config_with(content: Any, files: Files) -> WebConfig:
    """Return a web configuration that names the copies of its files."""
    problems: list[str] = []
    config: WebConfig = build(WebConfig, content, "", problems)
    if problems:
        raise ConfigError("; ".join(problems))
    tls = config.tls_server_config
    tls = replace(
        tls,
        cert_file=files.names.get(tls.cert_file, ""),
        key_file=files.names.get(tls.key_file, ""),
        client_ca_file=files.names.get(tls.client_ca_file, ""),
    )
    return replace(config, tls_server_config=tls)
