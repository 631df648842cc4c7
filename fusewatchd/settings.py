"""Configuration as one frozen value; this module reads no file.

Types, names and defaults stand once, in the dataclasses; checking is derived from them.
"""

from __future__ import annotations

import difflib
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from functools import cache
from typing import Any

from fusewatchd.errors import ConfigError
from fusewatchd.expectations import (
    auto_path,
    count,
    globs,
    group,
    listen,
    optional_path,
    path,
    paths,
    per_second,
    positive,
    url,
)
from fusewatchd.printable import printable

Check = Callable[[Any], str]
"""Returns what was expected, empty when the value is fine."""


def _checked(default: Any, check: Check) -> Any:
    return field(default=default, metadata={"check": check})


def _at_start(default: Any, check: Check) -> Any:
    """Describe a key that is read when the daemon starts and never again."""
    return field(default=default, metadata={"check": check, "at_start": True})


class RecoveryMode(Enum):
    """Act, or only say what would be done."""

    RECOVER = "recover"
    REPORT = "report"


class SupersededPolicy(Enum):
    """What to do with a bind whose old server still answers while a new one is mounted."""

    REPORT = "report"
    REBIND = "rebind"


class LogLevel(Enum):
    """The least important message that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(Enum):
    """How log lines are written; ``auto`` looks at where they go."""

    AUTO = "auto"
    TEXT = "text"
    LOGFMT = "logfmt"
    JSON = "json"
    JOURNAL = "journal"


@dataclass(frozen=True, slots=True)
class KubeletSettings:
    """Where the kubelet keeps its directory, and how it is asked for its pods."""

    root: str = _at_start("auto", auto_path)
    url: str = _checked("", url)
    server_name: str = ""
    token_file: str = _checked("", optional_path)
    ca_file: str = _checked("", optional_path)
    client_cert_file: str = _checked("", optional_path)
    client_key_file: str = _checked("", optional_path)
    insecure_skip_tls_verify: bool = False
    refresh_seconds: float = _checked(60.0, positive)
    timeout_seconds: float = _checked(10.0, positive)


@dataclass(frozen=True, slots=True)
class ApiServerSettings:
    """Where Events go."""

    url: str = _checked("", url)
    token_file: str = _checked("", optional_path)
    ca_file: str = _checked("", optional_path)
    client_cert_file: str = _checked("", optional_path)
    client_key_file: str = _checked("", optional_path)
    timeout_seconds: float = _checked(10.0, positive)


@dataclass(frozen=True, slots=True)
class ExcludeSettings:
    """What is left alone: whatever matches one of these names or globs (fnmatch(3))."""

    drivers: tuple[str, ...] = _checked((), globs)
    namespaces: tuple[str, ...] = _checked((), globs)
    volumes: tuple[str, ...] = _checked((), globs)


@dataclass(frozen=True, slots=True)
class RecoverySettings:
    """What may be done, and how often."""

    mode: RecoveryMode = RecoveryMode.RECOVER
    superseded: SupersededPolicy = SupersededPolicy.REPORT
    exclude: ExcludeSettings = field(default_factory=ExcludeSettings)
    containers: bool = True
    exclude_containers: ExcludeSettings = field(default_factory=ExcludeSettings)
    back_off_initial_seconds: float = _checked(0.25, positive)
    back_off_max_seconds: float = _checked(60.0, positive)
    max_table_entries: int = _checked(50_000, count)
    budget_burst: int = _checked(5000, count)
    budget_per_second: float = _checked(200.0, per_second)
    flap_limit: int = _checked(5, count)
    flap_window_seconds: float = _checked(60.0, positive)
    flap_life_seconds: float = _checked(0.001, positive)
    flap_pause_max_seconds: float = _checked(3.0, positive)


@dataclass(frozen=True, slots=True)
class CleanupSettings:
    """What is taken away of pods that are over."""

    detach_orphans: bool = False
    grace_seconds: float = _checked(60.0, positive)


@dataclass(frozen=True, slots=True)
class FluidSettings:
    """Fluid's layout."""

    mount_root: str = _checked("/runtime-mnt", path)


@dataclass(frozen=True, slots=True)
class DriverSettings:
    """Layouts of drivers."""

    fluid: FluidSettings = field(default_factory=FluidSettings)


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """How connections are asked."""

    interval_seconds: float = _checked(10.0, positive)
    deadline_seconds: float = _checked(5.0, positive)
    max_children: int = _at_start(16, count)


@dataclass(frozen=True, slots=True)
class HungSettings:
    """When slow becomes hung."""

    after_seconds: float = _checked(30.0, positive)
    abort: bool = False
    abort_confirmations: int = _checked(3, count)


@dataclass(frozen=True, slots=True)
class WebSettings:
    """The metrics server."""

    listen_address: str = _at_start("127.0.0.1:9847", listen)


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The log."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = field(default=LogFormat.AUTO, metadata={"at_start": True})


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be configured; every key has a default."""

    node_name: str = ""
    kubelet: KubeletSettings = field(default_factory=KubeletSettings)
    apiserver: ApiServerSettings = field(default_factory=ApiServerSettings)
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    cleanup: CleanupSettings = field(default_factory=CleanupSettings)
    drivers: DriverSettings = field(default_factory=DriverSettings)
    ignore_fs_types: tuple[str, ...] = (
        "fuse.lxcfs",
        "fuse.fuse-overlayfs",
        "fuse.portal",
        "fuse.gvfsd-fuse",
        "fuse.rootlesskit",
        "fuse.snapfuse",
        "fuse.xdg-document-portal",
    )
    sockets: tuple[str, ...] = _at_start((), paths)
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    hung: HungSettings = field(default_factory=HungSettings)
    look_seconds: float = _checked(15.0, positive)
    web: WebSettings = field(default_factory=WebSettings)
    state_dir: str = _at_start("/var/lib/fusewatchd", path)
    runtime_dir: str = _at_start("/run/fusewatchd", path)
    status_group: str = _at_start("", group)
    log: LogSettings = field(default_factory=LogSettings)


def settings_from(document: object, file: str) -> Settings:
    """Check a whole document and build the settings from it.

    Raises:
        ConfigError: one line for each problem, naming file, key and what was expected.
    """
    problems: list[str] = []
    settings: Settings = _build(Settings, {} if document is None else document, "", problems)
    if problems:
        raise ConfigError("\n".join(f"{file}: {problem}" for problem in problems))
    return settings


def override(settings: Settings, values: Mapping[str, object]) -> Settings:
    """Replace single keys, named with dots, as command-line flags do.

    Raises:
        ConfigError: as for a file.
    """
    for key, value in values.items():
        problems: list[str] = []
        settings = _with(settings, key.split("."), value, key, problems)
        if problems:
            raise ConfigError(f"command line: {problems[0]}")
    return settings


def require_kubelet(settings: Settings) -> None:
    """Make sure that what is configured can be seen: the file and the flags together.

    Raises:
        ConfigError: namespaces of pods are excluded, and nobody tells of pods.
    """
    recovery = settings.recovery
    for name in ("exclude", "exclude_containers"):
        if getattr(recovery, name).namespaces and not settings.kubelet.url:
            raise ConfigError(f"recovery.{name}.namespaces: needs kubelet.url, found nothing")
    if settings.cleanup.detach_orphans and not settings.kubelet.url:
        raise ConfigError("cleanup.detach_orphans: needs kubelet.url, found nothing")


def read_at_start_only(one: Any, other: Any, prefix: str = "") -> list[str]:
    """Return the keys that differ and that a running daemon does not take over."""
    keys: list[str] = []
    for f in fields(one):
        before, after = getattr(one, f.name), getattr(other, f.name)
        if is_dataclass(before):
            keys += read_at_start_only(before, after, f"{prefix}{f.name}.")
        elif before != after and f.metadata.get("at_start"):
            keys.append(f"{prefix}{f.name}")
    return keys


def _with(part: Any, names: list[str], value: object, key: str, problems: list[str]) -> Any:
    name = names[0]
    known = _hints(part.__class__) if is_dataclass(part) else {}
    is_section = name in known and is_dataclass(known[name])
    if name not in known or is_section == (len(names) == 1):
        problems.append(f"{printable(key)}: no such key")
        return part
    if len(names) > 1:
        inner = _with(getattr(part, name), names[1:], value, key, problems)
        return replace(part, **{name: inner})
    built = _value(_hints(part.__class__)[name], value, key, problems)
    if not problems:
        _verify(part.__class__, name, built, key, problems)
    return part if problems else replace(part, **{name: built})


def _build(cls: Any, document: object, prefix: str, problems: list[str]) -> Any:
    if not isinstance(document, Mapping):
        problems.append(f"{prefix or 'the file'}: expected keys and values, {_found(document)}")
        return cls()
    known = {f.name for f in fields(cls)}
    values: dict[str, Any] = {}
    for name, value in document.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(f"{printable(key)}: no such key{hint}")
            continue
        before = len(problems)
        values[name] = _value(_hints(cls)[name], value, key, problems)
        if len(problems) == before:
            _verify(cls, name, values[name], key, problems)
    return cls() if problems else cls(**values)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _verify(cls: Any, name: str, value: Any, key: str, problems: list[str]) -> None:
    (found,) = (f for f in fields(cls) if f.name == name)
    check = found.metadata.get("check")
    expected = check(value) if check is not None else ""
    if expected:
        problems.append(f"{key}: expected {expected}, {_found(value)}")


def _value(hint: Any, value: object, key: str, problems: list[str]) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return _build(hint, {} if value is None else value, key, problems)
    if isinstance(hint, type) and issubclass(hint, Enum):
        words = [member.value for member in hint]
        if value in words:
            return hint(value)
        problems.append(f"{key}: expected {' or '.join(words)}, {_found(value)}")
        return None
    if typing.get_origin(hint) is tuple:
        if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
            return tuple(value)
        problems.append(f"{key}: expected a list of text, {_found(value)}")
        return ()
    return _scalar(hint, value, key, problems)


def _scalar(hint: Any, value: object, key: str, problems: list[str]) -> Any:
    name = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[hint]
    accepted: type | types.UnionType = int | float if hint is float else hint
    if isinstance(value, accepted) and isinstance(value, bool) == (hint is bool):
        return _real(value) if isinstance(value, int) and hint is float else value
    problems.append(f"{key}: expected {name}, {_found(value)}")
    return None


def _real(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _found(value: object) -> str:
    if value is None:
        return "found nothing"
    try:
        # YAML's aliases can make a short file a value that nobody could print whole.
        text = value if isinstance(value, str) else reprlib.repr(value)
    except ValueError:
        text = "a number of thousands of digits"
    return f"found {printable(text, 60)}"
