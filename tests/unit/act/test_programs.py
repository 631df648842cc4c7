"""Programs that the configuration names: there, and root's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fusewatchd.act.programs import find_systemctl, problems_of_programs
from fusewatchd.cli import main
from fusewatchd.config.settings import Settings, override


def settings(*rules: dict[str, object]) -> Settings:
    return override(Settings(), {"drivers.on_stale": list(rules)})


def program(directory: Path, mode: int = 0o755) -> str:
    path = directory / "remount"
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return str(path)


def test_a_program_of_our_own_is_fine(tmp_path: Path) -> None:
    rule = {"driver": "a", "command": [program(tmp_path), "{target}"]}
    assert problems_of_programs(settings(rule)) == []
    assert problems_of_programs(Settings()) == []


@pytest.mark.parametrize(
    ("mode", "problem"),
    [
        (0o644, "not a program"),
        (
            0o757,
            "expected root's, and that nobody else can write it; others can (mode 0757): chmod go-w",
        ),
    ],
)
def test_one_that_others_may_write_or_nobody_run(tmp_path: Path, mode: int, problem: str) -> None:
    path = program(tmp_path, mode)
    expected = f"drivers.on_stale[0].command: expected a program, found {path}: {problem}"
    assert problems_of_programs(settings({"driver": "a", "command": [path]})) == [expected]


@pytest.mark.root
def test_one_of_somebody_else(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    path = program(tmp_path)
    os.chown(path, 65534, 65534)
    (problem,) = problems_of_programs(settings({"driver": "a", "command": [path]}))
    assert "belongs to uid 65534" in problem


def test_one_that_others_may_put_in_its_place(tmp_path: Path) -> None:
    path = program(tmp_path)
    tmp_path.chmod(0o777)
    (problem,) = problems_of_programs(settings({"driver": "a", "command": [path]}))
    assert f"found {path}: {tmp_path}: expected root's" in problem


def test_every_problem_is_a_line(tmp_path: Path) -> None:
    rules = ({"driver": "a", "command": [f"{tmp_path}/none"]}, {"driver": "b", "command": ["/"]})
    assert problems_of_programs(settings(*rules)) == [
        f"drivers.on_stale[0].command: expected a program, found {tmp_path}/none: No such file or directory",
        "drivers.on_stale[1].command: expected a program, found /: not a program",
    ]


def test_units_need_systemctl(tmp_path: Path) -> None:
    assert find_systemctl(str(tmp_path)) == ""
    rule = {"driver": "a", "unit": "a@{volume}.service"}
    line = f"drivers.on_stale[0].unit: needs systemctl, found none in {tmp_path}"
    assert problems_of_programs(settings(rule), str(tmp_path)) == [line]


def test_config_check_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(f"drivers: {{on_stale: [{{driver: a, command: [{tmp_path}/none]}}]}}\n")
    assert main(["config-check", "--config", str(file)]) == 2
    assert "expected a program" in capsys.readouterr().err
