"""What packages are made of: manual pages, completions, versions, the unit."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from fusewatchd import __version__
from fusewatchd.cli import EXIT_CONFIG, make_parser
from fusewatchd.config.settings import Settings
from fusewatchd.keeper.keeper import MAX_HELD
from fusewatchd.keeper.protocol import MAX_SERVERS, socket_path

TOP = Path(__file__).resolve().parents[2]
UNIT = (TOP / "systemd/fusewatchd.service").read_text()
KEEPER_UNIT = (TOP / "systemd/fusewatchd-keeper.service").read_text()


def load(name: str) -> ModuleType:
    """Import a module of ``packaging/``, which is no package."""
    sys.path.insert(0, str(TOP / "packaging"))
    try:
        spec = importlib.util.spec_from_file_location(name, TOP / f"packaging/{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # where dataclasses look for the module of a class
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(TOP / "packaging"))
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("pages")
    subprocess.run([sys.executable, TOP / "packaging/generate.py", directory], check=True)
    return {path.name: path.read_text() for path in directory.iterdir()}


def keys_of(settings: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for f in fields(settings):
        value = getattr(settings, f.name)
        key = f"{prefix}{f.name}"
        found |= keys_of(value, f"{key}.") if is_dataclass(value) else {key: value}
    return found


def test_every_key_is_in_the_manual_with_its_default(pages: dict[str, str]) -> None:
    page = pages["fusewatchd.yaml.5"]
    told = {
        key: yaml.safe_load(value.replace("\\-", "-"))
        for key, value in re.findall(r"^\\fB([\w.]+)\\fR \((.*)\)$", page, re.MULTILINE)
    }
    keys = {
        key: value.value
        if isinstance(value, Enum)
        else list(value)
        if isinstance(value, tuple)
        else value
        for key, value in keys_of(Settings()).items()
    }
    assert told == keys


def test_every_command_and_option_is_in_the_manual_and_completed(pages: dict[str, str]) -> None:
    commands = load("generate").commands_of(make_parser())
    assert {"run", "check", "status", "config-check", "demo"} <= {c.name for c in commands}
    page = pages["fusewatchd.8"].replace("\\-", "-")
    for command in commands:
        (usage,) = re.findall(rf"^\\fB{command.name}\\fR(.*)$", page, re.MULTILINE)
        (bash,) = re.findall(
            rf"^ +{command.name}\) words='(.*)'", pages["fusewatchd"], re.MULTILINE
        )
        (zsh,) = re.findall(
            rf"^ +{command.name}\) _arguments (.*) ;;", pages["_fusewatchd"], re.MULTILINE
        )
        for option in command.options:
            assert option.flag in usage
            assert (option.flag in bash.split()) == option.flag.startswith("-")
            assert option.flag in zsh or f":{option.flag.lower()}:" in zsh
    assert "--way" not in page  # it is hidden


@pytest.mark.parametrize(
    ("version", "package_version"),
    [
        ("0.1.0", "0.1.0"),
        ("1.2.0rc1", "1.2.0~rc1"),
        ("1.2.0a3", "1.2.0~a3"),
        ("1.2.0.dev4", "1.2.0~dev4"),
    ],
)
def test_what_comes_before_a_release_is_older_for_dpkg_and_rpm(
    version: str, package_version: str
) -> None:
    assert load("build").Release(version, 0, ()).package_version == package_version


def test_changelogs_of_packages_are_the_newest_section() -> None:
    build = load("build")
    changes = build.newest_changes(
        "# Changelog\n\n## 1.1\n\n* `One`\n  thing.\n* Another.\n\n## 1.0\n\n* Old.\n"
    )
    assert changes == ("One thing.", "Another.")
    release = build.Release("1.1", 0, changes)
    assert build.debian_changelog(release).startswith(
        "fusewatchd (1.1) unstable; urgency=medium\n\n  * One thing.\n"
    )
    assert "* Thu Jan 01 1970 " in build.rpm_changelog(release)
    assert build.release_of(TOP).version == __version__


def test_the_bill_of_materials_lists_what_the_rpm_brings_along() -> None:
    document = json.loads(load("sbom").bill_of_materials(TOP, "1.0", 0))
    assert document["bomFormat"] == "CycloneDX"
    names = {component["name"] for component in document["components"]}
    assert {"requests", "pyyaml", "prometheus-client", "sdnotify", "pyinotify", "urllib3"} <= names
    assert all(component["hashes"] for component in document["components"])


def directives(unit: str = UNIT) -> list[tuple[str, str]]:
    lines = [line for line in unit.splitlines() if line and line[0] not in "#["]
    return [(name, value) for name, _, value in (line.partition("=") for line in lines)]


@pytest.mark.parametrize("unit", [UNIT, KEEPER_UNIT], ids=["daemon", "keeper"])
def test_the_unit_has_nothing_that_gives_it_a_mount_namespace(unit: str) -> None:
    """Each of these was seen to, by systemd 252 or 257."""
    private = re.compile(
        r"Protect(System|Home|Proc|KernelTunables|KernelModules|KernelLogs|ControlGroups)"
        r"|Private\w+|ProcSubset|DynamicUser|\w+Paths|TemporaryFileSystem|LogNamespace|Root\w+"
        r"|MountAPIVFS|MountImages|ExtensionImages"
    )
    assert [name for name, _ in directives(unit) if private.fullmatch(name)] == []
    # And this takes openat2(2) away.
    assert "RestrictSUIDSGID" not in dict(directives())


def test_the_keeper_can_do_what_it_has_to_and_no_more() -> None:
    of = dict(directives(KEEPER_UNIT))
    assert (of["CapabilityBoundingSet"], of["DeviceAllow"]) == ("", "/dev/fuse rw")
    assert int(of["FileDescriptorStoreMax"]) >= 2 * MAX_HELD
    assert int(of["LimitNOFILE"]) >= (MAX_SERVERS + 4) * MAX_HELD
    # What is stored must be read: it goes where nobody is started again to do that.
    assert "FileDescriptorStorePreserve" not in of
    # It can be killed while it is stopped.
    assert of["WatchdogSignal"] == "SIGKILL"


def test_systemd_listens_where_the_daemon_looks_for_the_keeper() -> None:
    of = dict(directives((TOP / "systemd/fusewatchd-keeper.socket").read_text()))
    assert of["ListenSequentialPacket"] == socket_path(Settings().runtime_dir)
    assert of["SocketMode"] == "0600"


def test_every_capability_of_the_unit_is_accounted_for() -> None:
    granted = [
        w for name, value in directives() if name == "CapabilityBoundingSet" for w in value.split()
    ]
    assert len(granted) == 8
    for capability in granted:
        assert re.search(rf"^# ([A-Z_]+, )*{capability.removeprefix('CAP_')}\b", UNIT, re.MULTILINE)


def test_the_unit_needs_neither_kubelet_nor_runtime() -> None:
    names = {name for name, _ in directives()}
    assert not names & {"Requires", "Wants", "BindsTo", "PartOf", "Requisite", "Upholds"}
    # Ordering after a unit waits for its start job as well, and that may hang.
    after = " ".join(value for name, value in directives() if name == "After").split()
    assert after == ["local-fs.target"]


def test_what_cannot_pass_is_not_tried_again() -> None:
    of = dict(directives())
    assert of["RestartPreventExitStatus"] == str(EXIT_CONFIG)
    assert of["Restart"] == "always"


def test_a_worker_that_is_killed_for_memory_does_not_stop_the_unit() -> None:
    assert dict(directives())["OOMPolicy"] == "continue"
