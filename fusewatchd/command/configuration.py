"""``config-check`` and ``config-show``: what is wrong with a configuration, and what it says."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

from fusewatchd.act.programs import problems_of_programs
from fusewatchd.config.credential_files import (
    open_secret,
    open_trusted,
    read_secret,
    read_token,
)
from fusewatchd.config.file import parse_document
from fusewatchd.config.layers import DEFAULTS, Configuration
from fusewatchd.config.settings import ApiServerSettings, KubeletSettings, Settings
from fusewatchd.errors import ConfigError, CredentialsError
from fusewatchd.kube.endpoint import MAX_TOKEN_BYTES
from fusewatchd.kube.kubeconfig import MAX_BYTES, parse_kubeconfig
from fusewatchd.serve.web_security import rules_of_file
from fusewatchd.text import printable

_PLAIN = re.compile(r"[A-Za-z/][\w./:@*?-]*")
_YAML_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
_COLUMN = 44


def all_problems(configuration: Configuration) -> tuple[str, ...]:
    """Return every problem of every kind: keys, programs, credential files, web configuration."""
    settings = configuration.settings
    further = [*problems_of_programs(settings), *_problems_of_credentials(settings)]
    web: list[str] = []
    try:
        rules_of_file(settings.web.config_file)
    except ConfigError as exc:
        web = str(exc).splitlines()
    return (*configuration.problems, *configuration.placed(further), *web)


def _problems_of_credentials(settings: Settings) -> Iterator[str]:
    sections: tuple[tuple[str, KubeletSettings | ApiServerSettings], ...] = (
        ("kubelet", settings.kubelet),
        ("apiserver", settings.apiserver),
    )
    for name, section in sections:
        for key in ("token_file", "ca_file", "client_cert_file", "client_key_file", "kubeconfig"):
            path = getattr(section, key, "")
            try:
                if path:
                    _require_credential(key, path, section)
            except (ConfigError, CredentialsError) as exc:
                yield f"{name}.{key}: {exc}"


def _require_credential(key: str, path: str, section: KubeletSettings | ApiServerSettings) -> None:
    """Read a file as the daemon would."""
    if key == "token_file":
        read_token(path, MAX_TOKEN_BYTES)
    elif key == "kubeconfig":
        text = read_secret(path, MAX_BYTES).encode("latin-1")
        parse_kubeconfig(parse_document(text, path), path)
    elif key == "client_key_file" or (key == "client_cert_file" and not section.client_key_file):
        os.close(open_secret(path))
    else:
        os.close(open_trusted(path))


# ------------------------------------------------------------------------- what is in force


@dataclass(frozen=True, slots=True)
class InForce:
    """One key, or one rule of a list of them."""

    key: str
    value: object
    """As JSON has it."""
    origins: tuple[str, ...]
    """The files that say so; empty: it is the default."""


def in_force(configuration: Configuration, *, changed: bool) -> list[InForce]:
    """Return what is in force; ``changed`` leaves out what no file says."""
    found = _keys(configuration, configuration.settings, "")
    return [each for each in found if each.origins or not changed]


def _keys(configuration: Configuration, section: Any, prefix: str) -> Iterator[InForce]:
    for f in fields(section):
        key, value = f"{prefix}{f.name}", getattr(section, f.name)
        if is_dataclass(value):
            yield from _keys(configuration, value, f"{key}.")
        elif f"{key}[0]" in configuration.entries:
            for number, rule in enumerate(value):
                entry = f"{key}[{number}]"
                yield InForce(entry, _plain(rule), (configuration.entries[entry][0],))
        else:
            yield InForce(key, _plain(value), configuration.origins.get(key, ()))


def _plain(value: Any) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return value


def in_force_text(configuration: Configuration, keys: list[InForce]) -> str:
    """Return lines of YAML with keys in full, each with its file as a comment."""
    files = configuration.files or (DEFAULTS,)
    lines = [f"# {printable(file, 4096)}" for file in files]
    for each in keys:
        line = f"{each.key}: {_scalar(each.value)}"
        origin = ", ".join(each.origins) or "default"
        lines.append(f"{line:{_COLUMN}}  # {printable(origin, 4096)}")
    return "\n".join([*lines, ""])


def in_force_document(configuration: Configuration, keys: list[InForce]) -> dict[str, Any]:
    """Return the same for programs."""
    return {
        "files": list(configuration.files),
        "keys": {each.key: {"value": each.value, "from": list(each.origins)} for each in keys},
    }


def _scalar(value: object) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _YAML_WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
