"""``config-check`` and ``config-show``, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from fusewatchd.cli import main


def configured(directory: Path, main_file: str, drop_in: str) -> str:
    (directory / "conf.d").mkdir()
    (directory / "conf.d/a.yaml").write_text(drop_in)
    (directory / "f.yaml").write_text(main_file)
    return str(directory / "f.yaml")


def test_all_problems_of_all_phases_are_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "web.yml").write_text("tls: {}\n")
    (tmp_path / "token").write_text("")
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "kubeconfig").write_text("clusters: []\n")
    (tmp_path / "kubeconfig").chmod(0o600)
    file = configured(
        tmp_path,
        "look_seconds: x\n"
        f"drivers: {{on_stale: [{{driver: a, command: [{tmp_path}/none]}}]}}\n"
        f"web: {{config_file: {tmp_path}/web.yml}}\n",
        f"apiserver: {{kubeconfig: {tmp_path}/kubeconfig}}\n"
        f"kubelet: {{token_file: {tmp_path}/token, ca_file: {tmp_path}/ca}}\n"
        f"drivers: {{on_stale: [{{driver: a, command: [{tmp_path}/other]}}]}}\n",
    )
    assert main(["config-check", "--config", file]) == 2
    said = capsys.readouterr().err.replace(f"{tmp_path}/", "")
    assert said.splitlines() == [
        "f.yaml: look_seconds: expected a number, found x",
        "f.yaml: drivers.on_stale[0].command: expected a program, found none: "
        "No such file or directory",
        "conf.d/a.yaml: drivers.on_stale[0].command: expected a program, found other: "
        "No such file or directory",
        "conf.d/a.yaml: kubelet.token_file: token: expected one token in it",
        "conf.d/a.yaml: kubelet.ca_file: ca: No such file or directory",
        "conf.d/a.yaml: apiserver.kubeconfig: kubeconfig: current-context: expected "
        "the name of a context, found nothing",
        "web.yml: tls: no such key",
    ]


def test_what_was_read_is_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = configured(tmp_path, "", "")
    assert main(["config-check", "--config", file, "--set", "look_seconds=1"]) == 0
    assert capsys.readouterr().out == f"{file}, {tmp_path}/conf.d/a.yaml, command line: fine\n"


def test_show_says_what_is_in_force_and_from_which_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = configured(
        tmp_path,
        "look_seconds: 3\nsockets: [/m]\nnode_name: 'no'\n",
        "recovery: {mode: report, exclude: {volumes: [x]}}\nsockets: [{glob: /a, driver: d}]\n",
    )
    command = ["config-show", "--config", file, "--set", "log.level=debug"]
    assert main([*command, "--changed"]) == 0
    said = capsys.readouterr().out
    drop_in = f"{tmp_path}/conf.d/a.yaml"
    rows = [line.split("  # ") for line in said.splitlines() if not line.startswith("#")]
    assert [(key.strip(), origin) for key, origin in rows] == [
        ('node_name: "no"', file),
        ("recovery.mode: report", drop_in),
        ('recovery.exclude.volumes[0]: "x"'.replace('"', ""), drop_in),
        ('sockets[0]: {"glob": "/m", "source": "", "driver": ""}', file),
        ('sockets[1]: {"glob": "/a", "source": "", "driver": "d"}', drop_in),
        ("look_seconds: 3.0", file),
        ("log.level: debug", "command line"),
    ]
    assert said.startswith(f"# {file}\n# {drop_in}\n")
    assert isinstance(yaml.safe_load(said), dict)

    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["files"] == [file, drop_in]
    assert document["keys"]["look_seconds"] == {"value": 3.0, "from": [file]}
    assert document["keys"]["hung.abort"] == {"value": False, "from": []}


def test_show_of_a_configuration_with_a_mistake_shows_the_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = configured(tmp_path, "look_seconds: x\n", "")
    assert main(["config-show", "--config", file]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"{file}: look_seconds: expected a number, found x\n"
