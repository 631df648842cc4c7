"""Kubeconfig files: what is taken, what is refused and in which words."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from fusewatchd.errors import ConfigError
from fusewatchd.kube.kubeconfig import parse_kubeconfig

PATH = "/etc/kubernetes/kubelet.conf"


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def document(cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None) -> Any:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [
            {"name": "other", "context": {"cluster": "x", "user": "x"}},
            {"name": "here", "context": {"cluster": "c", "user": "u"}},
        ],
        "clusters": [{"name": "c", "cluster": {"server": "https://api:6443", **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
    }


def test_as_kubeadm_writes_it_for_a_kubelet() -> None:
    pem = "/var/lib/kubelet/pki/kubelet-client-current.pem"
    found = parse_kubeconfig(
        document(
            {"certificate-authority-data": encoded("CA")},
            {"client-certificate": pem, "client-key": pem},
        ),
        PATH,
    )
    assert found.url == "https://api:6443"
    assert (found.authority.path, found.authority.data) == ("", b"CA")
    assert (found.certificate.path, found.key.path) == (pem, pem)
    assert (found.token.path, found.token.data, found.skip_verify) == ("", b"", False)


def test_relative_paths_begin_beside_the_file() -> None:
    found = parse_kubeconfig(document({"certificate-authority": "pki/ca.crt"}, {"tokenFile": "t"}), PATH)  # fmt: skip
    assert found.authority.path == "/etc/kubernetes/pki/ca.crt"
    assert found.token.path == "/etc/kubernetes/t"


def test_what_stands_in_the_file_counts_before_what_it_names() -> None:
    user = {"token": "secret", "tokenFile": "/x", "client-key": "/k", "client-key-data": encoded("K")}  # fmt: skip
    found = parse_kubeconfig(document({"tls-server-name": "kubernetes"}, user), PATH)
    assert (found.token.data, found.token.path) == (b"secret", "")
    assert (found.key.data, found.key.path) == (b"K", "")
    assert found.server_name == "kubernetes"


def changed(**keys: Any) -> Any:
    return {**document(), **keys}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "the file: expected keys and values"),
        ([], "the file: expected keys and values"),
        (changed(**{"current-context": ""}), "current-context: expected the name of a context"),
        (changed(**{"current-context": 7}), "current-context: expected text"),
        (changed(**{"current-context": "gone"}), "contexts: expected one with the name 'gone'"),
        (changed(contexts={}), "contexts: expected a list"),
        (changed(clusters=[]), "clusters: expected one with the name 'c'"),
        (changed(users=[7]), "users: expected one with the name 'u'"),
        (document({"server": "api:6443"}), "clusters.server: expected a URL"),
        (document({"certificate-authority-data": "%"}), "authority-data: expected base64"),
        (document(user={"exec": {"command": "aws"}}), "users.exec: not supported"),
        (document(user={"auth-provider": {"name": "gcp"}}), "auth-provider: not supported"),
        (document(user={"username": "root", "password": "x"}), "users.username: not supported"),
        (document(user={"as": "system:admin"}), "users.as: not supported"),
        (document(user={"token": ["x"]}), "users.token: expected text"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(given: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_kubeconfig(given, PATH)
    text = str(caught.value)
    assert text.startswith(f"{PATH}: ")
    assert words in text
    assert "\n" not in text
