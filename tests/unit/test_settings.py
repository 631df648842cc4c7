from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fusewatchd.configfile import load_settings, parse_value
from fusewatchd.errors import ConfigError
from fusewatchd.settings import LogLevel, RecoveryMode, Settings, override, settings_from

SHIPPED = Path(__file__).parents[2] / "conf" / "fusewatchd.yaml"


def test_the_shipped_file_says_the_defaults() -> None:
    assert load_settings(str(SHIPPED)) == Settings()


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
        ({"sockets": ["x"]}, "f: sockets: expected a list of absolute paths, found ('x',)"),
        ({"sockets": "x"}, "f: sockets: expected a list of text, found x"),
        (
            {"web": {"listen_address": "a:70000"}},
            "f: web.listen_address: expected host:port with a port from 1 to 65535, or nothing, found a:70000",
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


def test_override() -> None:
    settings = override(Settings(), {"log.level": "debug", "recovery.mode": "report"})
    assert settings.log.level is LogLevel.DEBUG
    assert settings.recovery.mode is RecoveryMode.REPORT


@pytest.mark.parametrize("key", ["nothing", "log", "log.nothing", "node_name.x", ""])
def test_override_of_no_key(key: str) -> None:
    with pytest.raises(ConfigError, match="no such key"):
        override(Settings(), {key: "x"})


@pytest.mark.parametrize(
    ("text", "part"),
    [("a: 1\na: 2", "twice"), ("a: [", "line"), ("\t", "line"), ("- 1", "expected keys")],
)
def test_bad_yaml_names_the_file(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_settings(str(file))
    assert str(error.value).startswith(f"{file}: ")
    assert part in str(error.value)


def test_missing_and_odd_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            load_settings(str(path))


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert load_settings(str(tmp_path / "c.yaml")) == Settings()


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("true", True), ("/a", "/a"), ('""', ""), ("a: b", "a: b"), ("[x]", ["x"])],
)
def test_values_of_the_command_line(text: str, value: object) -> None:
    assert parse_value(text) == value
