"""What the doctor says, as a table from facts to findings."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from fusewatchd.doctor.cluster_checks import (
    ClusterFacts,
    Permission,
    ServerFacts,
    TokenFacts,
    cluster_findings,
    permissions_for,
    token_expiry,
)
from fusewatchd.doctor.degraded_checks import degraded_findings
from fusewatchd.doctor.findings import Finding, Level, document, exit_code, fail, ok, warn
from fusewatchd.doctor.node_checks import CAPABILITIES, NodeFacts, has_fuse_recovery, node_findings
from fusewatchd.doctor.pod_checks import pod_findings
from fusewatchd.doctor.quota_checks import quota_findings
from fusewatchd.doctor.source_checks import SourceFacts, source_findings
from fusewatchd.doctor.table import MAX_FINE_PODS, table
from fusewatchd.model.kubelet import NOT_FOUND, plain_directory
from fusewatchd.model.mount_table import parse_mount_table

ROOT = b"21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
PRIVATE = b"21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"
DATA = b"30 21 8:2 / /var/lib rw,relatime - ext4 /dev/sdb1 rw\n"
NODE = NodeFacts(
    release="6.18.0",
    way="beneath",
    way_problem="",
    namespace_shortage="",
    daemon_pid=42,
    capabilities=sum(1 << bit for bit in CAPABILITIES.values()),
    own_namespace=7,
    kubelet_namespace=7,
    place_problem="",
    kubelet=plain_directory("/var/lib/kubelet"),
    pods_elsewhere="",
    table=parse_mount_table(ROOT),
    mount_max=100,
    max_table_entries=50_000,
    watched=3,
    unwatched="",
    watch_problem="",
    has_fusectl=True,
    front_remark="",
    request_timeouts={"default_request_timeout": 0, "max_request_timeout": 0},
    commands=((1, "/sbin/init"),),
)
FLUID = (
    "fluid-csi start --nodeid=n --feature-gates=A=false,FuseRecovery=true --prune-path=/runtime-mnt"
)


def unwell(findings: Any) -> list[tuple[str, str, str]]:
    found = [f for f in findings if f.level is not Level.OK]
    assert all(f.advice for f in found)
    return [(f.level.value, f.check, f.text) for f in found]


@pytest.mark.parametrize(
    ("sources", "levels"),
    [
        ([], []),
        ([SourceFacts("/a", ""), SourceFacts("/b", "")], ["ok"]),
        ([SourceFacts("/a", ""), SourceFacts("/b", "/ belongs to uid 5")], ["warn"]),
        ([SourceFacts("/a", "x"), SourceFacts("/b", "y")], ["warn", "warn"]),
    ],
)
def test_sources_at_which_others_can_mount(sources: list[SourceFacts], levels: list[str]) -> None:
    found = list(source_findings(sources))
    assert [finding.level.value for finding in found] == levels
    texts = [f"{source.path}: {source.problem}" for source in sources if source.problem]
    assert [text for _, _, text in unwell(found)] == texts


def test_a_good_node_needs_nobody() -> None:
    assert unwell(node_findings(NODE)) == []


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"daemon_pid": 0}, ("warn", "daemon", "not running")),
        ({"way": "", "way_problem": "no open_tree"}, ("fail", "kernel", "no open_tree")),
        (
            {"way": "staged"},
            ("warn", "kernel", "Linux 6.18.0 replaces mounts staged, an older way"),
        ),
        (
            {"capabilities": NODE.capabilities & ~(1 << 21) & ~(1 << 19)},
            ("fail", "privileges", "missing: CAP_SYS_PTRACE CAP_SYS_ADMIN"),
        ),
        (
            {"own_namespace": 8},
            (
                "fail",
                "namespace",
                "a mount namespace of its own: no pod would see what is mounted there",
            ),
        ),
        (
            {"front_remark": "there is no system user fusewatchd"},
            ("warn", "user", "there is no system user fusewatchd"),
        ),
        ({"kubelet": NOT_FOUND}, ("fail", "kubelet root", "no directory with pods was found")),
        (
            {"table": parse_mount_table(PRIVATE)},
            (
                "warn",
                "propagation",
                "/ is not shared: what drivers mount in their pods stays there",
            ),
        ),
        (
            {"table": parse_mount_table(ROOT + DATA)},
            (
                "warn",
                "propagation",
                "/var/lib is not shared: what drivers mount in their pods stays there",
            ),
        ),
        (
            {"namespace_shortage": "used up: user.max_mnt_namespaces (5)"},
            (
                "fail",
                "mount namespaces",
                "no mount namespace can be made: used up: user.max_mnt_namespaces (5);"
                " nothing is replaced until one is to be had: the kernel counts a new mount as a"
                " namespace until it is attached",
            ),
        ),
        (
            {"request_timeouts": {"default_request_timeout": 60, "max_request_timeout": 0}},
            (
                "warn",
                "request timeout",
                "the kernel cuts a FUSE connection whose request waits for too long:"
                " fs.fuse.default_request_timeout is 60, fs.fuse.max_request_timeout is 0",
            ),
        ),
        (
            {"has_fusectl": False},
            (
                "warn",
                "fusectl",
                "not mounted: hung servers cannot be told from slow ones, nor aborted",
            ),
        ),
        (
            {"mount_max": 1},
            ("fail", "mount table", "1 mounts, the limit is 0: nothing would be replaced"),
        ),
        (
            {"max_table_entries": 1},
            ("fail", "mount table", "1 mounts, the limit is 1: nothing would be replaced"),
        ),
        (
            {"commands": ((9, FLUID),)},
            (
                "warn",
                "recoverers",
                "Fluid's FuseRecovery is on (process 9): two repair the same binds",
            ),
        ),
    ],
)
def test_what_is_wrong_with_a_node(change: dict[str, Any], finding: tuple[str, str, str]) -> None:
    assert unwell(node_findings(replace(NODE, **change))) == [finding]


@pytest.mark.parametrize(
    ("command", "is_on"),
    [
        (FLUID, True),
        ("fluid-csi start --feature-gates FuseRecovery=1", True),
        ("fluid-csi start --feature-gates=FuseRecovery=false", False),
        ("fluid-csi start --feature-gates=", False),
        ("kubelet --feature-gates=FuseRecoveryX=true", False),
        ("grep FuseRecovery=true", False),
        ("", False),
    ],
)
def test_fluids_own_recovery(command: str, is_on: bool) -> None:
    assert has_fuse_recovery(command) == is_on


NOW = 1_700_000_000.0
EVERY = permissions_for(volume_events=True, node_condition=True)
ALLOWED = tuple(replace(permission, is_allowed=True) for permission in EVERY)


def all_but(text: str) -> tuple[Permission, ...]:
    return tuple(replace(p, is_allowed=p.text != text) for p in EVERY)


GOOD = ServerFacts("https://s", server_time=NOW, asked_at=NOW)
TOKEN = TokenFacts("kubelet token", "/t", expires_at=NOW + 3600)
CLUSTER = ClusterFacts(NOW, (TOKEN,), GOOD, 3, GOOD, ALLOWED)


def test_a_good_cluster_and_none_at_all_need_nobody() -> None:
    assert unwell(cluster_findings(CLUSTER)) == []
    assert unwell(cluster_findings(ClusterFacts(NOW, (), None, 0, None, ()))) == []


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (
            {"tokens": (replace(TOKEN, problem="/t: others can read it"),)},
            ("fail", "kubelet token", "/t: others can read it"),
        ),
        (
            {"tokens": (replace(TOKEN, expires_at=NOW - 7200),)},
            ("fail", "kubelet token", "/t expired 2 hours ago"),
        ),
        (
            {"tokens": (replace(TOKEN, expires_at=NOW + 90),)},
            ("warn", "kubelet token", "/t expires in 90 seconds"),
        ),
        (
            {"kubelet": replace(GOOD, problem="403 Forbidden", code=403)},
            ("fail", "kubelet", "403 Forbidden"),
        ),
        (
            {"apiserver": replace(GOOD, problem="refused")},
            ("fail", "API server", "refused"),
        ),
        (
            {"permissions": all_but("patch events.events.k8s.io")},
            ("fail", "API server", "https://s: may not patch events.events.k8s.io"),
        ),
        (
            {"permissions": all_but("patch nodes/status")},
            ("fail", "API server", "https://s: may not patch nodes/status"),
        ),
        (
            {"permissions": all_but("get datasets.data.fluid.io")},
            (
                "warn",
                "API server",
                "https://s: may not get datasets.data.fluid.io: no Events on Fluid's Datasets",
            ),
        ),
        (
            {"kubelet": replace(GOOD, server_time=NOW - 10)},
            ("warn", "clock", "10 s ahead of the kubelet"),
        ),
        (
            {"apiserver": replace(GOOD, server_time=NOW + 90)},
            ("fail", "clock", "90 s behind the API server"),
        ),
    ],
)
def test_what_is_wrong_with_a_cluster(
    change: dict[str, Any], finding: tuple[str, str, str]
) -> None:
    assert unwell(cluster_findings(replace(CLUSTER, **change))) == [finding]


def test_no_permission_is_asked_for_without_need() -> None:
    least = permissions_for(volume_events=False, node_condition=False)
    assert [p.text for p in least] == [
        "create events.events.k8s.io", "patch events.events.k8s.io", "list nodes",
    ]  # fmt: skip


def jwt(claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{body}.sig"


@pytest.mark.parametrize(
    ("token", "expiry"),
    [
        (jwt({"exp": 12}), 12.0),
        (jwt({"exp": 12.5, "iat": 1}), 12.5),
        (jwt({}), None),
        (jwt([]), None),
        (jwt({"exp": True}), None),
        (jwt({"exp": "12"}), None),
        (jwt({"exp": 10**400}), None),
        ("opaque", None),
        ("a.!!!.c", None),
        ("a.\xff.c", None),
    ],
)
def test_the_end_of_a_token(token: str, expiry: float | None) -> None:
    assert token_expiry(token) == expiry


def bind(verdict: str = "healthy", **change: Any) -> dict[str, Any]:
    source = {"path": "/s", "candidates": ["/s"], "why": "", **change.pop("source", {})}
    pod = {"namespace": "demo", "name": "web", "uid": "u", **change.pop("pod", {})}
    return {
        "kind": "publish",
        "refusal": None,
        "verdict": verdict,
        "source": source,
        "pod": pod,
        **change,
    }


@pytest.mark.parametrize(
    ("binds", "finding"),
    [
        (
            [bind(), bind(kind="container")],
            ("ok", "would be recovered (1 on the host, 1 in containers) from /s"),
        ),
        (
            [bind(), bind("stale", refusal="source_missing")],
            ("fail", "1 of 2 mounts are stale: source_missing"),
        ),
        (
            [bind(source={"path": None, "candidates": [], "why": "seen too late"})],
            ("warn", "would not be recovered: no source is known (seen too late)"),
        ),
        (
            [bind(source={"candidates": ["/s", "/t"]})],
            ("warn", "would not be recovered: two sources are possible"),
        ),
        (
            [bind(refusal="disabled")],
            ("ok", "would be left alone, as its pod or the configuration says"),
        ),
        (
            [bind(refusal="report_only")],
            ("warn", "would be reported and not repaired"),
        ),
    ],
)
def test_what_would_happen_to_a_pod(binds: list[dict[str, Any]], finding: tuple[str, str]) -> None:
    (found,) = pod_findings(binds, {})
    assert (found.level.value, found.text) == finding
    assert found.check == "pod demo/web"
    assert bool(found.advice) == (found.level is not Level.OK)


def test_pods_get_their_names_and_the_worst_come_first() -> None:
    nameless = bind("stale", pod={"name": None, "namespace": None, "uid": "x"})
    found = list(pod_findings([bind(), nameless], {"x": "demo/db"}))
    assert [f.check for f in found] == ["pod demo/db", "pod demo/web"]
    assert [f.text for f in pod_findings([], {})] == ["none uses a FUSE volume"]


def test_lines_fit_and_say_what_to_do() -> None:
    findings: list[Finding] = [
        ok("kernel", "fine"),
        warn("a-long-name-of-a-key", "word " * 40, "do this"),
        fail("kubelet", "no answer", "see to it"),
        *(ok(f"pod demo/p{n}", "would be recovered") for n in range(MAX_FINE_PODS + 3)),
    ]
    lines = table(findings, 80, color=False).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "ok    kernel           fine"
    assert "                       → do this" in lines
    assert f"{' ' * 6}and 3 more pods that are ok" in lines
    assert lines[-1] == "14 ok, 1 warning, 1 failed"
    assert "\x1b[1;31mfail\x1b[0m" in table(findings, 80, color=True)
    assert (exit_code(findings), exit_code(findings[:2])) == (1, 0)
    assert document(findings)["totals"] == {"ok": 14, "warn": 1, "fail": 1}
    assert document(findings)["findings"][2] == {
        "level": "fail", "check": "kubelet", "text": "no answer", "advice": "see to it",
    }  # fmt: skip


def test_who_is_over_a_quota_is_named() -> None:
    of_pod = {"namespace": "shop", "name": "web-0", "uid": "uid-a", "deleting": False}
    entry = {"owner": "pod", "pod": of_pod, "resource": "binds", "limit": 64, "wanted": 6000}
    of_users = {"owner": "foreign", "pod": None, "resource": "questions", "limit": 64}
    refused = [{**entry, "example": None}, {**of_users, "wanted": None, "example": "of user 1000"}]
    assert [(f.level, f.text) for f in quota_findings({"refused_owners": refused})] == [
        (Level.WARN, "pod shop/web-0: binds, 6000 wanted, the limit is 64"),
        (Level.WARN, "local users: questions, the limit is 64 (of user 1000)"),
    ]
    assert [f.level for f in quota_findings({"refused_owners": []})] == [Level.OK]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"unwatched": "2 directories cannot be watched"},
            "2 directories cannot be watched; these pods are noticed by their mounts, and every"
            " look_seconds",
        ),
        (
            {"watch_problem": "used up: fs.inotify.max_user_instances (128)"},
            "nothing can be watched, used up: fs.inotify.max_user_instances (128); new pods are"
            " noticed by their mounts, and every look_seconds",
        ),
    ],
)
def test_inotify_is_tried_where_no_daemon_runs_that_has_a_watch(
    change: dict[str, str], text: str
) -> None:
    assert unwell(node_findings(replace(NODE, **change))) == []
    found = unwell(node_findings(replace(NODE, daemon_pid=0, **change)))
    assert found[1:] == [("warn", "inotify", text)]


def test_what_the_daemon_goes_on_without_is_a_warning() -> None:
    assert unwell(degraded_findings({"degraded": []})) == []
    one = {"what": "fanotify", "why": "used up", "instead": "all is read"}
    assert unwell(degraded_findings({"degraded": [one]})) == [
        ("warn", "degraded", "without fanotify: used up; all is read")
    ]


@pytest.mark.parametrize(
    ("problem", "code", "key", "words"),
    [
        ("401 Unauthorized", 401, "apiserver.kubeconfig", "see apiserver.kubeconfig"),
        ("401 Unauthorized", 401, "apiserver.token_file", "see apiserver.token_file"),
        ("refused", 0, "apiserver.token_file", "see apiserver.url and apiserver.ca_file"),
        (
            "TLS: SSLV3_ALERT_CERTIFICATE_EXPIRED",
            0,
            "apiserver.kubeconfig",
            "the client certificate of apiserver.kubeconfig has expired",
        ),
        (
            "k: users.exec: not supported; expected a token or certificate",
            0,
            "apiserver.kubeconfig",
            "set apiserver.url and apiserver.token_file",
        ),
    ],
)
def test_the_advice_is_about_the_credentials_that_are_in_use(
    problem: str, code: int, key: str, words: str
) -> None:
    server = ServerFacts("https://s", problem, code, credentials=key)
    (found,) = [
        finding
        for finding in cluster_findings(replace(CLUSTER, apiserver=server))
        if finding.check == "API server"
    ]
    assert found.advice.startswith(words)
