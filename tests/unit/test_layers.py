"""The laws of the layers, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fusewatchd

ROOT = Path(fusewatchd.__file__).parent

BASE = {
    "model", "decision", "snapshot", "errors", "printable", "wire", "bucket", "delays", "overlay", "__init__",
}  # fmt: skip
PARSERS = {
    "mountinfo", "kubeletdir", "podlist", "settings", "schema", "expectations", "sourcetemplate",
    "webconfig",
}  # fmt: skip
CORE = {
    "lifecycle", "lineage", "sources", "containers", "children", "connections", "incidents",
    "ledger", "memory", "history", "aborting", "persistence", "switches", "cleanup", "pods", "diagnosis", "planner",
    "drivers", "detectors", "budget", "breaker", "ownlayers", "hostpaths", "checkup",
}  # fmt: skip
EDGE = {
    "linux",
    "kube",
    "reporters",
    "configfile",
    "web",
    "websecurity",
    "statuspage",
    "listening",
    "passwords",
    "status",
    "statustable",
    "surroundings",
    "documents",
    "advice",
    "explanation",
    "targets",
    "statussocket",
    "statefile",
    "serving",
    "rundir",
}
SHELL = {
    "observer", "executor", "reconciler", "node", "cluster", "statekeeper", "doors", "doctor", "daemon", "cli", "__main__",
}  # fmt: skip
DEMO = {"demo"}

IMPURE = {
    "os", "ctypes", "select", "socket", "subprocess", "threading", "time", "random", "logging",
}  # fmt: skip
ONLY_IMPORTER = {
    "yaml": "configfile",
    "pyinotify": "linux/inotify",
    "sdnotify": "reporters/systemd",
    "prometheus_client": "reporters/exposition",
    "requests": "kube/http",
    "urllib3": "kube/http",
}
MODULES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


def layer_name(path: Path) -> str:
    return name_of(path).split("/")[0]


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(path: Path) -> set[str]:
    prefix = "fusewatchd."
    return {i[len(prefix) :].split(".")[0] for i in imports_of(path) if i.startswith(prefix)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_has_a_layer(path: Path) -> None:
    known = BASE | PARSERS | CORE | EDGE | SHELL | DEMO
    assert layer_name(path) in known, f"say in {Path(__file__).name} which layer it is in"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_pure_modules_are_pure(path: Path) -> None:
    if layer_name(path) in BASE | PARSERS | CORE:
        tops = {name.split(".")[0] for name in imports_of(path)}
        assert not tops & (IMPURE | set(ONLY_IMPORTER))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_layers_look_down_only(path: Path) -> None:
    layer, used = layer_name(path), own_imports(path)
    forbidden = {
        **dict.fromkeys(BASE, PARSERS - {"mountinfo"} | CORE | EDGE | SHELL | DEMO),
        **dict.fromkeys(PARSERS, CORE | EDGE | SHELL | DEMO),
        **dict.fromkeys(CORE, EDGE | SHELL | DEMO),
        **dict.fromkeys(EDGE, (CORE - {"connections", "ledger"}) | SHELL | DEMO),
        **dict.fromkeys(SHELL - {"cli"}, DEMO),
        "cli": set(),
        "demo": (BASE - {"errors"}) | PARSERS | CORE | (EDGE - {"linux"}) | SHELL,
    }[layer]
    assert not used & forbidden


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_each_library_has_one_importer(path: Path) -> None:
    for name in imports_of(path):
        importer = ONLY_IMPORTER.get(name.split(".")[0])
        assert importer in (None, name_of(path))
