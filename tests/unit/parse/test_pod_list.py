from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.errors import ParseError
from fusewatchd.model.pods import Pod, Volume, VolumeMount
from fusewatchd.parse.pod_list import MAX_COMPLAINTS, MAX_TEXT, parse_pod_list

CAPTURE = Path(__file__).parents[2] / "data" / "kubelet-pods.json"


def pod_document(**metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "web", "namespace": "shop", "uid": "u-1", **metadata},
        "spec": {
            "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": "claim"}},
                {"name": "inline", "csi": {"driver": "csi.example"}},
                {"name": "host", "hostPath": {"path": "/mnt", "type": ""}},
                {"name": "scratch", "emptyDir": {}},
            ],
            "initContainers": [
                {"name": "init", "volumeMounts": [{"name": "data", "mountPath": "/in"}]}
            ],
            "containers": [
                {
                    "name": "app",
                    "volumeMounts": [
                        {
                            "name": "data",
                            "mountPath": "/data",
                            "readOnly": True,
                            "mountPropagation": "HostToContainer",
                            "subPath": "a/b",
                        },
                        {"name": "data", "mountPath": "/x", "subPathExpr": "$(NAME)"},
                    ],
                }
            ],
            "ephemeralContainers": [
                {"name": "debug", "volumeMounts": [{"name": "scratch", "mountPath": "/s"}]}
            ],
        },
        "status": {
            "phase": "Running",
            "initContainerStatuses": [{"name": "init", "containerID": "containerd://1a"}],
            "containerStatuses": [
                {"name": "app", "containerID": "cri-o://2b"},
                {"name": "waits", "containerID": ""},
                {"name": "new"},
            ],
            "ephemeralContainerStatuses": [{"name": "debug", "containerID": "docker://3c"}],
        },
    }


def pod_list(*pods: Any) -> dict[str, Any]:
    return {"kind": "PodList", "apiVersion": "v1", "items": list(pods)}


def only(document: dict[str, Any]) -> Pod:
    found = parse_pod_list(pod_list(document))
    assert not found.complaints
    (pod,) = found.pods
    return pod


def test_everything_that_recovery_and_reports_need() -> None:
    assert only(pod_document()) == Pod(
        uid="u-1",
        directory_uid="u-1",
        namespace="shop",
        name="web",
        phase="Running",
        is_deleting=False,
        volumes=(
            Volume("data", "persistentVolumeClaim", claim="claim"),
            Volume("inline", "csi", driver="csi.example"),
            Volume("host", "hostPath", path="/mnt"),
            Volume("scratch", "emptyDir"),
        ),
        volume_mounts=(
            VolumeMount("init", "data", "/in", False, "None"),
            VolumeMount("app", "data", "/data", True, "HostToContainer", "a/b"),
            VolumeMount("app", "data", "/x", False, "None", "$(NAME)"),
            VolumeMount("debug", "scratch", "/s", False, "None"),
        ),
        containers={"1a": "init", "2b": "app", "3c": "debug"},
    )


def test_a_real_kubelet_is_understood() -> None:
    found = parse_pod_list(json.loads(CAPTURE.read_text()))
    assert not found.complaints
    assert {pod.name for pod in found.pods} == {
        "hostpath", "csi-inline", "csi-publish", "csi-stage", "csi-subpath", "flex",
    }  # fmt: skip
    (subpath,) = [pod for pod in found.pods if pod.name == "csi-subpath"]
    assert [mount.sub_path for mount in subpath.volume_mounts if mount.sub_path]


def test_a_deletion_timestamp_means_deleting() -> None:
    assert only(pod_document(deletionTimestamp="2026-01-01T00:00:00Z")).is_deleting


@pytest.mark.parametrize(
    "annotations",
    [
        {"kubernetes.io/config.source": "file", "kubernetes.io/config.hash": "abc123"},
        {"kubernetes.io/config.mirror": "abc123"},
    ],
    ids=["static", "mirror"],
)
def test_a_static_pod_goes_by_the_hash_of_its_file(annotations: dict[str, str]) -> None:
    pod = only(pod_document(annotations=annotations))
    assert (pod.directory_uid, pod.uid) == ("abc123", "abc123")


def test_a_pod_of_the_api_server_goes_by_its_uid_whatever_it_claims() -> None:
    annotations = {"kubernetes.io/config.source": "api", "kubernetes.io/config.hash": "evil"}
    assert only(pod_document(annotations=annotations)).directory_uid == "u-1"


def test_only_our_own_annotations_are_kept() -> None:
    annotations = {"fusewatchd.io/x": "y" * (MAX_TEXT + 1), "other/x": "z"}
    assert only(pod_document(annotations=annotations)).annotations == {
        "fusewatchd.io/x": "y" * MAX_TEXT
    }


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("metadata", "uid"), 5, "metadata.uid: expected text"),
        (("metadata", "uid"), None, "metadata.uid: expected text"),
        (("metadata",), [], "metadata: expected an object"),
        (("spec", "volumes"), {}, "spec.volumes: expected a list"),
        (("spec", "volumes"), [1], "volumes: expected an object"),
        (("spec", "containers"), [{"name": "c", "volumeMounts": [{}]}], "volumeMounts.name"),
        (("status", "phase"), "x" * (MAX_TEXT + 1), "status.phase: expected text"),
    ],
)
def test_a_malformed_pod_is_named_and_the_others_stay(
    path: tuple[str, ...], value: Any, complaint: str
) -> None:
    broken = pod_document()
    part: Any = broken
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    found = parse_pod_list(pod_list(broken, pod_document()))
    assert len(found.pods) == 1
    (line,) = found.complaints
    assert complaint in line


@pytest.mark.parametrize("uid", ["../../home", "a/volumes/v/mount", "/", ".", "..", "a\0b"])
def test_a_uid_that_leads_out_of_the_directory_of_pods_is_a_complaint(uid: str) -> None:
    found = parse_pod_list(pod_list(pod_document(uid=uid)))
    assert found.pods == ()
    assert "metadata.uid: expected the name of a directory" in found.complaints[0]


def test_names_in_complaints_are_escaped() -> None:
    (line,) = parse_pod_list(pod_list(pod_document(name="a\nb", uid=1))).complaints
    assert line.startswith("pod a\\x0ab: ")


def test_complaints_are_bounded() -> None:
    assert len(parse_pod_list(pod_list(*[{}] * 100)).complaints) == MAX_COMPLAINTS


@pytest.mark.parametrize(
    "document", [None, [], {}, {"kind": "Status"}, {"kind": "PodList", "items": 1}]
)
def test_what_is_no_pod_list_is_refused(document: Any) -> None:
    with pytest.raises(ParseError):
        parse_pod_list(document)


def test_an_empty_list_has_no_items() -> None:
    assert parse_pod_list({"kind": "PodList", "items": None}).pods == ()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(JSON, st.sampled_from(["metadata", "spec", "status"]), JSON)
def test_nothing_a_pod_may_hold_loses_the_list(item: Any, part: str, value: Any) -> None:
    broken = copy.deepcopy(pod_document())
    broken[part] = value
    found = parse_pod_list(pod_list(item, broken, pod_document()))
    assert found.pods[-1].name == "web"
    assert len(found.pods) + len(found.complaints) == 3
