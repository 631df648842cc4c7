"""Events as a user reads them: kubectl describe, over TLS and with a token."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from fusewatchd.demo.cluster.apiserver import DemoApiServer
from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.timeouts import patient
from tests.certificates import make_authority, make_certificate
from tests.lab import in_lab, pod_with_container

pytestmark = pytest.mark.kernel

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: one
contexts: [{{name: one, context: {{cluster: one, user: one, namespace: {namespace}}}}}]
clusters: [{{name: one, cluster: {{server: "{url}", certificate-authority: "{ca}"}}}}]
users: [{{name: one, user: {{token: {token}}}}}]
"""


def kubectl(config: Path, *words: str) -> str:
    command = ["kubectl", "--kubeconfig", str(config), "--cache-dir", f"{config}.cache", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=patient(30), check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@in_lab(timeout=90)
def test_a_crash_is_read_with_kubectl(node: DemoNode) -> None:
    source = node.add_source("one")
    pod, container = pod_with_container(node, source, "web")
    authority = make_authority(Path(node.lab))
    certificate = make_certificate(authority, "api", "api", "IP:127.0.0.1")
    config = Path(node.lab, "kubeconfig")
    with (
        DemoKubelet(node.pod_list) as kubelet,
        DemoApiServer(token="one", certificate=certificate) as apiserver,
    ):
        config.touch(mode=0o600)
        config.write_text(
            KUBECONFIG.format(
                namespace=pod.namespace, url=apiserver.url, ca=authority.certificate, token="one"
            )
        )
        shown = {"kind": "Pod", "apiVersion": "v1", **pod.document(node.name)}
        apiserver.objects[f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"] = shown
        settings = {"kubelet.url": kubelet.url, "apiserver.kubeconfig": str(config)}
        with DaemonProcess(node, settings=settings) as daemon:
            daemon.wait_for(lambda d: d["pods_known"])
            daemon.wait_until_watching(2)
            for outage in (1, 2):
                source.kill()
                daemon.wait_for(lambda d: d["incidents"])
                source.restart()
                container.wait_until_readable("/data/hello", 10.0)
                daemon.wait_for(lambda d, number=outage: len(d["outages"]) == number)
        told = kubectl(config, "describe", "pod", "web").partition("\nEvents:\n")[2]
        lines = [re.split(r"\s{2,}", line.strip(), maxsplit=4) for line in told.splitlines()[2:]]
        assert [(kind, reason) for kind, reason, *_ in lines] == [
            ("Warning", "FuseMountStale"),
            ("Normal", "FuseMountRecovered"),
        ]
        assert "Transport endpoint is not connected" in lines[0][-1]
        counts = kubectl(
            config, "get", "events", "-o", "jsonpath={.items[*].series.count}",
            "--field-selector", f"involvedObject.uid={pod.uid}",
        )  # fmt: skip
        assert counts == "2 2"
        assert not kubectl(config, "get", "events", "-o", "name", "--namespace", "other")
