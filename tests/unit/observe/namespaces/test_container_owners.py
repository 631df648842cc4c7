"""Whose a container is once the kubelet's list has had its say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusewatchd.model.mounts import Device, Mount, MountNamespace, NamespaceKind
from fusewatchd.observe.namespaces.container_owners import (
    ASKED_FOR_SECONDS,
    NO_LIST,
    NOTED_SECONDS,
    ListedPods,
    are_all_listed,
    of_no_pod,
    settle,
    still_seen,
)
from tests.unit.scenes import OTHER_UID, UID, pod

ID, ELSE = "c" * 64, "d" * 64
SEEN = 100.0
BEFORE, AFTER = SEEN + NOTED_SECONDS, SEEN + NOTED_SECONDS + 1
PROVEN = MountNamespace(7, 70, 1, NamespaceKind.CONTAINER, UID, ID, ())
PLACELESS = replace(PROVEN, kind=NamespaceKind.FOREIGN, pod_uid="")
"""Root made its cgroup, but not where a kubelet has them."""
NOBODYS = replace(PLACELESS, container_id="")
WITHOUT_ID = replace(PROVEN, container_id="")
HAS_IT = {UID: replace(pod(), containers={ID: "app"})}
LACKS_IT = {UID: replace(pod(), containers={ELSE: "app"})}
LACKS_POD = {OTHER_UID: replace(pod(OTHER_UID), containers={ELSE: "app"})}
OF_ANOTHER = {OTHER_UID: replace(pod(OTHER_UID), containers={ID: "app"})}


@pytest.mark.parametrize(
    ("namespace", "listed", "kind", "uid", "name"),
    [
        (PROVEN, NO_LIST, "container", UID, ""),
        (PROVEN, ListedPods(HAS_IT), "container", UID, "app"),
        (PROVEN, ListedPods(HAS_IT, AFTER), "container", UID, "app"),
        # A list that is older, or not whole, denies nothing.
        (PROVEN, ListedPods(LACKS_IT), "container", UID, ""),
        (PROVEN, ListedPods(LACKS_IT, BEFORE), "container", UID, ""),
        (PROVEN, ListedPods(LACKS_IT, AFTER), "foreign", UID, ""),
        (PROVEN, ListedPods(LACKS_POD, AFTER), "foreign", UID, ""),
        (PROVEN, ListedPods({}, AFTER), "foreign", UID, ""),
        # The path names one pod and the list another.
        (PROVEN, ListedPods(OF_ANOTHER), "foreign", UID, ""),
        (WITHOUT_ID, NO_LIST, "container", UID, ""),
        (WITHOUT_ID, ListedPods(HAS_IT, AFTER), "foreign", UID, ""),
        (PLACELESS, NO_LIST, "foreign", "", ""),
        (PLACELESS, ListedPods(LACKS_IT, AFTER), "foreign", "", ""),
        (PLACELESS, ListedPods(HAS_IT), "container", UID, "app"),
        (NOBODYS, ListedPods({UID: replace(pod(), containers={"": "app"})}), "foreign", "", ""),
    ],
)
def test_whose_a_container_is(
    namespace: MountNamespace, listed: ListedPods, kind: str, uid: str, name: str
) -> None:
    (found,) = settle([namespace], listed, {ID: SEEN})
    assert (found.kind.value, found.pod_uid, found.container_name) == (kind, uid, name)


def test_a_container_keeps_the_moment_at_which_it_was_seen_first() -> None:
    seen = still_seen({}, [PROVEN, NOBODYS], 1.0)
    assert seen == {ID: 1.0}
    assert still_seen(seen, [PROVEN, replace(PROVEN, container_id=ELSE)], 2.0) == {
        ID: 1.0,
        ELSE: 2.0,
    }
    assert still_seen(seen, [], 3.0) == {}


@pytest.mark.parametrize(
    ("namespace", "pods", "age", "expected"),
    [
        (PROVEN, HAS_IT, 0.0, True),
        (PROVEN, LACKS_IT, 0.0, False),
        (PROVEN, LACKS_IT, ASKED_FOR_SECONDS, False),
        (PROVEN, LACKS_IT, ASKED_FOR_SECONDS + 1, True),
        (PLACELESS, LACKS_IT, 0.0, False),
        (NOBODYS, LACKS_IT, 0.0, True),
        (PROVEN, None, 0.0, False),
    ],
)
def test_a_new_list_is_wanted_for_a_new_container(
    namespace: MountNamespace, pods: dict[str, object] | None, age: float, expected: bool
) -> None:
    listed = ListedPods(pods)  # type: ignore[arg-type]
    assert are_all_listed([namespace], listed, {ID: SEEN}, SEEN + age) is expected


@pytest.mark.parametrize(
    ("pods", "uid"),
    [
        ((), "etcd_static_1"),
        (("etcd-static-1",), "etcd-static-1"),
        (("etcd_static_1",), "etcd_static_1"),
        (("etcd-static_1", "other"), "etcd-static_1"),
        (("etcd-static-1", "etcd_static_1"), "etcd_static_1"),
    ],
)
def test_a_name_in_a_cgroup_of_systemd_is_that_of_one_directory(
    pods: tuple[str, ...], uid: str
) -> None:
    (found,) = settle([replace(PROVEN, pod_uid="etcd_static_1")], NO_LIST, {}, pods)
    assert (found.kind, found.pod_uid) == (NamespaceKind.CONTAINER, uid)


def test_the_list_names_a_pod_by_its_own_uid() -> None:
    listed = ListedPods({"etcd-static": replace(pod(uid="etcd-static"), containers={ID: "etcd"})})
    (found,) = settle([replace(PROVEN, pod_uid="etcd_static")], listed, {})
    assert (found.pod_uid, found.container_name) == ("etcd-static", "etcd")


SHOWN = Mount(20, 1, Device(0, 7), "/", "/data", "rw", 0, 0, "fuse.x", "x", "rw")
SHOWS = replace(PLACELESS, mounts=(SHOWN,))
COPY = replace(SHOWN, mount_point=f"/host/kubelet/pods/{UID}/volumes/kubernetes.io~csi/v/mount")


@pytest.mark.parametrize(
    ("namespace", "listed", "found"),
    [
        (SHOWS, NO_LIST, (ID,)),
        (SHOWS, ListedPods(LACKS_IT, BEFORE), (ID,)),
        # A whole list that is newer says that it is no pod's.
        (SHOWS, ListedPods(LACKS_IT, AFTER), ()),
        (SHOWS, ListedPods(HAS_IT), ()),
        (replace(SHOWS, container_id=""), NO_LIST, ()),
        (replace(SHOWS, mounts=(replace(SHOWN, device=Device(0, 8)),)), NO_LIST, ()),
        # An agent or a driver shows everybody's.
        (replace(SHOWS, mounts=(SHOWN, COPY)), NO_LIST, ()),
        (replace(PROVEN, mounts=(SHOWN,)), NO_LIST, ()),
    ],
)
def test_containers_that_may_be_any_pods(
    namespace: MountNamespace, listed: ListedPods, found: tuple[str, ...]
) -> None:
    seen = {ID: SEEN}
    settled = settle([namespace], listed, seen)
    assert of_no_pod(settled, listed, seen, {Device(0, 7)}) == found
