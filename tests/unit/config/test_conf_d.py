"""Several configuration files: their order, lists of rules, and which file a mistake is in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fusewatchd.config.file import MAX_BYTES, load
from fusewatchd.errors import ConfigError
from fusewatchd.model.plan import RecoveryMode


def written(directory: Path, **texts: str) -> str:
    """Write the main file and, by name, those of ``conf.d``; return the main one."""
    (directory / "conf.d").mkdir(exist_ok=True)
    for name, text in texts.items():
        place = directory / "f.yaml" if name == "main" else directory / "conf.d" / f"{name}.yaml"
        place.write_text(text)
    return str(directory / "f.yaml")


def problems(file: str, **values: object) -> list[str]:
    where = os.path.dirname(file) + "/"
    values = {key.replace("__", "."): value for key, value in values.items()}
    return [line.replace(where, "") for line in load(file, values).problems]


def test_the_last_file_wins_and_the_command_line_over_all(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        b="look_seconds: 3\nprobe: {interval_seconds: 3}\nignore_fs_types: [b]\n",
        a="look_seconds: 2\nrecovery: {mode: report}\nignore_fs_types: [a]\n",
        main="look_seconds: 1\nhung: {after_seconds: 1}\n",
    )
    configuration = load(file, {"probe.interval_seconds": 4})
    settings = configuration.require()
    assert settings.look_seconds == 3
    assert settings.hung.after_seconds == 1
    assert settings.recovery.mode is RecoveryMode.REPORT
    assert settings.probe.interval_seconds == 4
    assert settings.ignore_fs_types == ("b",)
    names = [os.path.basename(path) for path in configuration.files]
    assert names == ["f.yaml", "a.yaml", "b.yaml"]
    assert configuration.origins["look_seconds"] == (f"{tmp_path}/conf.d/b.yaml",)
    assert configuration.origins["recovery.mode"] == (f"{tmp_path}/conf.d/a.yaml",)
    assert configuration.origins["probe.interval_seconds"] == ("command line",)


def test_rules_follow_each_other_in_the_order_of_the_files(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        b="drivers: {on_stale: [{driver: b, unit: b.service}]}\nsockets: [/b]\n",
        a="recovery: {exclude: {volumes: [a]}}\ndrivers: {on_stale: [{driver: a, unit: a.service}]}\n",
        main="recovery: {exclude: {volumes: [m]}}\nsockets: [/m]\n",
    )
    settings = load(file).require()
    assert [rule.driver for rule in settings.drivers.on_stale] == ["a", "b"]
    assert [socket.glob for socket in settings.sockets] == ["/m", "/b"]
    assert settings.recovery.exclude.volumes == ("m", "a")
    replaced = load(file, {"sockets": ["/c"]}).require()
    assert [socket.glob for socket in replaced.sockets] == ["/c"]


def test_every_mistake_names_its_file(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        main="recvery: {}\n",
        a="drivers: {on_stale: [{driver: a, unit: a.service}, {driver: b}]}\nlook_seconds: x\n",
        b="drivers: {on_stale: [{driver: c}]}\ncleanup: {detach_orphans: true}\n",
        c="look_seconds: [\n",
    )
    assert problems(file, log__levl="x") == [
        "conf.d/c.yaml: line 2: expected the node content, but found '<stream end>'",
        "f.yaml: recvery: no such key; did you mean recovery?",
        "conf.d/a.yaml: drivers.on_stale[1]: it needs one of unit and command, and not both",
        "conf.d/a.yaml: look_seconds: expected a number, found x",
        "conf.d/b.yaml: drivers.on_stale[0]: it needs one of unit and command, and not both",
        "command line: log.levl: no such key; did you mean level?",
        "conf.d/b.yaml: cleanup.detach_orphans: needs kubelet.url, found nothing",
    ]


def test_what_two_files_say_together_names_both(tmp_path: Path) -> None:
    entry = "drivers: {templates: [{name: n, csi_driver: %s, source: '/{volume}'}]}\n"
    file = written(tmp_path, main="", a=entry % "a", b=entry % "b")
    (line,) = problems(file)
    start = "conf.d/a.yaml, "
    assert line.startswith(start)
    assert "/conf.d/b.yaml: drivers.templates: expected one entry" in line.replace(start, "/")


def test_a_mistake_about_the_kubelet_makes_no_second_one(tmp_path: Path) -> None:
    file = written(tmp_path, main="kubelet: {url: x}\n", a="cleanup: {detach_orphans: true}\n")
    (line,) = problems(file)
    assert line.startswith("f.yaml: kubelet.url: ")


def test_only_names_that_end_in_yaml_are_read_and_yml_is_a_mistake(tmp_path: Path) -> None:
    file = written(tmp_path, main="")
    for name in ("a.yaml~", ".b.yaml", "c.yaml.dpkg-old", "README"):
        (tmp_path / "conf.d" / name).write_text("no: such\n")
    assert problems(file) == []
    (tmp_path / "conf.d" / "d.yml").write_text("")
    assert problems(file) == ["conf.d/d.yml: expected a name ending in .yaml"]


def test_all_files_together_have_one_limit(tmp_path: Path) -> None:
    half = "# " + "x" * (MAX_BYTES // 2) + "\n"
    file = written(tmp_path, main="look_seconds: 1\n", a=half)
    assert problems(file) == []
    written(tmp_path, b=half)
    (line,) = problems(file)
    assert line.startswith("conf.d/b.yaml: expected at most ")


@pytest.mark.parametrize("place", ["conf.d", "conf.d/a.yaml"])
def test_files_that_others_can_write_are_refused(tmp_path: Path, place: str) -> None:
    file = written(tmp_path, main="", a="look_seconds: 1\n")
    (tmp_path / place).chmod(0o777)
    with pytest.raises(ConfigError, match=f"{tmp_path}/{place}: expected root's"):
        load(file).require()


def test_no_directory_and_one_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("")
    assert problems(str(tmp_path / "f.yaml")) == []
    (tmp_path / "conf.d").write_text("")
    assert problems(str(tmp_path / "f.yaml")) == ["conf.d: Not a directory"]


def test_a_pipe_does_not_hold_up_the_reader(tmp_path: Path) -> None:
    file = written(tmp_path, main="")
    os.mkfifo(tmp_path / "conf.d" / "a.yaml")
    assert problems(file) == ["conf.d/a.yaml: expected a regular file"]
