"""Configuration as one frozen value; this module reads no file.

Types, names and defaults stand once, in the dataclasses; checking is derived from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from fusewatchd.config.checks import (
    auto_path,
    count,
    count_or_none,
    flexvolume,
    glob,
    globs,
    group,
    label,
    listen,
    optional_path,
    path,
    path_glob,
    per_second,
    positive,
    url,
)
from fusewatchd.config.command_template import problem_of_command, problem_of_unit
from fusewatchd.config.schema import at_start, build, checked, rules, rules_at_start, with_value
from fusewatchd.config.source_template import CSI_FIELDS, fields_of, problem_of
from fusewatchd.errors import ConfigError
from fusewatchd.model.plan import OnDiskPolicy, RecoveryMode, SupersededPolicy


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

    root: str = at_start("auto", auto_path)
    url: str = checked("", url)
    server_name: str = ""
    token_file: str = checked("", optional_path)
    ca_file: str = checked("", optional_path)
    client_cert_file: str = checked("", optional_path)
    client_key_file: str = checked("", optional_path)
    insecure_skip_tls_verify: bool = False
    refresh_seconds: float = checked(60.0, positive)
    timeout_seconds: float = checked(10.0, positive)


@dataclass(frozen=True, slots=True)
class ApiServerSettings:
    """Where Events go; by single keys, or by a kubeconfig."""

    url: str = checked("", url)
    kubeconfig: str = checked("", optional_path)
    token_file: str = checked("", optional_path)
    ca_file: str = checked("", optional_path)
    client_cert_file: str = checked("", optional_path)
    client_key_file: str = checked("", optional_path)
    timeout_seconds: float = checked(10.0, positive)
    volume_events: bool = True
    node_condition: bool = False
    cluster_nodes: int = checked(0, count_or_none)

    @property
    def is_configured(self) -> bool:
        """True when there is somebody to be told."""
        return bool(self.url or self.kubeconfig)


@dataclass(frozen=True, slots=True)
class ExcludeSettings:
    """What is left alone: whatever matches one of these names or globs (fnmatch(3))."""

    drivers: tuple[str, ...] = rules((), globs)
    namespaces: tuple[str, ...] = rules((), globs)
    volumes: tuple[str, ...] = rules((), globs)


@dataclass(frozen=True, slots=True)
class RecoverySettings:
    """What may be done, and how often."""

    mode: RecoveryMode = RecoveryMode.RECOVER
    superseded: SupersededPolicy = SupersededPolicy.REPORT
    on_disk: OnDiskPolicy = OnDiskPolicy.REPORT
    keep_read_only: bool = False
    exclude: ExcludeSettings = field(default_factory=ExcludeSettings)
    containers: bool = True
    exclude_containers: ExcludeSettings = field(default_factory=ExcludeSettings)
    back_off_initial_seconds: float = checked(0.25, positive)
    back_off_max_seconds: float = checked(60.0, positive)
    max_table_entries: int = checked(50_000, count)
    budget_burst: int = checked(5000, count)
    budget_per_second: float = checked(200.0, per_second)
    flap_limit: int = checked(5, count)
    flap_window_seconds: float = checked(60.0, positive)
    flap_life_seconds: float = checked(0.001, positive)
    flap_pause_max_seconds: float = checked(3.0, positive)


@dataclass(frozen=True, slots=True)
class CleanupSettings:
    """What is taken away of pods that are over."""

    detach_orphans: bool = False
    grace_seconds: float = checked(60.0, positive)


@dataclass(frozen=True, slots=True)
class DeadSourceSettings:
    """What is done about source mounts that are dead themselves."""

    detach: bool = False
    grace_seconds: float = checked(10.0, positive)
    confirmations: int = checked(2, count)


@dataclass(frozen=True, slots=True)
class OnStaleSettings:
    """How the server of a driver is started again; one of ``unit`` and ``command``."""

    driver: str = checked("", glob)
    unit: str = checked("", problem_of_unit)
    command: tuple[str, ...] = checked((), problem_of_command)
    timeout_seconds: float = checked(30.0, positive)
    grace_seconds: float = checked(5.0, positive)
    back_off_initial_seconds: float = checked(5.0, positive)
    back_off_max_seconds: float = checked(300.0, positive)

    def problem(self) -> str:
        """Return what is wrong with the keys together."""
        if not self.driver:
            return "it needs the driver that it is about"
        if bool(self.unit) == bool(self.command):
            return "it needs one of unit and command, and not both"
        return ""


@dataclass(frozen=True, slots=True)
class FluidSettings:
    """Fluid's layout."""

    mount_root: str = checked("/runtime-mnt", path)


@dataclass(frozen=True, slots=True)
class JuiceFSSettings:
    """Layout of the JuiceFS CSI driver."""

    mount_root: str = checked("/var/lib/juicefs/volume", path)


@dataclass(frozen=True, slots=True)
class TemplateSettings:
    """A driver that is not built in: which volumes are its, and where their sources are."""

    name: str = checked("", label)
    csi_driver: str = ""
    flexvolume: str = checked("", flexvolume)
    source: str = ""
    in_pod: bool = False

    def problem(self) -> str:
        """Return what is wrong with the keys together."""
        if not self.name:
            return "it needs a name"
        if bool(self.csi_driver) == bool(self.flexvolume):
            return "it needs one of csi_driver and flexvolume, and not both"
        if bool(self.source) == self.in_pod:
            return "it needs a source, or in_pod: true, and not both"
        wrong = problem_of(self.source) if self.source else ""
        if not wrong and self.flexvolume and fields_of(self.source) & CSI_FIELDS:
            wrong = "a FlexVolume has no volume handle"
        return f"source: {wrong}" if wrong else ""


def _templates(value: tuple[TemplateSettings, ...]) -> str:
    names = {template.name for template in value}
    volumes = {(template.csi_driver, template.flexvolume) for template in value}
    is_clear = len(names) == len(volumes) == len(value)
    return "" if is_clear else "one entry for each name and for each driver"


@dataclass(frozen=True, slots=True)
class DriverSettings:
    """Layouts of drivers."""

    fluid: FluidSettings = field(default_factory=FluidSettings)
    juicefs: JuiceFSSettings = field(default_factory=JuiceFSSettings)
    templates: tuple[TemplateSettings, ...] = rules((), _templates)
    on_stale: tuple[OnStaleSettings, ...] = rules(())
    on_stale_burst: int = checked(20, count)
    on_stale_per_second: float = checked(0.1, per_second)


@dataclass(frozen=True, slots=True)
class SocketSettings:
    """Sockets of FUSE servers, and which connections to ask when one hangs up."""

    SHORT_FOR: ClassVar[str] = "glob"

    glob: str = checked("", path)
    source: str = checked("", path_glob)
    """Where their servers mount; empty: not told."""
    driver: str = ""
    """A name or glob of CSI drivers or types of file systems; empty: not told."""

    def problem(self) -> str:
        """Return what is wrong with the keys together; empty: nothing."""
        return "" if self.glob else "glob is missing"


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """How connections are asked."""

    interval_seconds: float = checked(10.0, positive)
    deadline_seconds: float = checked(5.0, positive)
    max_children: int = at_start(16, count)


@dataclass(frozen=True, slots=True)
class HungSettings:
    """When slow becomes hung."""

    after_seconds: float = checked(30.0, positive)
    abort: bool = False
    abort_confirmations: int = checked(3, count)


@dataclass(frozen=True, slots=True)
class HeldSettings:
    """What keeps the connection of a server that ended, for its successor."""

    grace_seconds: float = checked(120.0, positive)


@dataclass(frozen=True, slots=True)
class HoldSettings:
    """Whose callers in pods wait while a server is away."""

    drivers: tuple[str, ...] = checked((), globs)
    grace_seconds: float = checked(10.0, positive)


@dataclass(frozen=True, slots=True)
class KeeperSettings:
    """What the keeper does for connections whose server ended."""

    hold: HoldSettings = field(default_factory=HoldSettings)


@dataclass(frozen=True, slots=True)
class WebSettings:
    """The metrics server."""

    listen_address: str | tuple[str, ...] = at_start("127.0.0.1:9847", listen)
    config_file: str = at_start("", optional_path)
    status_page: bool = field(default=False, metadata={"at_start": True})
    broken_mount_info: bool = field(default=False, metadata={"at_start": True})

    @property
    def addresses(self) -> tuple[str, ...]:
        """All of them; empty: it is off."""
        if isinstance(self.listen_address, str):
            return (self.listen_address,) if self.listen_address else ()
        return self.listen_address


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
    dead_sources: DeadSourceSettings = field(default_factory=DeadSourceSettings)
    drivers: DriverSettings = field(default_factory=DriverSettings)
    ignore_fs_types: tuple[str, ...] = (
        "fuse.fuse-overlayfs",
        "fuse.portal",
        "fuse.gvfsd-fuse",
        "fuse.rootlesskit",
        "fuse.snapfuse",
        "fuse.xdg-document-portal",
    )
    sockets: tuple[SocketSettings, ...] = rules_at_start(())
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    hung: HungSettings = field(default_factory=HungSettings)
    held: HeldSettings = field(default_factory=HeldSettings)
    keeper: KeeperSettings = field(default_factory=KeeperSettings)
    look_seconds: float = checked(15.0, positive)
    web: WebSettings = field(default_factory=WebSettings)
    state_dir: str = at_start("/var/lib/fusewatchd", path)
    runtime_dir: str = at_start("/run/fusewatchd", path)
    status_group: str = at_start("", group)
    log: LogSettings = field(default_factory=LogSettings)


def settings_from(document: object, file: str) -> Settings:
    """Check a whole document and build the settings from it.

    Raises:
        ConfigError: one line for each problem, naming file, key and what was expected.
    """
    problems: list[str] = []
    settings: Settings = build(Settings, {} if document is None else document, "", problems)
    if problems:
        raise ConfigError("\n".join(f"{file}: {problem}" for problem in problems))
    return settings


def override(settings: Settings, values: Mapping[str, object]) -> Settings:
    """Replace single keys, named with dots, as command-line flags do.

    Raises:
        ConfigError: as for a file.
    """
    found: list[str] = []
    for key, value in values.items():
        problems: list[str] = []
        settings = with_value(settings, key.split("."), value, key, problems)
        found += problems
    if found:
        raise ConfigError("\n".join(f"command line: {problem}" for problem in found))
    return settings


def disagreements(settings: Settings) -> list[str]:
    """Return where keys do not fit each other, a line for each that begins with a key.

    Something needs the kubelet, and nothing names it; the API server is described twice.
    """
    found: list[str] = []
    apiserver = settings.apiserver
    beside = ("url", "token_file", "ca_file", "client_cert_file", "client_key_file")
    for name in beside if apiserver.kubeconfig else ():
        if getattr(apiserver, name):
            found.append(f"apiserver.{name}: expected nothing beside apiserver.kubeconfig")
    if settings.kubelet.url:
        return found
    recovery = settings.recovery
    for name in ("exclude", "exclude_containers"):
        if getattr(recovery, name).namespaces:
            found.append(f"recovery.{name}.namespaces: needs kubelet.url, found nothing")
    for number, template in enumerate(settings.drivers.templates):
        if "namespace" in fields_of(template.source):
            key = f"drivers.templates[{number}].source"
            found.append(f"{key}: {{namespace}} needs kubelet.url, found nothing")
    if settings.cleanup.detach_orphans:
        found.append("cleanup.detach_orphans: needs kubelet.url, found nothing")
    return found
