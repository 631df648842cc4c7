"""The status document, what it says by its exit code, and the table made of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusewatchd.model.actions import OutcomeStatus
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.findings import Finding, Gap, SourceAnswer, SourcePath
from fusewatchd.model.ledger import TargetState
from fusewatchd.model.mounts import Device, MountNamespace, NamespaceKind, TargetKey
from fusewatchd.model.outages import Phase
from fusewatchd.model.plan import Pause, RecoveryMode, Refusal
from fusewatchd.model.pods import BindKind
from fusewatchd.model.quota import FOREIGN, Owner, RefusedOwner, Resource, follow
from fusewatchd.model.quota import pod as pod_owner
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.status.document import MAX_NAMESPACES, exit_code, status_document
from fusewatchd.status.find_binds import narrowed
from fusewatchd.status.table import MIN_WIDTH, View, status_table
from fusewatchd.status.values import Clocks, Document
from fusewatchd.text import is_coloured
from tests.unit.cycles import (
    NEW,
    OLD,
    bind,
    cycle,
    finding,
    incident,
    mount,
    outage,
    outcome,
    pod,
    with_ledger,
)

CLOCKS = Clocks(now_wall=1_700_000_000.0, now_monotonic=100.0, started_wall=1_699_999_000.0)
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def document(of: CycleReport, states: Mapping[TargetKey, TargetState] | None = None) -> Document:
    of = with_ledger(of, states=states) if states else of
    made = status_document(of, CLOCKS, version="1.2.3", way="beneath")
    assert json.loads(json.dumps(made)) == made
    return made


def only_bind(of: CycleReport, states: Mapping[TargetKey, TargetState] | None = None) -> Document:
    (found,) = document(of, states)["binds"]
    assert isinstance(found, dict)
    return found


# ------------------------------------------------------------------------- document


def test_everything_about_one_bind() -> None:
    stale = finding(bind(depth=2), Verdict.STALE, source=NEW, evidence="not connected")
    refused = [Refusal(stale, Reason.BACK_OFF, 103.0)]
    failed = replace(
        outcome(bind(), OutcomeStatus.FAILED, Reason.SYSTEM_CALL, at=99.0, detail="move_mount"),
        errno=28,
    )
    states = {stale.bind.key: TargetState(Phase.COOLDOWN, 3, 103.0, last_outcome=failed)}
    assert only_bind(cycle(stale, refused=refused), states) == {
        "pod": {"namespace": "shop", "name": "web-0", "uid": "api-uid-a", "deleting": False},
        "directory_uid": "uid-a",
        "volume": "pv-1",
        "claim": None,
        "container": None,
        "kind": "publish",
        "namespace": None,
        "mount_point": "/var/lib/kubelet/pods/uid-a/volumes/kubernetes.io~csi/pv-1/mount",
        "mount_id": 100,
        "device": "0:133",
        "fs_type": "fuse.juicefs",
        "driver": "csi.juicefs.com",
        "depth": 2,
        "directory": None,
        "hidden_files": None,
        "dead_layers": 0,
        "source": {
            "path": "/var/lib/driver/volume-1",
            "candidates": ["/var/lib/driver/volume-1"],
            "rule": "lineage",
            "why": "mounted there while healthy",
        },
        "source_device": "0:140",
        "verdict": "stale",
        "evidence": "not connected",
        "refusal": "system_call",
        "retry_at": "2023-11-14T22:13:23.000Z",
        "backs_off": True,
        "detail": None,
        "planned": None,
        "is_in_flight": False,
        "undone": 0,
        "phase": "cooldown",
        "failures": 3,
        "last_attempt": {
            "at": "2023-11-14T22:13:19.000Z",
            "outcome": "failed",
            "reason": "system_call",
            "errno": 28,
            "detail": "move_mount",
        },
        "last_recovery": None,
    }


def test_last_recovery_says_when_and_how_fast() -> None:
    healed = finding(bind())
    states = {healed.bind.key: TargetState(last_outcome=outcome(bind(), at=90.0))}
    made = document(cycle(healed), states)
    expected = {"at": "2023-11-14T22:13:10.000Z", "took_ms": 2.0, "narrower": None, "wider": None}
    assert made["binds"][0]["last_recovery"] == expected
    assert made["last_recovery"] == expected


def test_bare_bind_and_unknown_pod() -> None:
    bare = only_bind(cycle(finding(bind(device=None), Verdict.BARE), pods=None))
    assert bare["pod"] == {"namespace": None, "name": None, "uid": "uid-a", "deleting": None}
    assert (bare["device"], bare["mount_id"], bare["fs_type"]) == (None, None, None)


def test_the_whole_node() -> None:
    foreign = MountNamespace(
        5, 77, 1, NamespaceKind.FOREIGN, "", "", (mount("/x"), mount("/y", NEW)), False
    )
    container = replace(foreign, inode=6, kind=NamespaceKind.CONTAINER)
    of = cycle(
        finding(bind(), Verdict.STALE),
        finding(bind("uid-b", device=NEW)),
        namespaces=(foreign, container),
        foreign_stale=1,
        gaps=[Gap("kubelet", "connection refused")],
        number=12,
    )
    of = with_ledger(of, incidents=[incident(bind())])
    made = status_document(of, CLOCKS, version="1.2.3", way="beneath")
    assert made["totals"]["binds"] == made["totals"]["volumes"] == made["totals"]["pods"] == 2
    assert made["totals"]["verdicts"]["stale"] == 1
    assert made["totals"]["verdicts"]["hung"] == 0
    assert made["namespaces"] == {
        "containers": 1,
        "not_entered": [
            {"inode": 5, "pid": 77, "pod_uid": None, "fuse_mounts": 2, "stale_mounts": 1}
        ],
        "not_entered_count": 1,
        "not_entered_stale_mounts": 1,
    }
    assert made["gaps"] == [{"source": "kubelet", "reason": "connection refused"}]
    assert made["incidents"][0]["server_gone_at"] == "2023-11-14T22:11:50.000Z"
    assert made["incidents"][0]["open"] == 1
    assert (made["version"], made["way"], made["cycle"]) == ("1.2.3", "beneath", 12)
    assert made["started_at"] == "2023-11-14T21:56:40.000Z"


def test_namespaces_are_listed_up_to_a_bound() -> None:
    foreign = MountNamespace(5, 0, 1, NamespaceKind.FOREIGN, "", "", ())
    many = tuple(replace(foreign, inode=n) for n in range(MAX_NAMESPACES + 50))
    namespaces = document(cycle(namespaces=many))["namespaces"]
    assert len(namespaces["not_entered"]) == MAX_NAMESPACES
    assert namespaces["not_entered_count"] == MAX_NAMESPACES + 50


def test_foreign_text_is_escaped() -> None:
    evil = "a\x1b[31m\n\udcff"
    hostile = bind(volume=evil, driver=evil)
    hostile = replace(
        hostile,
        mount=replace(mount(evil), fs_type=evil),
        key=TargetKey(0, f"/{evil}"),
        source=SourceAnswer(evil, evil, (SourcePath(f"/{evil}"),)),
        path=replace(hostile.path, container=evil),
    )
    pods = {"uid-a": replace(pod("uid-a", evil), namespace=evil)}
    of = cycle(finding(hostile, evidence=evil), pods=pods, gaps=[Gap(evil, evil)])
    made = document(of)
    for text in (json.dumps(made), status_table(made, View(200))):
        assert "\x1b" not in text
        assert "\\u001b" not in text
        assert "udcff" not in text


def test_outages_of_late_are_told_newest_first_and_not_all_of_them() -> None:
    made = document(cycle(finding(bind())))
    made["outages"] = [
        {
            "source": f"/src/{n}", "server_gone_at": f"2026-01-01T00:00:{n:02}.000Z",
            "noticed_at": None, "lasted_ms": 1500.0, "binds": 2, "recovered": 2,
        }
        for n in range(20)
    ]  # fmt: skip
    lines = [ln for ln in status_table(made, View(100)).splitlines() if "Outage at" in ln]
    when = "2026-01-01 00:00:19Z"
    assert lines[0] == f"Outage at {when}, 2 of 2 mounts recovered after 1.5 s: /src/19"
    assert len(lines) == 8


# ------------------------------------------------------------------------ exit code


@pytest.mark.parametrize(
    ("verdict", "code"),
    [
        (Verdict.HEALTHY, 0),
        (Verdict.SLOW, 0),
        (Verdict.HELD, 0),
        (Verdict.SUPERSEDED, 0),
        (Verdict.ORPHANED, 0),
        (Verdict.STALE, 1),
        (Verdict.HUNG, 1),
        (Verdict.BARE, 1),
        (Verdict.ON_DISK, 1),
        (Verdict.UNKNOWN, 2),
    ],
)
def test_exit_code_of_a_verdict(verdict: Verdict, code: int) -> None:
    healthy = finding(bind("uid-b"))
    assert exit_code(document(cycle(healthy, finding(bind(), verdict)))) == code


def test_exit_code_covers_every_verdict() -> None:
    (mark,) = [m for m in test_exit_code_of_a_verdict.pytestmark if m.name == "parametrize"]  # type: ignore[attr-defined]
    assert {verdict for verdict, _ in mark.args[1]} == set(Verdict)


@pytest.mark.parametrize(
    ("gaps", "root", "code"),
    [
        ([], "/var/lib/kubelet", 0),
        (["kubelet"], "/var/lib/kubelet", 0),
        (["fusectl"], "/var/lib/kubelet", 0),
        (["namespaces"], "/var/lib/kubelet", 2),
        (["kubelet", "something new"], "/var/lib/kubelet", 2),
        (["kubelet"], "", 2),
    ],
)
def test_what_could_not_be_seen_is_unknown_never_healthy(
    gaps: list[str], root: str, code: int
) -> None:
    holes = [Gap(source, "no") for source in gaps]
    assert exit_code(document(cycle(gaps=holes, kubelet_root=root))) == code
    stale = finding(bind(), Verdict.STALE)
    assert exit_code(document(cycle(stale, gaps=holes, kubelet_root=root))) == 1


# ---------------------------------------------------------------------------- table


def test_the_table_of_an_outage_at_80_columns() -> None:
    steps = outage()
    of = with_ledger(steps[1], incidents=steps[1].incidents_opened)
    made = status_document(of, CLOCKS, version="1", way="beneath", node="node-7")
    assert status_table(made, View(80)).splitlines() == [
        "node-7: 3 of 3 mounts broken (3 stale), 2 volumes, 2 pods",
        "",
        "  VERDICT     POD         MOUNT      DETAIL",
        "",
        "source_missing since 22:11:50Z: /var/lib/driver/volume-1  csi.juicefs.com  (by …",
        "  stale       shop/web-0  pv-1       not connected",
        "  stale       shop/web-0  app:/data  not connected",
        "  stale       shop/web-1  pv-1       not connected",
        "",
        "Outage since 22:11:50Z: 3 of 3 mounts still broken, source not mounted: /v…ume-1",
        "",
        "Next: fusewatchd explain shop/web-0",
    ]


def test_recovered_binds_say_when_and_how_fast() -> None:
    healed = finding(bind())
    states = {healed.bind.key: TargetState(last_outcome=outcome(bind(), at=90.0))}
    lines = status_table(document(cycle(healed), states), View(100)).splitlines()
    assert lines[0].endswith("(1 healthy), 1 volume, 1 pod; last recovery 22:13:10Z")
    assert lines[-3:] == [
        "1 healthy mount of 1 volume in 1 pod (--all lists them)",
        "",
        "Nothing to do.",
    ]


def test_the_worst_comes_first_and_unknown_sources_last() -> None:
    lost = replace(bind("uid-b", volume="pv-9"), source=SourceAnswer("", "never seen mounted"))
    of = cycle(
        finding(lost, Verdict.STALE, refusal=Reason.NO_SOURCE),
        finding(bind()),
        finding(bind("uid-b"), Verdict.HUNG, evidence="no answer, 3 requests waiting"),
    )
    text = status_table(document(of), View(100))
    assert [line.split()[0] for line in text.splitlines() if line.startswith("  ")] == [
        "VERDICT",
        "hung",
        "stale",
    ]
    assert "no_source: never seen mounted" in text
    assert "no answer, 3 requests waiting" in text


def test_what_was_not_seen_and_not_entered_is_at_the_end() -> None:
    foreign = MountNamespace(5, 1, 1, NamespaceKind.FOREIGN, "", "", ())
    of = cycle(namespaces=(foreign,), gaps=[Gap("kubelet", "connection refused")])
    assert status_table(document(of), View(100)).splitlines() == [
        "no FUSE volumes in pods",
        "",
        "Could not see kubelet: connection refused",
        "",
        "1 other mount namespace with FUSE mounts, never entered (0 stale there)",
        "",
        "Next: fusewatchd doctor",
    ]


def test_sources_that_come_and_go_are_named() -> None:
    stale = finding(bind(), Verdict.STALE, source=NEW)
    refused = [Refusal(stale, Reason.SOURCE_FLAPPING, 101.5)]
    of = replace(cycle(stale, refused=refused), pauses=(Pause("/src/a\n", 7, 0.52),))
    made = document(of)
    assert made["flapping_sources"] == [
        {"source": "/src/a\\x0a", "in_vain": 7, "wait_seconds": 0.52}
    ]
    assert made["binds"][0]["refusal"] == "source_flapping"
    assert made["binds"][0]["retry_at"] == "2023-11-14T22:13:21.500Z"
    lines = status_table(made, View(100)).splitlines()
    assert "Flapping source, must stay for 0.5 s: /src/a\\x0a" in lines


def test_what_somebody_undoes_waits_for_its_own_reason() -> None:
    stale = finding(bind(), Verdict.STALE, source=NEW)
    states = {stale.bind.key: TargetState(retry_at=103.0, undone=1, last_outcome=outcome(bind()))}
    found = only_bind(cycle(stale, refused=[Refusal(stale, Reason.BACK_OFF, 103.0)]), states)
    assert found["refusal"] == "back_off"


def test_colour_only_when_asked_for_and_changes_nothing_else() -> None:
    made = document(outage()[1])
    plain, coloured = (status_table(made, View(80, is_coloured=color)) for color in (False, True))
    assert "\x1b" not in plain
    assert "\x1b[1;31m" in coloured
    assert ESCAPE.sub("", coloured) == plain


kinds = st.sampled_from(list(BindKind))
names = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=300)


@st.composite
def findings(draw: st.DrawFn) -> Finding:
    device = draw(st.sampled_from([OLD, NEW, Device(0, 7), None]))
    of = bind(
        draw(st.sampled_from(["uid-a", "uid-b", "x" * 40])),
        draw(kinds),
        device,
        driver=draw(names),
        volume=draw(names),
        depth=draw(st.integers(0, 3)),
    )
    paths = (SourcePath("/" + draw(names)),) * draw(st.integers(0, 2))
    source = SourceAnswer(draw(names), draw(names), paths)
    verdict, refusal = draw(st.sampled_from(list(Verdict))), draw(st.sampled_from(list(Reason)))
    return finding(replace(of, source=source), verdict, refusal=refusal, evidence=draw(names))


@settings(deadline=None, max_examples=60)
@given(st.lists(findings(), max_size=6), st.integers(0, 200), st.booleans())
def test_no_line_is_ever_too_wide_and_no_bind_is_missing(
    found: list[Finding], width: int, color: bool
) -> None:
    made = document(cycle(*found))
    view = View(width, is_coloured=color, shows_all=True)
    lines = ESCAPE.sub("", status_table(made, view)).splitlines()
    assert all(len(line) <= max(width, MIN_WIDTH) for line in lines)
    rows = [line.split()[0] for line in lines if line.startswith("  ")]
    verdicts = sorted(row for row in rows if row != "VERDICT")
    assert verdicts == sorted(f.verdict.value for f in found)


def over_quota(*owners: Owner, resource: Resource = Resource.BINDS) -> CycleReport:
    refused = [RefusedOwner(owner, resource, 64, 6000, "at /tmp\n/1") for owner in owners]
    return with_ledger(cycle(), refused_owners=follow({}, refused, 10.0))


def test_an_owner_over_its_quota_is_named() -> None:
    made = document(over_quota(pod_owner("uid-a"), pod_owner("uid-z"), FOREIGN))
    first = made["refused_owners"][0]
    assert (first["pod"]["name"], first["reason"], first["resource"]) == (
        "web-0", "quota", "binds",
    )  # fmt: skip
    assert (first["limit"], first["wanted"], first["example"]) == (64, 6000, "at /tmp\\x0a/1")
    assert first["since"] == "2023-11-14T22:11:50.000Z"
    text = status_table(made, View(120))
    assert "Above its quota since 22:11:50Z: pod shop/web-0: binds, 6000 wanted" in text
    assert "pod uid-z: binds" in text
    assert "local users: binds" in text


def test_where_a_pod_is_over_its_quota_not_all_is_seen_and_users_hide_no_bind() -> None:
    assert exit_code(document(over_quota(pod_owner("uid-a")))) == 2
    assert exit_code(document(over_quota(FOREIGN))) == 0


@pytest.mark.parametrize("resource", [Resource.DESCRIPTORS, Resource.SERVERS, Resource.BUDGET])
def test_what_hides_no_bind_leaves_the_others_healthy(resource: Resource) -> None:
    assert exit_code(document(over_quota(pod_owner("uid-a"), resource=resource))) == 0


def many(healthy: int) -> Document:
    """Return a document of one broken mount among healthy ones."""
    found = [finding(bind(f"uid-{n:04}", volume=f"pv-{n:04}")) for n in range(healthy)]
    dead = finding(bind("uid-b"), Verdict.STALE, refusal=Reason.SOURCE_DEAD)
    return document(cycle(*found, dead))


def test_what_is_broken_is_seen_first_however_much_is_well() -> None:
    lines = status_table(many(400), View(80)).splitlines()
    assert len(lines) < 12
    assert lines[0].startswith("1 of 401 mounts broken (400 healthy, 1 stale)")
    assert lines[4].startswith("source_dead: ")
    assert lines[5].startswith("  stale")
    assert "400 healthy mounts of 400 volumes in 400 pods (--all lists them)" in lines
    assert len(status_table(many(400), View(80, shows_all=True)).splitlines()) > 400


@pytest.mark.parametrize("height", [10, 24, 40])
def test_a_screen_keeps_its_first_and_last_line(height: int) -> None:
    lines = status_table(many(400), View(80, height, shows_all=True)).splitlines()
    assert len(lines) == height
    assert lines[0].startswith("1 of 401 mounts broken")
    assert lines[-1] == "Next: fusewatchd explain shop/web-1"
    assert re.fullmatch(r"\(\d+ more lines\)", lines[-2])


def test_report_mode_cannot_be_overlooked() -> None:
    made = document(replace(cycle(finding(bind())), mode=RecoveryMode.REPORT))
    assert status_table(made, View(80)).splitlines()[1].startswith("Report mode: nothing is")


@pytest.mark.parametrize("wanted", ["shop/web-1", "pv-9"])
def test_a_pod_or_a_volume_alone(wanted: str) -> None:
    of = cycle(finding(bind()), finding(bind("uid-b", volume="pv-9"), Verdict.STALE))
    made = narrowed(document(of), wanted)
    assert made is not None
    assert [one["volume"] for one in made["binds"]] == ["pv-9"]
    assert made["totals"]["verdicts"]["stale"] == made["totals"]["binds"] == exit_code(made) == 1
    assert narrowed(document(of), "nothing/such") is None


@pytest.mark.parametrize(
    ("choice", "environment", "terminal", "coloured"),
    [
        ("auto", {}, True, True),
        ("auto", {}, False, False),
        ("auto", {"NO_COLOR": "1"}, True, False),
        ("auto", {"NO_COLOR": ""}, True, True),
        ("always", {"NO_COLOR": "1"}, False, True),
        ("never", {}, True, False),
    ],
)
def test_colour(choice: str, environment: dict[str, str], terminal: bool, coloured: bool) -> None:
    assert is_coloured(choice, environment, terminal) is coloured
