"""Whose the files are that root acts on, and the directories above them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fusewatchd.act.programs import problems_of_programs
from fusewatchd.config.credential_files import read_token, require_own_place
from fusewatchd.config.file import load, parse_document
from fusewatchd.config.settings import Settings, override
from fusewatchd.errors import ConfigError, CredentialsError
from fusewatchd.kube.endpoint import Endpoint
from fusewatchd.kube.http import Client
from fusewatchd.kube.kubeconfig import KubeconfigSource
from fusewatchd.serve.web_security import rules_of_file

URL = "https://127.0.0.1:1"
KUBECONFIG = """
current-context: c
contexts: [{name: c, context: {cluster: k, user: u}}]
clusters: [{name: k, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, user: {token: t}}]
"""


def program(path: Path) -> None:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    rule = {"driver": "a", "command": [str(path)]}
    settings = override(Settings(), {"drivers.on_stale": [rule]})
    if problems := problems_of_programs(settings):
        raise ConfigError(problems[0])


def configuration(path: Path) -> None:
    path.write_text("look_seconds: 5\n")
    load(str(path)).require()


def web_configuration(path: Path) -> None:
    path.write_text("rate_limit: {interval: 1s}\n")
    rules_of_file(str(path))


def kubeconfig(path: Path) -> None:
    path.write_text(KUBECONFIG)
    path.chmod(0o600)
    KubeconfigSource(str(path), str(path.parent), parse_document, 1.0).current()


def token(path: Path) -> None:
    path.write_text("t")
    path.chmod(0o600)
    assert read_token(str(path), 10) == "t"


def authority(path: Path) -> None:
    path.write_text("none")
    with pytest.raises(CredentialsError) as error:
        Client(Endpoint(URL, ca_file=str(path))).request("GET", "/")
    if "no usable certificates" not in str(error.value):
        raise error.value


USERS = [program, configuration, web_configuration, kubeconfig, token, authority]


@pytest.mark.parametrize("use", USERS, ids=lambda use: str(use.__name__))
@pytest.mark.parametrize("above", ["inner", "."])
def test_no_file_is_used_that_others_could_put_another_one_in_the_place_of(
    tmp_path: Path, use: Callable[[Path], None], above: str
) -> None:
    path = tmp_path / "inner" / "file"
    path.parent.mkdir()
    use(path)
    place = (tmp_path / above).resolve()
    place.chmod(0o777)
    with pytest.raises((ConfigError, CredentialsError)) as error:
        use(path)
    expected = f"{path}: {place}: expected root's, and that nobody else can write it; others can"
    assert expected in str(error.value)
    place.chmod(0o1777)
    use(path)


def test_one_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match=r"^/none/x: No such file or directory$"):
        require_own_place("/none/x")
