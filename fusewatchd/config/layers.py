"""Several files and the command line as one configuration, and which of them says what.

A later file wins over an earlier one, and the command line over all.  Lists of rules (the keys
described with ``rules``) grow instead: the entries of each file follow those of the file before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from fusewatchd.config.schema import build, hints_of, with_value
from fusewatchd.config.settings import Settings, disagreements
from fusewatchd.errors import ConfigError

COMMAND_LINE = "command line"
DEFAULTS = "built-in defaults"
_ENTRY = re.compile(r"([\w.]+\[\d+\])(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Configuration:
    """The settings in force, and the file that each of them comes from."""

    settings: Settings
    """Where there are problems: the defaults take the place of what is wrong."""
    files: tuple[str, ...]
    """In the order in which they are read."""
    origins: Mapping[str, tuple[str, ...]]
    """Of every key that is not at its default: the files, or the command line."""
    entries: Mapping[str, tuple[str, str]]
    """Of every rule, ``drivers.on_stale[3]``: its file, and its key there."""
    problems: tuple[str, ...]
    """One line for each."""

    def placed(self, problems: Iterable[str]) -> tuple[str, ...]:
        """Put the file in front of problems that begin with a key of the settings."""
        return tuple(_placed(problem, self.origins, self.entries) for problem in problems)

    def require(self, *further: str) -> Settings:
        """Return the settings.

        Args:
            further: problems that begin with a key.

        Raises:
            ConfigError: there are problems; one line for each, which names file and key.
        """
        problems = (*self.problems, *self.placed(further))
        if problems:
            raise ConfigError("\n".join(problems))
        return self.settings


def combine(
    documents: Sequence[tuple[str, object]],
    values: Mapping[str, object],
    problems: Iterable[str] = (),
) -> Configuration:
    """Return the configuration of some files and the command line.

    Args:
        documents: a file's name and the document in it, None where it is empty.
        values: those of the command line by key, ``recovery.mode``.
        problems: lines on files that could not be read.
    """
    found = list(problems)
    layers = _Layers()
    for file, document in documents:
        document = {} if document is None else document
        own: list[str] = []
        build(Settings, document, "", own)
        found += [f"{file}: {problem}" for problem in own]
        if isinstance(document, Mapping):
            layers.lay(Settings, layers.document, document, file, "")
    together: list[str] = []
    settings: Settings = build(Settings, layers.document, "", together)
    for key, value in values.items():
        wrong: list[str] = []
        settings = with_value(settings, key.split("."), value, key, wrong)
        found += [f"{COMMAND_LINE}: {problem}" for problem in wrong]
        layers.replace(key)
    placed = [_placed(p, layers.origins, layers.entries) for p in together]
    # A mistake of one file alone is in the list already.
    found += [line for line in placed if line not in found]
    # Those need to know the kubelet, and what is wrong there is not known.
    if not any(": kubelet" in line for line in found):
        found += [_placed(p, layers.origins, layers.entries) for p in disagreements(settings)]
    files = tuple(file for file, _ in documents)
    return Configuration(settings, files, layers.origins, layers.entries, tuple(found))


@dataclass(slots=True)
class _Layers:
    document: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, tuple[str, ...]] = field(default_factory=dict)
    entries: dict[str, tuple[str, str]] = field(default_factory=dict)

    def lay(
        self, cls: Any, below: dict[str, Any], above: Mapping[Any, Any], file: str, prefix: str
    ) -> None:
        """Put what a file says of a section over what the files before it say."""
        for f in fields(cls):
            if f.name not in above:
                continue
            value, key = above[f.name], f"{prefix}{f.name}"
            hint = hints_of(cls)[f.name]
            if is_dataclass(hint):
                if isinstance(value, Mapping):
                    self.lay(hint, below.setdefault(f.name, {}), value, file, f"{key}.")
            elif f.metadata.get("rules") and isinstance(value, list):
                before = below.get(f.name, [])
                before = before if isinstance(before, list) else []
                for number in range(len(value)):
                    self.entries[f"{key}[{len(before) + number}]"] = file, f"{key}[{number}]"
                below[f.name] = [*before, *value]
                self.origins[key] = (*self.origins.get(key, ()), file)
            else:
                below[f.name] = value
                self.origins[key] = (file,)

    def replace(self, key: str) -> None:
        """The command line says this whole key."""
        self.origins[key] = (COMMAND_LINE,)
        for entry in [e for e in self.entries if e.partition("[")[0] == key]:
            del self.entries[entry]


def _placed(
    problem: str, origins: Mapping[str, tuple[str, ...]], entries: Mapping[str, tuple[str, str]]
) -> str:
    entry = _ENTRY.match(problem)
    if entry and entry[1] in entries:
        file, key = entries[entry[1]]
        return f"{file}: {key}{entry[2]}"
    key = re.split(r"[:\[]", problem, maxsplit=1)[0]
    return f"{', '.join(origins.get(key, (DEFAULTS,)))}: {problem}"
