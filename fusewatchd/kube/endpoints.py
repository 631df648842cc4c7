"""Where the kubelet and the API server are, and by what they are trusted."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from urllib.parse import urlsplit

from fusewatchd.config.file import parse_document
from fusewatchd.config.settings import ApiServerSettings, KubeletSettings, Settings
from fusewatchd.kube.endpoint import Endpoint, EndpointSource
from fusewatchd.kube.kubeconfig import KubeconfigSource

CLUSTER_CA_FILES = (
    "/etc/kubernetes/pki/ca.crt",
    "/etc/kubernetes/certs/ca.crt",
    "/etc/srv/kubernetes/pki/ca-certificates.crt",
    "/var/lib/rancher/k3s/agent/server-ca.crt",
    "/var/lib/rancher/rke2/agent/server-ca.crt",
)
"""Where the distributions of Kubernetes keep the authority of a cluster on its nodes."""


def kubelet_endpoint(settings: KubeletSettings, kubelet_root: str, node_name: str) -> Endpoint:
    """Return how to reach and to trust the kubelet.

    One that made its certificate itself put the node's name in it and no address, so over
    loopback that name is expected unless another one is configured.
    """
    name = settings.server_name or (node_name if _is_loopback(settings.url) else "")
    own = (f"{kubelet_root}/pki/kubelet.crt",) if kubelet_root else ()
    endpoint = _endpoint(settings)
    return replace(
        endpoint,
        server_name=name,
        default_ca_files=endpoint.default_ca_files + own,
        skip_verify=settings.insecure_skip_tls_verify,
    )


def apiserver_endpoint(settings: Settings) -> Endpoint | EndpointSource:
    """Return how to reach and to trust the API server."""
    path = settings.apiserver.kubeconfig
    if not path:
        return _endpoint(settings.apiserver)
    return KubeconfigSource(
        path,
        f"{settings.runtime_dir}/kubeconfig",
        parse_document,
        settings.apiserver.timeout_seconds,
    )


def _endpoint(settings: KubeletSettings | ApiServerSettings) -> Endpoint:
    return Endpoint(
        settings.url,
        token_file=settings.token_file,
        ca_file=settings.ca_file,
        default_ca_files=CLUSTER_CA_FILES,
        client_cert_file=settings.client_cert_file,
        client_key_file=settings.client_key_file,
        timeout_seconds=settings.timeout_seconds,
    )


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
