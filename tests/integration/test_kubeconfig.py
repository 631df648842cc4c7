"""The API server found and trusted by a kubeconfig, over TLS with client certificates and tokens."""

from __future__ import annotations

import base64
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusewatchd.config.file import parse_document
from fusewatchd.demo.cluster.apiserver import DemoApiServer
from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.errors import CredentialsError
from fusewatchd.kube.errors import UnauthorizedError
from fusewatchd.kube.http import Client
from fusewatchd.kube.kubeconfig import KubeconfigSource
from tests.certificates import make_authority, make_certificate
from tests.lab import in_lab, pod_with_container

PATIENCE = 20.0


def write(path: Path, server: str, cluster: dict[str, Any], user: dict[str, Any]) -> None:
    document = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "clusters": [{"name": "x", "cluster": {"server": server, **cluster}}],
        "users": [{"name": "x", "user": user}],
    }
    fresh = path.with_suffix(".new")
    fresh.write_text(yaml.safe_dump(document))
    fresh.chmod(0o600)
    fresh.rename(path)


def data_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def client_of(path: Path, directory: Path) -> Client:
    return Client(KubeconfigSource(str(path), str(directory), parse_document, 10.0))


def test_certificates_in_the_file_itself(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "ca")
    make_certificate(authority, "server", "kubelet", "IP:127.0.0.1")
    make_certificate(authority, "client", "fusewatchd")
    kubeconfig, kept = tmp_path / "kubeconfig", tmp_path / "kept"
    pem = data_of(tmp_path / "client.pem")
    with DemoKubelet(
        lambda: {"items": []},
        certificate=str(tmp_path / "server.pem"),
        client_ca=str(tmp_path / "ca.crt"),
    ) as server:
        authority_data = {"certificate-authority-data": data_of(tmp_path / "ca.crt")}
        user = {"client-certificate-data": pem, "client-key-data": pem}
        write(kubeconfig, server.url, authority_data, user)
        assert client_of(kubeconfig, kept).request("GET", "/pods") == {"items": []}
    assert sorted(os.listdir(kept)) == ["ca.crt", "client.crt", "client.key"]
    assert kept.stat().st_mode & 0o077 == 0
    assert all(os.stat(kept / name).st_mode & 0o077 == 0 for name in os.listdir(kept))


def test_a_rotated_token_and_a_moved_server_are_followed(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    client = client_of(kubeconfig, tmp_path / "kept")
    with pytest.raises(CredentialsError, match="kubeconfig: No such file"):
        client.request("GET", "/x")
    with DemoApiServer(token="new") as server, DemoApiServer(token="new") as other:
        server.objects = other.objects = {"/x": {"kind": "X"}}
        write(kubeconfig, server.url, {}, {"token": "old"})
        with pytest.raises(UnauthorizedError):
            client.request("GET", "/x")
        write(kubeconfig, server.url, {}, {"token": "new"})
        assert client.request("GET", "/x") == {"kind": "X"}
        write(kubeconfig, other.url, {}, {"token": "new"})
        assert client.request("GET", "/x") == {"kind": "X"}
        assert len(other.requests) == 1


def test_a_file_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    write(kubeconfig, "http://127.0.0.1:1", {}, {"token": "secret"})
    kubeconfig.chmod(0o644)
    with pytest.raises(CredentialsError, match="others can read it") as caught:
        client_of(kubeconfig, tmp_path / "kept").request("GET", "/x")
    assert "secret" not in str(caught.value)


@pytest.mark.kernel
@in_lab(timeout=90)
def test_the_daemon_waits_for_its_kubeconfig_and_tells_then(node: DemoNode) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "web")
    kubeconfig = Path(node.lab) / "kubelet.conf"
    with DemoKubelet(node.pod_list) as kubelet, DemoApiServer(token="t") as server:
        settings = {"kubelet.url": kubelet.url, "apiserver.kubeconfig": str(kubeconfig)}
        with DaemonProcess(node, settings=settings) as daemon:
            daemon.wait_for(lambda d: d["pods_known"] and d["totals"]["verdicts"]["healthy"] == 2)
            write(kubeconfig, server.url, {}, {"token": "t"})
            source.kill()
            source.restart()
            container.wait_until_readable("/data/hello", PATIENCE)
            end = time.monotonic() + PATIENCE
            while sorted(set(server.reasons())) != ["FuseMountRecovered", "FuseMountStale"]:
                assert time.monotonic() < end, server.requests
                time.sleep(0.02)
