"""Reading the configuration file; the only place that knows YAML."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import yaml

from fusewatchd.config.credential_files import require_own_place
from fusewatchd.config.settings import Settings, settings_from
from fusewatchd.errors import ConfigError, CredentialsError
from fusewatchd.text import printable

MAX_BYTES = 64 << 10
"""A reload reads it in the loop, at up to 30 µs a byte."""
_Constructor = Callable[["_StrictLoader", yaml.ScalarNode], object]
_NOT_YAML = (
    yaml.YAMLError,
    ValueError,
    LookupError,
    ArithmeticError,
    TypeError,
    AttributeError,
    RecursionError,
)
"""PyYAML's own error, and what its constructors stumble over: ``!!int ""``, ``!!bool x``, a
date that the calendar lacks, a set as a key, brackets in brackets without end."""


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that does not let a key silently win over its twin.

    ``1:30`` is text, as in YAML 1.2: a number to base 60 costs the square of its length.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (dict, list)):
                continue
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: key {key} stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _number(construct: Callable[[_StrictLoader, yaml.ScalarNode], object]) -> _Constructor:
    def construct_plainly(loader: _StrictLoader, node: yaml.ScalarNode) -> object:
        return node.value if ":" in node.value else construct(loader, node)

    return construct_plainly


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _number(yaml.SafeLoader.construct_yaml_int))
_StrictLoader.add_constructor(
    "tag:yaml.org,2002:float", _number(yaml.SafeLoader.construct_yaml_float)
)


def load_settings(path: str) -> Settings:
    """Read a file into settings; an empty file gives the defaults.

    Raises:
        ConfigError: it cannot be read or used; one line for each problem.
    """
    return settings_from(load_document(path), path)


def load_document(path: str) -> object:
    """Read one document of YAML; None: the file is empty.

    Raises:
        ConfigError: it cannot be read, or others can write it; in one line.
    """
    try:
        require_own_place(path)
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{path}: expected a regular file")
            text = file.read(MAX_BYTES + 1)
    except CredentialsError as exc:
        raise ConfigError(str(exc)) from exc
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{path}: expected at most {MAX_BYTES} bytes")
    return parse_document(text, path)


def parse_document(text: bytes, path: str) -> object:
    """Return what stands in the text of this file.

    Raises:
        ConfigError: it is not YAML, or a key stands twice.
    """
    try:
        document: object = yaml.load(text, Loader=_StrictLoader)
    except _NOT_YAML as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        problem = getattr(exc, "problem", None) or str(exc).partition("\n")[0]
        raise ConfigError(f"{path}: {where}{printable(problem)}") from exc
    return document


def parse_value(text: str) -> object:
    """Read one value of the command line as the file would; plain text stays text."""
    try:
        value: object = yaml.load(text, Loader=_StrictLoader)
    except _NOT_YAML:
        return text
    return text if value is None or isinstance(value, dict) else value
