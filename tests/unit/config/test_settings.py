from __future__ import annotations

import os
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusewatchd.config.file import load, parse_value
from fusewatchd.config.schema import read_at_start_only
from fusewatchd.config.settings import (
    LogLevel,
    Settings,
    SocketSettings,
    disagreements,
    override,
    settings_from,
)
from fusewatchd.errors import ConfigError
from fusewatchd.model.plan import RecoveryMode

SHIPPED = Path(__file__).parents[3] / "conf" / "fusewatchd.yaml"


def test_the_shipped_file_says_the_defaults() -> None:
    assert load(str(SHIPPED)).require() == Settings()


def test_an_entry_is_a_text_or_says_more() -> None:
    document = {
        "sockets": ["/a/*", {"glob": "/b", "source": "/mnt/*"}, {"glob": "/c", "driver": "d"}]
    }
    assert settings_from(document, "f").sockets == (
        SocketSettings("/a/*"),
        SocketSettings("/b", source="/mnt/*"),
        SocketSettings("/c", driver="d"),
    )


def test_the_shipped_file_names_every_key() -> None:
    text = SHIPPED.read_text()
    document: dict[str, Any] = {}

    def names(part: Any) -> list[str]:
        return [
            name for f in part.__dataclass_fields__ for name in (f, *(
                names(getattr(part, f)) if hasattr(getattr(part, f), "__dataclass_fields__") else []
            ))
        ]  # fmt: skip

    assert not document
    assert [name for name in names(Settings()) if f"{name}:" not in text] == []


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ({"recovry": {}}, "f: recovry: no such key; did you mean recovery?"),
        (
            {"recovery": {"mode": "never"}},
            "f: recovery.mode: expected recover or report, found never",
        ),
        (
            {"hung": {"abort_confirmations": 0}},
            "f: hung.abort_confirmations: expected a whole number from 1 to 1000000, found 0",
        ),
        (
            {"probe": {"max_children": True}},
            "f: probe.max_children: expected a whole number, found True",
        ),
        (
            {"probe": {"interval_seconds": "1"}},
            "f: probe.interval_seconds: expected a number, found 1",
        ),
        (
            {"hung": {"after_seconds": -1}},
            "f: hung.after_seconds: expected a number of seconds above 0, found -1.0",
        ),
        ({"sockets": ["x"]}, "f: sockets[0].glob: expected an absolute path, found x"),
        ({"sockets": "x"}, "f: sockets: expected a list of at most 1000 entries, found x"),
        ({"sockets": [7]}, "f: sockets[0]: expected keys and values, found 7"),
        (
            {"sockets": ["/a", {"source": "/b"}]},
            "f: sockets[1]: glob is missing",
        ),
        (
            {"sockets": [{"glob": "/a", "source": "b"}]},
            "f: sockets[0].source: expected an absolute path or a glob of such, found b",
        ),
        (
            {"sockets": [{"glob": "/a", "sources": "/b"}]},
            "f: sockets[0].sources: no such key; did you mean source?",
        ),
        (
            {"web": {"listen_address": "a:70000"}},
            "f: web.listen_address: expected host:port with a port from 1 to 65535, or a list of such, or nothing, found a:70000",
        ),
        (
            {"recovery": {"exclude": {"drivers": ["a", ""]}}},
            "f: recovery.exclude.drivers: expected a list of names or globs, none of them empty, found ('a', '')",
        ),
        (
            {"drivers": {"on_stale": {}}},
            "f: drivers.on_stale: expected a list of at most 1000 entries, found {}",
        ),
        (
            {"drivers": {"on_stale": [{"unit": "a@{volume}.service"}]}},
            "f: drivers.on_stale[0]: it needs the driver that it is about",
        ),
        (
            {"drivers": {"on_stale": [{"driver": "a"}]}},
            "f: drivers.on_stale[0]: it needs one of unit and command, and not both",
        ),
        (
            {"drivers": {"on_stale": [{"driver": "a", "unit": "a.service", "command": ["/b"]}]}},
            "f: drivers.on_stale[0]: it needs one of unit and command, and not both",
        ),
        (
            {"drivers": {"on_stale": [{"driver": "a", "command": ["b"]}]}},
            "f: drivers.on_stale[0].command: expected a list that begins with the absolute path of a program, found ('b',)",
        ),
        (
            {"drivers": {"on_stale": [{"driver": "a", "command": "/b"}]}},
            "f: drivers.on_stale[0].command: expected a list of text, found /b",
        ),
        (
            {"drivers": {"on_stale": [{"driver": "a", "command": ["/b", "{pod}"]}]}},
            "f: drivers.on_stale[0].command: expected no other fields than {target}, {source}, {volume}, {handle}, {driver}, {pod_uid}, found ('/b', '{pod}')",
        ),
        (
            {"drivers": {"on_stale": [{"driver": "a", "unit": "x {volume}"}]}},
            "f: drivers.on_stale[0].unit: expected the whole name of a unit, as name@{volume}.service, found x {volume}",
        ),
        (
            {"drivers": {"on_stale": [{"driver": "a", "unit": "a.service", "timeout": 1}]}},
            "f: drivers.on_stale[0].timeout: no such key; did you mean timeout_seconds?",
        ),
        ([], "f: the file: expected keys and values, found []"),
        (
            {"log": {"level": "\x1b[31m"}},
            "f: log.level: expected debug or info or warning or error, found \\x1b[31m",
        ),
    ],
)
def test_a_bad_document_gives_one_line(document: object, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings_from(document, "f")
    assert str(error.value) == line


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        settings_from({"a": 1, "log": {"level": "x"}}, "f")
    assert len(str(error.value).splitlines()) == 2


def test_whole_numbers_are_numbers() -> None:
    assert settings_from({"look_seconds": 5}, "f").look_seconds == 5.0


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, []),
        ({"recovery.mode": "report", "log.level": "debug", "kubelet.url": "http://a:1"}, []),
        ({"recovery.exclude.drivers": ["a"], "cleanup.grace_seconds": 1}, []),
        ({"kubelet.root": "/a", "log.format": "json"}, ["kubelet.root", "log.format"]),
        (
            {"web.listen_address": "", "state_dir": "/a", "runtime_dir": "/a", "sockets": ["/a"]},
            ["sockets", "web.listen_address", "state_dir", "runtime_dir"],
        ),
    ],
)
def test_what_a_running_daemon_does_not_take_over(
    keys: dict[str, object], expected: list[str]
) -> None:
    assert read_at_start_only(Settings(), override(Settings(), keys)) == expected


def test_the_shipped_file_marks_what_is_read_at_the_start_only() -> None:
    def keys(part: Any) -> list[str]:
        return [
            name for f in fields(part) for name in (
                keys(getattr(part, f.name)) if is_dataclass(getattr(part, f.name))
                else [f.name] if f.metadata.get("at_start") else []
            )
        ]  # fmt: skip

    marked = re.findall(r"# \(restart\) (?:.*\n)(?: *#.*\n)*? *(\w+):", SHIPPED.read_text())
    assert marked == keys(Settings())


@pytest.mark.parametrize(
    "document",
    [
        {"recovery": {"exclude": {"namespaces": ["a"]}}},
        {"recovery": {"exclude_containers": {"namespaces": ["a"]}}},
        {"cleanup": {"detach_orphans": True}},
        {"drivers": {"templates": [{"name": "a", "csi_driver": "a", "source": "/{namespace}"}]}},
    ],
)
def test_what_cannot_be_seen_without_a_kubelet_is_a_mistake(document: dict[str, Any]) -> None:
    (line,) = disagreements(settings_from(document, "f"))
    assert re.fullmatch(r"[a-z_.0-9\[\]]+: (\{namespace\} )?needs kubelet.url, found nothing", line)
    assert disagreements(settings_from({**document, "kubelet": {"url": "http://a:1"}}, "f")) == []


def test_override() -> None:
    settings = override(Settings(), {"log.level": "debug", "recovery.mode": "report"})
    assert settings.log.level is LogLevel.DEBUG
    assert settings.recovery.mode is RecoveryMode.REPORT


@pytest.mark.parametrize("value", ["soon", None, True, [1]])
def test_override_by_what_is_no_number(value: object) -> None:
    with pytest.raises(ConfigError, match="look_seconds: expected a number, found"):
        override(Settings(), {"look_seconds": value})


def test_a_short_file_of_aliases_is_not_printed_whole() -> None:
    lines = ["a0: &a0 x"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    value = yaml.safe_load("\n".join(lines))["a39"]
    with pytest.raises(ConfigError, match="node_name: expected text, found"):
        settings_from({"node_name": value}, "f")


@pytest.mark.parametrize("key", ["nothing", "log", "log.nothing", "node_name.x", ""])
def test_override_of_no_key(key: str) -> None:
    with pytest.raises(ConfigError, match="no such key"):
        override(Settings(), {key: "x"})


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: 1\na: 2", "twice"),
        ("a: [", "line"),
        ("\t", "line"),
        ("- 1", "expected keys"),
        ('"\\e": 1\n"\\e": 2', "key \\x1b stands twice"),
        # What PyYAML itself trips over.
        ('a: !!int ""', "index"),
        ("a: !!bool x", "x"),
        ("a: 2001-99-99", "month"),
        ("a: !!timestamp x", "attribute"),
        ("? !!set {a}\n: 1", "unhashable"),
        ("[" * 5000, "recursion"),
        (f"look_seconds: 0x{'f' * 5000}", "number of seconds above 0, found inf"),
        (f"node_name: 0x{'f' * 5000}", "thousands of digits"),
        ("look_seconds: 1:30", "look_seconds: expected a number, found 1:30"),
        ("look_seconds: !!float 1:30.5", "look_seconds: expected a number, found 1:30.5"),
        (f"look_seconds: {'9:' * 16000}1.5", "look_seconds: expected a number, found 9:9:9"),
    ],
)
def test_bad_yaml_names_the_file(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(str(file)).require()
    assert str(error.value).startswith(f"{file}: ")
    assert part in str(error.value)


def test_missing_and_odd_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            load(str(path)).require()


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert load(str(tmp_path / "c.yaml")).require() == Settings()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("true", True),
        ("/a", "/a"),
        ('""', ""),
        ("a: b", "a: b"),
        ("[x]", ["x"]),
        ("2001-99-99", "2001-99-99"),
        ("!!bool x", "!!bool x"),
        ("1:30", "1:30"),
        ("127.0.0.1:30", "127.0.0.1:30"),
        ("[1:30]", ["1:30"]),
        ("a: &a {b: 1}\nc: {<<: *a}", "a: &a {b: 1}\nc: {<<: *a}"),
    ],
)
def test_values_of_the_command_line(text: str, value: object) -> None:
    assert parse_value(text) == value


# ------------------------------------------------------------------- whose the file is

OTHER_UID = 12345


def made_file(directory: Path) -> Path:
    inner = directory / "etc" / "fusewatchd"
    inner.mkdir(parents=True)
    file = inner / "c.yaml"
    file.write_text("look_seconds: 5\n")
    return file


@pytest.mark.parametrize(
    ("place", "mode", "is_refused"),
    [
        ("c.yaml", 0o644, False), ("c.yaml", 0o600, False), ("c.yaml", 0o646, True),
        ("c.yaml", 0o666, True), (".", 0o777, True), ("..", 0o777, True),
        (".", 0o1777, False), (".", 0o755, False),
    ],
)  # fmt: skip
def test_a_file_that_others_can_write_or_put_in_its_place(
    tmp_path: Path, place: str, mode: int, is_refused: bool
) -> None:
    file = made_file(tmp_path)
    changed = (file.parent / place).resolve()
    changed.chmod(mode)
    link = tmp_path / "link"
    link.symlink_to("etc/fusewatchd/c.yaml")
    for path in (file, link, tmp_path / "etc" / ".." / "link"):
        if not is_refused:
            assert load(str(path)).require().look_seconds == 5
            continue
        with pytest.raises(ConfigError) as error:
            load(str(path)).require()
        line = str(error.value)
        assert line.startswith(f"{path}: ")
        assert "\n" not in line
        assert path == changed or str(changed) in line
        assert f"others can (mode {mode:04o})" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
@pytest.mark.parametrize("place", ["c.yaml", ".", ".."])
def test_a_file_of_somebody_else(tmp_path: Path, place: str) -> None:
    file = made_file(tmp_path)
    os.chown(file.parent / place, OTHER_UID, 0)
    with pytest.raises(ConfigError, match=f"belongs to uid {OTHER_UID}"):
        load(str(file)).require()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_a_link_of_somebody_else_and_a_group(tmp_path: Path) -> None:
    file = made_file(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(file)
    os.lchown(link, OTHER_UID, 0)
    with pytest.raises(ConfigError, match=f"belongs to uid {OTHER_UID}"):
        load(str(link)).require()
    file.chmod(0o664)
    assert load(str(file)).require().look_seconds == 5, "root's group"
    os.chown(file, 0, OTHER_UID)
    with pytest.raises(ConfigError, match="mode 0664"):
        load(str(file)).require()


def test_links_without_an_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ConfigError, match="Too many levels"):
        load(str(tmp_path / "a")).require()


def test_a_number_of_many_parts_does_not_take_the_loops_time(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("look_seconds: " + "1:" * 400_000 + "1\n")
    with pytest.raises(ConfigError, match="expected at most 65536 bytes"):
        load(str(file)).require()
