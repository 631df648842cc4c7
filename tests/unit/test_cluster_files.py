"""What is shipped for the cluster: valid by the published schemas, least, and doing what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celpy
import kubernetes_validate
import pytest
import yaml
from celpy.adapter import json_to_cel

from fusewatchd.config.settings import Settings
from fusewatchd.report.events import node_condition

CONF = Path(__file__).parents[2] / "conf"
KUBERNETES = CONF / "kubernetes"
NATIVE, KYVERNO = "propagation-policy.yaml", "propagation-policy-kyverno.yaml"
KUSTOMIZATION = "kustomization.yaml"
NEWEST = "1.37"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERNETES / name).read_text()))


@pytest.mark.parametrize(
    "name",
    sorted(p.name for p in KUBERNETES.glob("*.yaml") if p.name not in (KYVERNO, KUSTOMIZATION)),
)
def test_files_are_valid_by_the_published_schema(name: str) -> None:
    for document in documents(name):
        kubernetes_validate.validate(document, NEWEST, strict=True)


@pytest.mark.parametrize(("version", "release"), [("v1beta1", "1.35"), ("v1alpha1", "1.33")])
def test_the_policy_is_valid_for_older_clusters(version: str, release: str) -> None:
    for document in documents(NATIVE):
        document["apiVersion"] = f"admissionregistration.k8s.io/{version}"
        kubernetes_validate.validate(document, release, strict=True)


def test_kyverno_gets_the_same_policy() -> None:
    (kyverno,) = documents(KYVERNO)
    native = documents(NATIVE)[0]
    assert kyverno["spec"] == native["spec"]
    assert (kyverno["apiVersion"], kyverno["kind"]) == ("policies.kyverno.io/v1", "MutatingPolicy")


def granted(name: str) -> set[tuple[str, str, str]]:
    roles = [d for d in documents(name) if d["kind"] == "ClusterRole"]
    return {
        (group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_permissions_are_the_ones_that_are_used_and_no_more() -> None:
    events = {(g, "events", v) for g in ("", "events.k8s.io") for v in ("create", "patch")}
    assert granted("rbac.yaml") == events | {
        ("", "nodes/pods", "get"),
        ("", "nodes", "list"),
        ("", "persistentvolumes", "get"),
        ("data.fluid.io", "datasets", "get"),
    }
    assert granted("rbac-node-condition.yaml") == {("", "nodes/status", "patch")}
    assert granted("rbac-kubelet-before-1.33.yaml") == {("", "nodes/proxy", "get")}


# ------------------------------------------------------------- what the policy does to a pod


def evaluated(expression: str, pod: dict[str, Any], volumes: list[str]) -> Any:
    """Evaluate as the API server does; its constructors of typed objects become maps."""
    text = re.sub(r"\bObject(\.\w+)*\{", "{", expression)
    text = re.sub(r"([{,]\s*)([a-zA-Z]+):", r'\1"\2":', text)
    environment = celpy.Environment()
    program = environment.program(environment.compile(text))
    names = {"object": json_to_cel(pod), "variables": json_to_cel({"volumes": volumes})}
    return json.loads(json.dumps(program.evaluate(names), cls=celpy.CELJSONEncoder))


def merged(pod: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Merge as server-side apply does: containers by name, their mounts by path."""
    result: dict[str, Any] = json.loads(json.dumps(pod))
    for kind, containers in change.get("spec", {}).items():
        for container in containers:
            (target,) = (c for c in result["spec"][kind] if c["name"] == container["name"])
            for mount in container["volumeMounts"]:
                (old,) = (m for m in target["volumeMounts"] if m["mountPath"] == mount["mountPath"])
                old.update(mount)
    return result


def admitted(pod: dict[str, Any]) -> dict[str, Any]:
    spec = documents(NATIVE)[0]["spec"]
    (variable,) = spec["variables"]
    volumes = evaluated(variable["expression"], pod, [])
    for mutation in spec["mutations"]:
        pod = merged(pod, evaluated(mutation["applyConfiguration"]["expression"], pod, volumes))
    return pod


def propagations(pod: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    for kind in ("initContainers", "containers"):
        for container in pod["spec"].get(kind, []):
            for mount in container.get("volumeMounts", []):
                yield f"{container['name']}:{mount['mountPath']}", mount.get("mountPropagation")


VOLUMES = [
    {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
    {"name": "inline", "csi": {"driver": "csi.juicefs.com"}},
    {"name": "generic", "ephemeral": {"volumeClaimTemplate": {}}},
    {"name": "logs", "emptyDir": {}},
    {"name": "settings", "configMap": {"name": "x"}},
]


def mount(volume: str, path: str, **more: Any) -> dict[str, Any]:
    return {"name": volume, "mountPath": path, **more}


def test_mounts_of_claims_and_csi_volumes_are_told_to_follow_the_host() -> None:
    pod = {
        "spec": {
            "volumes": VOLUMES,
            "containers": [
                {"name": "bare"},
                {
                    "name": "app",
                    "image": "x",
                    "volumeMounts": [
                        mount("data", "/data", readOnly=True),
                        mount("data", "/sub", subPath="a"),
                        mount("inline", "/inline"),
                        mount("generic", "/generic"),
                        mount("logs", "/logs"),
                        mount("settings", "/settings"),
                        mount("data", "/both", mountPropagation="Bidirectional"),
                        mount("data", "/none", mountPropagation="None"),
                        mount("data", "/ro", readOnly=True, recursiveReadOnly="Enabled"),
                    ],
                },
            ],
            "initContainers": [{"name": "first", "volumeMounts": [mount("data", "/data")]}],
        }
    }
    changed = admitted(pod)
    assert dict(propagations(changed)) == {
        "first:/data": "HostToContainer",
        "app:/data": "HostToContainer",
        "app:/sub": "HostToContainer",
        "app:/inline": "HostToContainer",
        "app:/generic": "HostToContainer",
        "app:/logs": None,
        "app:/settings": None,
        "app:/both": "Bidirectional",
        "app:/none": "None",
        "app:/ro": None,
    }
    for container in (*changed["spec"]["containers"], *changed["spec"]["initContainers"]):
        for entry in container.get("volumeMounts", []):
            if entry["mountPath"] != "/none":
                entry.pop("mountPropagation", None) if entry["mountPath"] != "/both" else None
    assert changed == pod


@pytest.mark.parametrize(
    "spec",
    [
        {"containers": [{"name": "app"}]},
        {"containers": [{"name": "app", "volumeMounts": [mount("x", "/x")]}]},
        {"containers": [{"name": "app", "volumeMounts": []}], "volumes": []},
    ],
)
def test_other_pods_stay_as_they_are(spec: dict[str, Any]) -> None:
    assert admitted({"spec": spec}) == {"spec": spec}


# ---------------------------------------------------------------- node-problem-detector


def test_the_plugin_says_what_the_daemon_says_of_the_node() -> None:
    plugin = json.loads((CONF / "node-problem-detector" / "fusewatchd.json").read_text())
    (condition,), (rule,) = plugin["conditions"], plugin["rules"]
    assert condition == {
        "type": node_condition.TYPE,
        "reason": node_condition.WELL.reason,
        "message": node_condition.WELL.message,
    }
    # kubernetes/node-problem-detector, pkg/custompluginmonitor/types/config.go, Validate
    assert plugin["plugin"] == "custom"
    assert (rule["type"], rule["condition"]) == ("permanent", node_condition.TYPE)
    assert int(rule["timeout"][:-1]) <= int(plugin["pluginConfig"]["timeout"][:-1])
    assert int(plugin["pluginConfig"]["timeout"][:-1]) < int(
        plugin["pluginConfig"]["invoke_interval"][:-1]
    )
    assert (rule["path"], rule["args"]) == ("/usr/bin/fusewatchd", ["check"])


@pytest.mark.parametrize("folder", ["kubernetes", "prometheus"])
def test_a_kustomization_leads_to_files_that_are_there(folder: str) -> None:
    directory = CONF / folder
    document = yaml.safe_load((directory / KUSTOMIZATION).read_text())
    assert document["kind"] == "Kustomization"
    for name in document["resources"]:
        place = directory / name
        assert (place / KUSTOMIZATION if place.is_dir() else place).is_file()
    for generator in document.get("configMapGenerator", ()):
        for file in generator["files"]:
            # kustomize reads no file outside of the directory.
            assert "/" not in file
            assert (directory / file.partition("=")[2]).is_file()


def test_collectors_scrape_the_default_address_as_the_job_of_the_alerts() -> None:
    port = Settings().web.addresses[0]
    alloy = (CONF / "collectors/fusewatchd.alloy").read_text()
    assert f'"__address__" = "{port}"' in alloy
    assert 'job_name        = "fusewatchd"' in alloy
    document = yaml.safe_load((CONF / "collectors/otel-collector.yaml").read_text())
    (scrape,) = document["receivers"]["prometheus/fusewatchd"]["config"]["scrape_configs"]
    assert scrape["job_name"] == "fusewatchd"
    assert scrape["static_configs"][0]["targets"] == [port]
    for pipeline in document["service"]["pipelines"].values():
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline[kind]) <= document[kind].keys()
