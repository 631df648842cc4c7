"""Reading the configuration files; the only place that knows YAML."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType

import yaml

from fusewatchd.config.credential_files import open_trusted, require_own_place
from fusewatchd.config.layers import Configuration, combine
from fusewatchd.errors import ConfigError, CredentialsError
from fusewatchd.text import printable

DEFAULT_CONFIG = "/etc/fusewatchd/fusewatchd.yaml"
DROP_INS = "conf.d"
"""A directory beside the file, with more files, read in the order of their names."""
MAX_BYTES = 64 << 10
"""Of all files.  A reload reads them in the loop, at up to 30 µs a byte."""
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


def load(path: str, values: Mapping[str, object] = MappingProxyType({})) -> Configuration:
    """Read the configuration file, the files of ``conf.d`` beside it, and the command line.

    Args:
        path: of the file; empty: the usual one, if it is there.
        values: those of the command line by key.

    Returns:
        The configuration with every problem of it, also of files that cannot be read.
    """
    documents: list[tuple[str, object]] = []
    files, problems = _files(path)
    left = MAX_BYTES
    for file in files:
        try:
            text = _read(file, left)
            documents.append((file, parse_document(text, file)))
        except ConfigError as exc:
            problems.append(str(exc))
        else:
            left -= len(text)
    return combine(documents, values, problems)


def _files(path: str) -> tuple[list[str], list[str]]:
    """Return the files in the order in which they are read, and what is wrong with ``conf.d``."""
    is_there = path or os.path.lexists(DEFAULT_CONFIG)
    main = path or DEFAULT_CONFIG
    files = [main] if is_there else []
    directory = os.path.join(os.path.dirname(main), DROP_INS)
    try:
        names = sorted(name for name in os.listdir(directory) if not name.startswith("."))
        require_own_place(directory)
    except FileNotFoundError:
        return files, []
    except OSError as exc:
        return files, [f"{directory}: {exc.strerror}"]
    except CredentialsError as exc:
        return files, [str(exc)]
    odd = [name for name in names if name.endswith(".yml")]
    problems = [f"{directory}/{printable(name)}: expected a name ending in .yaml" for name in odd]
    return files + [f"{directory}/{name}" for name in names if name.endswith(".yaml")], problems


def load_document(path: str) -> object:
    """Read one document of YAML; None: the file is empty.

    Raises:
        ConfigError: it cannot be read, or others can write it; in one line.
    """
    return parse_document(_read(path, MAX_BYTES), path)


def _read(path: str, limit: int) -> bytes:
    try:
        with open(open_trusted(path), "rb") as file:
            text = file.read(limit + 1)
    except CredentialsError as exc:
        raise ConfigError(str(exc)) from exc
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    if len(text) > limit:
        beside = "" if limit == MAX_BYTES else f" of {MAX_BYTES} in all files"
        raise ConfigError(f"{path}: expected at most {limit} bytes{beside}")
    return text


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
