"""The laws of the layers, read from the source."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import fusewatchd

ROOT = Path(fusewatchd.__file__).parent

BASE = {
    "model", "verdicts", "liveness", "actions", "decision", "questions", "snapshot", "errors", "printable", "wire", "bucket", "delays",
    "overlay", "remedies", "unitname", "__init__",
}  # fmt: skip
PARSERS = {
    "mountinfo", "stacks", "cgroups", "kubeletdir", "podlist", "settings", "schema", "expectations",
    "sourcetemplate", "webconfig", "commandtemplate",
}  # fmt: skip
CORE = {
    "looks", "namespaceview", "containerowners", "wakeups", "lifecycle", "lineage", "sources", "containers", "children", "connections", "connectionstate", "connectionview", "proof", "incidents",
    "cycle", "ledger", "memory", "services", "history", "aborting", "persistence", "switches", "cleanup",
    "pods", "diagnosis", "planner", "drivers", "detectors", "ends", "holding", "belongings",
    "budget", "breaker", "ownlayers", "propagation", "hostpaths", "checkup",
    "deadsources", "standstill", "rights", "probeuser", "onstale", "remedying",
    "workqueue", "reach",
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
    "statusservers",
    "servertable",
    "surroundings",
    "documents",
    "advice",
    "explanation",
    "targets",
    "statussocket",
    "statefile",
    "serving",
    "rundir",
    "programs",
    "remedystatus",
}
SHELL = {
    "observer", "servers", "holderwatch", "executor", "commandrunner", "reconciler", "policies", "node", "cluster",
    "statekeeper", "descriptors", "effort", "absence", "signals", "doors", "doctor", "daemon", "cli", "__main__",
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


@cache
def imports_of(path: Path) -> frozenset[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def own_imports(path: Path) -> set[str]:
    prefix = "fusewatchd."
    return {i[len(prefix) :].split(".")[0] for i in imports_of(path) if i.startswith(prefix)}


def test_every_module_has_a_layer() -> None:
    known = BASE | PARSERS | CORE | EDGE | SHELL | DEMO
    without = [name_of(path) for path in MODULES if layer_name(path) not in known]
    assert not without, f"say in {Path(__file__).name} which layer they are in"


def test_pure_modules_are_pure() -> None:
    impure = {}
    for path in MODULES:
        if layer_name(path) in BASE | PARSERS | CORE:
            tops = {name.split(".")[0] for name in imports_of(path)}
            impure[name_of(path)] = tops & (IMPURE | set(ONLY_IMPORTER))
    assert not {name: found for name, found in impure.items() if found}


def test_layers_look_down_only() -> None:
    forbidden = {
        **dict.fromkeys(BASE, PARSERS - {"mountinfo"} | CORE | EDGE | SHELL | DEMO),
        **dict.fromkeys(PARSERS, CORE | EDGE | SHELL | DEMO),
        **dict.fromkeys(CORE, EDGE | SHELL | DEMO),
        **dict.fromkeys(EDGE, (CORE - {"connections", "cycle", "ledger"}) | SHELL | DEMO),
        **dict.fromkeys(SHELL - {"cli"}, DEMO),
        "cli": set(),
        "demo": (BASE - {"errors"}) | PARSERS | CORE | (EDGE - {"linux", "statussocket"}) | SHELL,
    }
    upwards = {
        name_of(path): found
        for path in MODULES
        if (found := own_imports(path) & forbidden[layer_name(path)])
    }
    assert not upwards


def test_each_library_has_one_importer() -> None:
    importers = {
        (name, name_of(path))
        for path in MODULES
        for imported in imports_of(path)
        if (name := imported.split(".")[0]) in ONLY_IMPORTER
    }
    assert importers <= set(ONLY_IMPORTER.items())
