"""Finding out about the kubelet, the API server and the credentials, by asking."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

from fusewatchd.config.credential_files import read_token
from fusewatchd.config.settings import Settings, override
from fusewatchd.daemon.policies import node_name_of
from fusewatchd.doctor.cluster_checks import (
    ClusterFacts,
    Permission,
    ServerFacts,
    TokenFacts,
    permissions_for,
    token_expiry,
)
from fusewatchd.errors import CredentialsError, KubeError, ParseError
from fusewatchd.kube.endpoint import MAX_TOKEN_BYTES, Endpoint, EndpointSource
from fusewatchd.kube.endpoints import apiserver_endpoint, kubelet_endpoint
from fusewatchd.kube.http import Client
from fusewatchd.kube.kubelet import PATH
from fusewatchd.model.pods import Pod
from fusewatchd.parse.pod_list import parse_pod_list

REVIEW_PATH = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def examine_cluster(settings: Settings, kubelet_root: str) -> tuple[ClusterFacts, tuple[Pod, ...]]:
    """Ask both; return what was found, and the pods that the kubelet told of."""
    pods: tuple[Pod, ...] = ()
    kubelet: ServerFacts | None = None
    apiserver: ServerFacts | None = None
    permissions: list[Permission] = []
    if settings.kubelet.url:

        def ask(client: Client) -> None:
            nonlocal pods
            pods = parse_pod_list(client.request("GET", PATH)).pods

        name = node_name_of(settings)
        has_certificate = settings.kubelet.client_cert_file
        key = "kubelet.client_cert_file" if has_certificate else "kubelet.token_file"
        kubelet = _asked(kubelet_endpoint(settings.kubelet, kubelet_root, name), ask, key)
    told = settings.apiserver
    if told.is_configured:

        def review(client: Client) -> None:
            wanted = permissions_for(
                volume_events=told.volume_events, node_condition=told.node_condition
            )
            permissions.extend(_reviewed(client, one) for one in wanted)

        # Keys that stand in a kubeconfig are put into files, which the daemon's are not ours.
        with TemporaryDirectory() as directory:
            own = override(settings, {"runtime_dir": directory})
            key = "apiserver.kubeconfig" if told.kubeconfig else "apiserver.token_file"
            apiserver = _asked(apiserver_endpoint(own), review, key)
    tokens = [
        _token(f"{section} token", path)
        for section, path in (
            ("kubelet", settings.kubelet.token_file),
            ("apiserver", settings.apiserver.token_file),
        )
        if path
    ]
    return (
        ClusterFacts(time.time(), tuple(tokens), kubelet, len(pods), apiserver, tuple(permissions)),
        pods,
    )


def _asked(
    endpoint: Endpoint | EndpointSource, ask: Callable[[Client], None], key: str
) -> ServerFacts:
    client = Client(endpoint)
    problem, code, asked_at = "", 0, time.time()
    try:
        ask(client)
    except KubeError as exc:
        problem, code = str(exc), exc.code
    except ParseError as exc:
        problem = f"{client.endpoint.url}: {exc}"
    finally:
        client.close()
    url = client.endpoint.url
    return ServerFacts(url, problem, code, client.server_time, client.asked_at or asked_at, key)


def _reviewed(client: Client, wanted: Permission) -> Permission:
    """Ask for one permission in all namespaces (SelfSubjectAccessReview, authorization/v1)."""
    attributes = {"verb": wanted.verb, "group": wanted.group, "resource": wanted.resource}
    if wanted.subresource:
        attributes["subresource"] = wanted.subresource
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer: Any = client.request("POST", REVIEW_PATH, body)
    status = answer.get("status") if isinstance(answer, dict) else None
    is_allowed = isinstance(status, dict) and status.get("allowed") is True
    return replace(wanted, is_allowed=is_allowed)


def _token(key: str, path: str) -> TokenFacts:
    try:
        return TokenFacts(key, path, expires_at=token_expiry(read_token(path, MAX_TOKEN_BYTES)))
    except CredentialsError as exc:
        return TokenFacts(key, path, str(exc))
