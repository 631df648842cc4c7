"""The laws of the folders, read from the source: which may import which, and what is pure."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

import fusewatchd

ROOT = Path(fusewatchd.__file__).parent

TOP = {
    "__init__",
    "__main__",
    "cli",
    "errors",
    "json_values",
    "log",
    "log_message",
    "rate_limit",
    "text",
    "threads",
}
VALUES = {"errors", "json_values", "log_message", "rate_limit", "text", "__init__"}
"""Beside the folders; every folder but ``demo`` may import them."""

MAY_IMPORT: Mapping[str, frozenset[str]] = {
    folder: frozenset(names.split())
    for folder, names in {
        "model": "",
        "parse": "model",
        "config": "model parse",
        "drivers": "model parse config",
        "linux": "model",
        "workers": "model linux",
        "diagnose": "model parse config drivers",
        "plan": "model parse config diagnose",
        "observe": "model parse config linux workers",
        "act": "model parse config linux workers keeper",
        "reconcile": "model parse config diagnose plan",
        "report": "log model",
        "status": "model",
        "state": "log threads model parse diagnose",
        "kube": "log threads model parse config report state",
        "serve": "log threads model config report status state",
        "keeper": "parse linux",
        "front": "threads model parse config report kube serve workers",
        "daemon": "log threads model parse config drivers linux workers diagnose plan observe act reconcile"
        " report status state kube serve front keeper",
        "doctor": "model parse config linux diagnose plan observe status kube serve daemon",
        "command": "log threads model parse config linux act state status kube serve doctor daemon",
        "demo": "errors linux serve.status_socket",
    }.items()
}
"""What each folder may import beside itself and the values."""

PURE = (
    "errors", "json_values", "rate_limit", "text",
    "model/*", "parse/*", "linux/syscall_numbers", "drivers/*", "diagnose/*", "plan/*", "reconcile/*", "config/*",
    "observe/connections/tracker", "observe/connections/state", "observe/connections/questions",
    "observe/connections/places", "observe/connections/question_lines",
    "observe/namespaces/view", "observe/namespaces/schedule", "observe/namespaces/rooms",
    "observe/namespaces/mount_lines", "observe/holders/targets",
    "observe/servers/exit_record", "observe/servers/socket_owners", "observe/kubelet/pod_cache",
    "observe/connections/view", "observe/namespaces/container_owners", "act/work_queue", "act/keeper_steps",
    "doctor/*_checks", "doctor/findings", "state/document", "daemon/wake_ups", "status/values",
    "keeper/protocol", "keeper/access", "keeper/signals", "keeper/fuse_requests", "keeper/sorting",
)  # fmt: skip
IMPURE_ALL_THE_SAME = {"config/file", "config/credential_files"}
IMPURE = {
    "os", "ctypes", "select", "socket", "subprocess", "threading", "time", "random", "logging",
}  # fmt: skip

ONLY_IMPORTER = {
    "yaml": "config/file",
    "pyinotify": "linux/inotify",
    "sdnotify": "report/systemd",
    "prometheus_client": "report/metrics/exposition",
    "requests": "kube/http",
    "urllib3": "kube/http",
}

CHANGING_KERNEL = "linux/running_kernel"
WRITES = {"mount", "umount2", "move_mount", "mount_setattr", "pivot_root", "open_abort"}
"""Functions of ``linux.syscalls`` and ``linux.fusectl`` that change the node."""
MAY_WRITE = {"act", "linux", "demo"}


class Package:
    """The files of a package by name, as ``observe/connections/probe``, and what they import."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = texts
        self.imports = {name: imports_of(text) for name, text in texts.items()}
        """All of a file, also inside functions, as dotted names."""
        self.own = {name: self._own(name) for name in texts}
        """The files of the package that a file imports."""

    def with_file(self, name: str, text: str) -> Package:
        return Package({**self.texts, name: text})

    def _own(self, name: str) -> frozenset[str]:
        found: set[str] = set()
        for imported in self.imports[name]:
            parts = imported.split(".")
            for end in range(len(parts), 0, -1) if parts[0] == "fusewatchd" else ():
                path = "/".join(parts[1:end])
                files = {path, f"{path}/__init__".lstrip("/")} & self.texts.keys()
                if files:
                    found |= files
                    break
        return frozenset(found - {name})


@cache
def imports_of(text: str) -> frozenset[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


@cache
def writes_in(text: str) -> frozenset[str]:
    """Return which functions that change the node a file names."""
    if not any(name in text for name in WRITES):
        return frozenset()
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found |= {node.attr} if node.value.id in ("syscalls", "fusectl") else set()
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "fusewatchd.linux."
        ):
            found |= {alias.name for alias in node.names}
    return frozenset(found & WRITES)


@cache
def package() -> Package:
    return Package(
        {
            path.relative_to(ROOT).with_suffix("").as_posix(): path.read_text()
            for path in sorted(ROOT.rglob("*.py"))
        }
    )


def folder_of(name: str) -> str:
    return name.split("/")[0]


def may_import(folder: str, imported: str) -> bool:
    """Return True when a file of a folder may import another one."""
    other = folder_of(imported)
    if folder in ("cli", "__main__", other):
        return True
    if folder == "demo":
        return bool({other, imported.replace("/", ".")} & MAY_IMPORT["demo"])
    return other in VALUES or other in MAY_IMPORT.get(folder, ())


def is_pure(name: str) -> bool:
    is_named = any(fnmatchcase(name, pattern) for pattern in PURE)
    return is_named and name not in IMPURE_ALL_THE_SAME


# ------------------------------------------------------------------------------ laws


def every_file_is_in_a_room(package: Package) -> Iterator[str]:
    for name in package.texts:
        if "/" not in name and name not in TOP:
            yield f"{name}.py belongs in the folder of its stage: one of {', '.join(MAY_IMPORT)}"
        elif "/" in name and folder_of(name) not in MAY_IMPORT:
            yield f"{name}.py: say in MAY_IMPORT what {folder_of(name)} may import"


def every_folder_says_what_it_is_for(package: Package) -> Iterator[str]:
    for folder in sorted({name.rpartition("/")[0] for name in package.texts} - {""}):
        init = f"{folder}/__init__"
        if not ast.get_docstring(ast.parse(package.texts.get(init, ""))):
            yield f"{init}.py says in one to three lines what the folder is for"


def folders_look_down_only(package: Package) -> Iterator[str]:
    for name, own in package.own.items():
        folder = folder_of(name)
        wrong = sorted(imported for imported in own if not may_import(folder, imported))
        if not wrong:
            continue
        fit = [
            other
            for other in MAY_IMPORT
            if other not in ("demo", folder) and all(may_import(other, i) for i in own)
        ]
        place = f"it belongs in one of {', '.join(fit)}" if fit else "it is to be split"
        yield f"{name}.py imports {', '.join(wrong)}, which {folder} may not: {place}"


def there_is_no_circle(package: Package) -> Iterator[str]:
    folders: dict[str, set[str]] = {}
    for name, own in package.own.items():
        folder = folder_of(name)
        folders.setdefault(folder, set()).update(map(folder_of, own))
        folders[folder].discard(folder)
    for arrows in (folders, package.own):
        circle = circle_in(arrows)
        if circle:
            yield f"a circle: {' -> '.join(circle)}"


def pure_files_are_pure(package: Package) -> Iterator[str]:
    for name in filter(is_pure, package.texts):
        tops = {imported.split(".")[0] for imported in package.imports[name]}
        wrong = sorted(tops & (IMPURE | set(ONLY_IMPORTER)))
        wrong += sorted(i for i in package.own[name] if not is_pure(i) and i != "__init__")
        if wrong:
            yield (
                f"{name}.py imports {', '.join(wrong)} and is said to be pure:"
                " what needs it belongs in observe, act or another edge"
            )


def each_library_has_one_importer(package: Package) -> Iterator[str]:
    for name, imports in package.imports.items():
        for library in {imported.split(".")[0] for imported in imports} & set(ONLY_IMPORTER):
            if ONLY_IMPORTER[library] != name:
                yield f"{name}.py imports {library}: that belongs in {ONLY_IMPORTER[library]}.py"


def only_act_changes_the_node(package: Package) -> Iterator[str]:
    for name, text in package.texts.items():
        folder = folder_of(name)
        if CHANGING_KERNEL in package.own[name] and folder != "act":
            yield f"{name}.py imports {CHANGING_KERNEL}: that belongs in act"
        calls = writes_in(text) if folder not in MAY_WRITE else ()
        if calls:
            yield f"{name}.py calls {', '.join(sorted(calls))}: that belongs in act"


def only_the_command_line_imports_the_demo(package: Package) -> Iterator[str]:
    for name, own in package.own.items():
        found = any(folder_of(imported) == "demo" for imported in own)
        if found and folder_of(name) not in ("demo", "cli"):
            yield f"{name}.py imports the demo, and only cli.py may, inside its command"
    for node in ast.parse(package.texts["cli"]).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fusewatchd.demo"):
            yield "cli.py imports the demo at its top: only the command may, where it needs it"


def circle_in(arrows: Mapping[str, frozenset[str] | set[str]]) -> list[str]:
    """Return names of which each leads to the next, the last one to the first; else none."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        found = (walk(other, [*way, name]) for other in sorted(arrows.get(name, ())))
        circle = next(filter(None, found), [])
        done.add(name)
        return circle

    return next(filter(None, (walk(name, []) for name in arrows)), [])


LAWS: list[Callable[[Package], Iterator[str]]] = [
    every_file_is_in_a_room,
    every_folder_says_what_it_is_for,
    folders_look_down_only,
    there_is_no_circle,
    pure_files_are_pure,
    each_library_has_one_importer,
    only_act_changes_the_node,
    only_the_command_line_imports_the_demo,
]


@pytest.mark.parametrize("law", LAWS)
def test_laws(law: Callable[[Package], Iterator[str]]) -> None:
    assert not list(law(package()))


@pytest.mark.parametrize(
    ("name", "text", "law", "sentence"),
    [
        (
            "new", "import fusewatchd.errors", every_file_is_in_a_room,
            "new.py belongs in the folder of its stage",
        ),
        (
            "stuff/new", "", every_file_is_in_a_room,
            "say in MAY_IMPORT what stuff may import",
        ),
        (
            "plan/deeper/new", "", every_folder_says_what_it_is_for,
            "plan/deeper/__init__.py says",
        ),
        (
            "plan/new", "from fusewatchd.linux import procfs", folders_look_down_only,
            "plan/new.py imports linux/procfs, which plan may not: it belongs in one of linux,",
        ),
        (
            "observe/new", "def f(): from fusewatchd.act.executor import Executor",
            folders_look_down_only, "which observe may not: it belongs in one of act, daemon",
        ),
        (
            "demo/new", "import fusewatchd.plan.budget", folders_look_down_only,
            "which demo may not: it belongs in one of plan, reconcile",
        ),
        (
            "text", "import fusewatchd.status.table", there_is_no_circle,
            "a circle: ",
        ),
        (
            "plan/new", "import time", pure_files_are_pure,
            "plan/new.py imports time and is said to be pure: what needs it belongs in observe",
        ),
        (
            "config/new", "from fusewatchd.config.file import parse_document", pure_files_are_pure,
            "config/new.py imports config/file and is said to be pure",
        ),
        (
            "act/new", "import yaml", each_library_has_one_importer,
            "act/new.py imports yaml: that belongs in config/file.py",
        ),
        (
            "observe/new", "from fusewatchd.linux.running_kernel import RealKernel",
            only_act_changes_the_node, "observe/new.py imports linux/running_kernel: that belongs in act",
        ),
        (
            "observe/new", "syscalls.umount2('/a')", only_act_changes_the_node,
            "observe/new.py calls umount2: that belongs in act",
        ),
        (
            "daemon/new", "import fusewatchd.demo.show", only_the_command_line_imports_the_demo,
            "daemon/new.py imports the demo",
        ),
    ],
)  # fmt: skip
def test_a_file_in_the_wrong_room_is_told_where_it_belongs(
    name: str, text: str, law: Callable[[Package], Iterator[str]], sentence: str
) -> None:
    (found, *_) = law(package().with_file(name, text))
    assert sentence in found


def test_a_circle_is_found_and_nothing_else() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert not circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()})
