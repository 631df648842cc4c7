"""What is said of a mount, for every verdict and every reason, and which mount is meant."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from fusewatchd.model.actions import OutcomeStatus
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.findings import SourceAnswer, SourcePath
from fusewatchd.model.ledger import TargetState
from fusewatchd.model.mounts import MountNamespace, NamespaceKind, TargetKey
from fusewatchd.model.outages import Incident, Outage, Phase
from fusewatchd.model.plan import Pause, RecoveryMode, Refusal, SupersededPolicy
from fusewatchd.model.pods import BindKind
from fusewatchd.model.servers import Answer, Connection, FuseServer, OomKill, ServerEnd
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.status.advice import (
    NOT_RUNNING,
    UNCLAIMED,
    VERDICTS,
    Advice,
    filled,
    values_of,
)
from fusewatchd.status.document import status_document
from fusewatchd.status.explain import KINDS, Asked, exit_code, explain
from fusewatchd.status.explanation_text import MAX_MOUNTS, explanation_text, token_text
from fusewatchd.status.find_binds import MAX_NEAR, find, near
from fusewatchd.status.reasons import REASONS
from fusewatchd.status.values import Clocks, Document
from tests.unit.cycles import (
    NEW,
    OLD,
    SOURCE,
    bind,
    cycle,
    finding,
    incident,
    mount,
    outcome,
    replace_action,
    with_ledger,
)

CLOCKS = Clocks(now_wall=1_700_000_000.0, now_monotonic=100.0, started_wall=1_699_999_000.0)
HOST, INSIDE = bind(), bind(kind=BindKind.CONTAINER)
POINT = HOST.key.mount_point


def document(
    of: CycleReport,
    states: Mapping[TargetKey, TargetState] | None = None,
    incidents: Iterable[Incident] = (),
    outages: Iterable[Outage] = (),
    mode: RecoveryMode = RecoveryMode.RECOVER,
    superseded: SupersededPolicy = SupersededPolicy.REPORT,
) -> Document:
    of = with_ledger(of, incidents=incidents, outages=outages, states=states)
    of = replace(of, mode=mode, superseded=superseded)
    made = status_document(of, CLOCKS, version="1", way="beneath")
    return json.loads(json.dumps(made))  # type: ignore[no-any-return]


def says(of: Document, target: str = POINT, asked: Asked = Asked.DAEMON) -> dict[str, str]:
    (only,) = explain(of, find(of, target), target, asked)["mounts"]
    found: dict[str, str] = {}
    for line in only["says"]:
        found[line["about"]] = f"{found.get(line['about'], '')}\n{line['text']}".lstrip()
    return found


# ------------------------------------------------------------------------- the tables


def is_good(advice: Advice) -> bool:
    sentences = (advice.meaning, advice.todo, advice.then)
    return all(re.fullmatch(r"[^\n]{5,400}\.", text) for text in sentences)


def test_every_reason_and_every_verdict_is_explained() -> None:
    assert REASONS.keys() == set(Reason)
    assert VERDICTS.keys() == set(Verdict)
    every = [*REASONS.values(), *VERDICTS.values(), NOT_RUNNING, UNCLAIMED]
    assert [advice for advice in every if not is_good(advice)] == []
    assert len({advice.meaning for advice in every}) == len(every)


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.NONE])
def test_a_mount_held_back_says_why_what_to_do_and_what_is_next(reason: Reason) -> None:
    stale = finding(HOST, Verdict.STALE, refusal=reason, evidence="not connected; because")
    made = document(cycle(stale, refused=[Refusal(stale, reason)]))
    told = says(made)
    assert told["reason"] == f"{reason.value}: {REASONS[reason].meaning}"
    assert told["to do"] == filled(REASONS[reason].todo, values_of(made["binds"][0]))
    assert not re.search(r"{(mount|namespace|pod|source|volume)}", told["to do"])
    assert told["next"] == REASONS[reason].then
    assert told["evidence"] == "not connected; because"


@pytest.mark.parametrize("verdict", Verdict)
def test_without_a_reason_the_verdict_says_it(verdict: Verdict) -> None:
    made = document(cycle(finding(HOST, verdict)))
    told = says(made)
    advice = VERDICTS[verdict]
    todo = filled(advice.todo, values_of(made["binds"][0]))
    assert told["verdict"] == f"{verdict.value}: {advice.meaning}"
    assert (told["to do"], told["next"]) == (todo, advice.then)
    assert "reason" not in told


def test_settings_that_the_tables_name_are_there() -> None:
    example = Path(__file__).parents[3] / "conf" / "fusewatchd.yaml"
    keys = set(re.findall(r"^\s*#?\s*(\w+):", example.read_text(), re.MULTILINE))
    text = " ".join(
        sentence
        for advice in (*REASONS.values(), *VERDICTS.values())
        for sentence in (advice.meaning, advice.todo, advice.then)
    )
    named = re.findall(r"\b(?:recovery|hung|cleanup|probe|kubelet)\.([a-z_]+)\b", text)
    assert len(named) > 10
    assert set(named) <= keys


# --------------------------------------------------------------------- what it is, was


def test_who_and_what_it_is() -> None:
    told = says(document(cycle(finding(bind(depth=2)))))
    assert (told["pod"], told["volume"]) == ("shop/web-0, uid api-uid-a", "pv-1")
    assert told["kind"] == (
        "the volume on the host: fuse.juicefs, device 0:133, mount id 100, 2 layers,"
        " driver csi.juicefs.com"
    )
    assert told["identified"] == "by lineage: mounted there while healthy"
    assert told["history"] == "no outage is known"
    inside = says(document(cycle(finding(INSIDE)), None), "/data/x")
    assert inside["pod"].endswith("uid api-uid-a, container app")
    bare = says(document(cycle(finding(bind(device=None), Verdict.BARE), pods=None)))
    assert bare["pod"] == "uid uid-a"
    assert "nothing is mounted there" in bare["kind"]


@pytest.mark.parametrize(
    ("answer", "identified", "source"),
    [
        (SourceAnswer("", "never seen"), "not: never seen", "not known"),
        (SourceAnswer("fluid", "no dataset"), "by the driver module fluid: no dataset", "none"),
        (
            SourceAnswer("lineage", "w", (SourcePath("/a"), SourcePath("/b"))),
            "by lineage: w",
            "/a: nothing is mounted there now\n/b: nothing is mounted there now",
        ),
    ],
)
def test_how_it_was_identified(answer: SourceAnswer, identified: str, source: str) -> None:
    told = says(document(cycle(finding(replace(HOST, source=answer)))))
    assert (told["identified"], told["source"]) == (identified, source)


def with_source(of: CycleReport, device: object, **more: object) -> CycleReport:
    """Mount something at the source."""
    top = replace(mount(SOURCE, device, 900), **more)  # type: ignore[arg-type]
    table = of.snapshot.table.with_changes((), [top])
    return replace(of, snapshot=replace(of.snapshot, table=table))


@pytest.mark.parametrize(
    ("device", "root", "words"),
    [
        (OLD, "/", "fuse.juicefs, device 0:133, which this mount shows"),
        (NEW, "/", "fuse.juicefs, device 0:140, another one than this mount shows"),
        (NEW, "/x", "fuse.juicefs, device 0:140, root /x, another one than this mount shows"),
    ],
)
def test_what_is_at_the_source_now(device: object, root: str, words: str) -> None:
    of = with_source(cycle(finding(HOST)), device, root=root)
    assert says(document(of))["source"] == f"{SOURCE}: {words}"


def test_how_its_connection_answers() -> None:
    of = cycle(finding(HOST, Verdict.STALE))
    known = Connection(OLD, Answer.DISCONNECTED, 98.0, 98.1, 107, 3, server_gone_at=40.0)
    secret = "/sbin/juicefs mount redis://:hunter2@db"
    server = FuseServer(77, 1, (OLD,), secret, "uid-m", unit="juicefs.service")
    seen = replace(of.snapshot, connections={OLD: known}, servers={OLD: (server,)})
    assert says(document(replace(of, snapshot=seen)))["connection"] == (
        "has no server any more (Transport endpoint is not connected), asked 2.0 s ago,"
        " 3 requests wait, its server was gone 60.0 s ago,"
        " was served by juicefs (pid 77) of pod uid-m, unit juicefs.service"
    )


def test_a_server_that_is_silent_is_not_said_to_answer() -> None:
    of = cycle(finding(HOST, Verdict.HUNG))
    known = Connection(OLD, Answer.ANSWERED, 98.0, 90.0, waiting=1, is_overdue=True, is_hung=True)
    seen = replace(of.snapshot, connections={OLD: known})
    assert says(document(replace(of, snapshot=seen)))["connection"] == (
        "has not answered yet, asked 2.0 s ago, 1 request waits"
    )


@pytest.mark.parametrize("kind", BindKind)
def test_every_kind_of_bind_is_explained(kind: BindKind) -> None:
    told = says(document(cycle(finding(replace(HOST, path=replace(HOST.path, kind=kind))))))
    assert told["kind"].startswith(f"{KINDS[kind]}: fuse.juicefs")


def test_its_outages_and_attempts() -> None:
    over = Outage(OLD, SOURCE, 10.0, 20.0, 9.0, 19.99, 20.0, 3, 3)
    given_up = Outage(OLD, SOURCE, 30.0, 40.0, binds=1)
    drained = Outage(OLD, SOURCE, 51.0, 52.0, 51.0, 10.0, 52.0, 3, 3)
    other = Outage(NEW, "/elsewhere", 50.0, 60.0)
    failed = replace(
        outcome(HOST, OutcomeStatus.FAILED, Reason.SYSTEM_CALL, at=99.0, detail="move_mount"),
        errno=28,
    )
    states = {HOST.key: TargetState(Phase.COOLDOWN, 3, 103.0, last_outcome=failed)}
    stale = finding(HOST, Verdict.STALE, source=NEW)
    of = cycle(stale, refused=[Refusal(stale, Reason.BACK_OFF, 103.0)])
    told = says(document(of, states, [incident(HOST)], [over, given_up, drained, other]))
    assert told["history"].splitlines() == [
        "2023-11-14T22:11:49.000Z server gone, 3 mounts recovered after 11.0 s,"
        " 10.0 ms after the source was back",
        "2023-11-14T22:11:50.000Z server gone, source not back, 1 of 1 mount still broken",
        "2023-11-14T22:12:10.000Z found dead, over after 10.0 s, nothing was replaced",
        "2023-11-14T22:12:31.000Z server gone, 3 mounts recovered after 1.0 s,"
        " the new source was there before",
        "2023-11-14T22:13:19.000Z attempt failed, system_call: move_mount"
        " (No space left on device)",
    ]
    assert told["reason"].splitlines()[1] == (
        "back-off until 2023-11-14T22:13:23.000Z after 3 failures"
    )
    assert told["reason"].startswith("system_call: A system call failed")


def test_how_a_server_ended_and_that_there_is_nothing_to_come_back() -> None:
    end = ServerEnd(10.0, FuseServer(77, 1, (OLD,), name="juicefs"), OomKill.YES)
    ended = replace(incident(HOST), end=end)
    told = says(document(cycle(finding(HOST, Verdict.STALE)), None, [ended]))
    assert told["history"].endswith(
        " server gone: juicefs (pid 77), killed by the OOM killer;"
        " source not back, 1 of 1 mount still broken"
    )
    direct = replace(HOST, source=SourceAnswer("direct", "mounts in the pod"))
    alone = replace(incident(direct), source_path="")
    told = says(document(cycle(finding(direct, Verdict.STALE)), None, [alone]))
    assert told["history"].endswith(
        "server gone, no source to come back, 1 of 1 mount still broken"
    )


def test_a_recovery_that_somebody_undoes() -> None:
    stale = finding(HOST, Verdict.STALE, source=NEW)
    states = {HOST.key: TargetState(retry_at=103.0, last_outcome=outcome(HOST), undone=2)}
    told = says(document(cycle(stale, refused=[Refusal(stale, Reason.BACK_OFF, 103.0)]), states))
    assert "undone by another program, 2 times" in told["reason"]
    assert told["history"] == "2023-11-14T22:12:00.000Z this mount was replaced"


def test_a_source_that_comes_and_goes() -> None:
    stale = finding(HOST, Verdict.STALE, source=NEW)
    of = cycle(stale, refused=[Refusal(stale, Reason.SOURCE_FLAPPING, 101.0)])
    told = says(document(replace(of, pauses=(Pause(SOURCE, 7, 1.5),))))
    assert "has to stay for 1.5 s, 7 mounts of it were of no use" in told["reason"]


@pytest.mark.parametrize(
    ("answer", "verdict", "status"),
    [
        (Answer.ANSWERED, "healthy", 0),
        (Answer.DISCONNECTED, "stale", 1),
        (Answer.PENDING, "unknown", 2),
    ],
)
def test_a_mount_in_a_container_that_is_none_of_its_volumes(
    answer: Answer, verdict: str, status: int
) -> None:
    alien = mount("/host", NEW)
    inside = MountNamespace(7, 1, 1, NamespaceKind.CONTAINER, "uid-a", "0123456789", (alien,))
    of = replace(cycle(finding(HOST)), unclaimed=((inside, alien),))
    seen = replace(of.snapshot, connections={NEW: Connection(NEW, answer)})
    made = document(replace(of, snapshot=seen))
    assert points(made, "shop/web-0") == [POINT, "/host"]
    told = says(made, "shop/web-0:/host/x")
    assert told["identified"] == f"not: {UNCLAIMED.meaning}"
    assert (told["pod"], told["next"]) == (
        "shop/web-0, uid api-uid-a, container 0123456789",
        UNCLAIMED.then,
    )
    explanation = explain(made, find(made, "012345:/host"), "", Asked.DAEMON)
    assert explanation["mounts"][0]["bind"]["verdict"] == verdict
    assert exit_code(explanation) == status


# ------------------------------------------------------------------------ what is next


def test_what_is_about_to_be_done() -> None:
    stale = finding(HOST, Verdict.STALE, source=NEW)
    planned = says(document(cycle(stale, actions=[replace_action(HOST)])))
    assert planned["next"].startswith(f"now: replace {POINT}")
    states = {HOST.key: TargetState(is_in_flight=True)}
    assert says(document(cycle(stale), states))["next"] == "fusewatchd is replacing it now."


@pytest.mark.parametrize(
    ("asked", "mode", "held_back"),
    [
        (Asked.LOOK, "recover", NOT_RUNNING.meaning),
        (Asked.LOOK, "report", REASONS[Reason.REPORT_ONLY].meaning),
        (Asked.DAEMON, "report", REASONS[Reason.REPORT_ONLY].meaning),
    ],
)
def test_a_single_look_does_not_speak_of_its_own_restraint(
    asked: Asked, mode: str, held_back: str
) -> None:
    stale = finding(HOST, Verdict.STALE, source=NEW)
    of = document(
        cycle(stale, refused=[Refusal(stale, Reason.REPORT_ONLY)]), mode=RecoveryMode(mode)
    )
    told = says(of, asked=asked)
    assert told["reason"] == f"report_only: {held_back}"
    assert told["next"].startswith("Nothing, since no fusewatchd") is (asked is Asked.LOOK)
    text = explanation_text(explain(of, of["binds"], POINT, asked))
    assert text.startswith("No fusewatchd is running") is (asked is Asked.LOOK)


def test_an_old_server_that_lives_on_is_a_matter_of_policy() -> None:
    of = cycle(finding(HOST, Verdict.SUPERSEDED, source=NEW))
    assert "as soon as the old server exits" in says(document(of))["next"]
    assert "although" in says(document(of, superseded=SupersededPolicy.REBIND))["next"]


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        ([Verdict.HEALTHY, Verdict.SLOW, Verdict.SUPERSEDED], 0),
        ([Verdict.HEALTHY, Verdict.UNKNOWN], 2),
        ([Verdict.STALE, Verdict.UNKNOWN], 1),
        ([Verdict.BARE], 1),
        ([Verdict.HUNG], 1),
    ],
)
def test_the_exit_status(verdicts: list[Verdict], status: int) -> None:
    of = document(cycle(*(finding(HOST, verdict) for verdict in verdicts)))
    assert exit_code(explain(of, of["binds"], "", Asked.DAEMON)) == status


# ------------------------------------------------------------------------------- text


def test_the_text_is_one_line_each_bounded_and_escaped() -> None:
    nasty = replace(bind(volume="v\x1b[31m\n"), driver="d\x07")
    of = document(cycle(*[finding(nasty, evidence="e\r\n")] * (MAX_MOUNTS + 7)))
    text = explanation_text(explain(of, of["binds"], "x", Asked.DAEMON))
    assert all(line.isprintable() for line in text.splitlines())
    assert text.count("/mount  healthy  (") == MAX_MOUNTS
    assert text.count("  verdict     healthy: The mount works.") == 1
    assert text.endswith("and 7 more: --json has them all\n")


def test_one_cause_of_many_mounts_is_told_once_with_a_command_to_paste() -> None:
    places = [bind(volume="pv-1"), bind("uid-b", volume="pv-1")]
    of = document(
        cycle(
            finding(bind("uid-c", volume="pv-2")),
            *(finding(place, Verdict.STALE, refusal=Reason.SOURCE_DEAD) for place in places),
        )
    )
    text = explanation_text(explain(of, of["binds"], "pv-1", Asked.DAEMON))
    head = text.splitlines()
    assert head[0] == "pv-1: 2 of 3 mounts broken"
    assert head[1] == f"  source_dead (2 mounts, source {SOURCE})"
    assert head[3].startswith(f"    To do: Run `umount -l {SOURCE}`, or")
    assert text.count("  to do       Run `umount -l ") == 1


def test_the_host_and_its_containers_share_a_block_if_they_share_the_cause() -> None:
    stale = [
        finding(HOST, Verdict.STALE, refusal=Reason.SOURCE_DEAD, evidence="not connected"),
        finding(
            bind(kind=BindKind.CONTAINER), Verdict.STALE,
            refusal=Reason.SOURCE_DEAD, evidence="its mount on the host is stale",
        ),
    ]  # fmt: skip
    of = document(cycle(*stale))
    text = explanation_text(explain(of, of["binds"], "x", Asked.DAEMON))
    assert text.count("  reason      source_dead: ") == 1
    assert "/data  stale  (shop/web-0, container app)" in text
    assert "  evidence    not connected" in text


def test_a_value_is_quoted_for_a_shell() -> None:
    assert filled("`umount -l {source}`", {"source": "/a b;c"}) == "`umount -l '/a b;c'`"
    assert filled("`umount -l {source}`", {"source": ""}) == "`umount -l SOURCE`"


@pytest.mark.parametrize("token", [*(r.value for r in Reason), *(v.value for v in Verdict)])
def test_a_reason_or_a_verdict_alone_is_explained(token: str) -> None:
    text = token_text(token)
    assert text is not None
    assert text.splitlines()[0] == token
    assert [line.split("  ")[1] for line in text.splitlines()[1:]] == ["meaning", "to do", "next"]
    assert token_text(token + "x") is None


def test_who_holds_files_of_the_dead_mount_is_named() -> None:
    of = document(cycle(finding(HOST, Verdict.STALE, refusal=Reason.SOURCE_MISSING)))
    holder = {
        "pid": 7, "name": "tail", "pod": None, "container": None, "unit": "a.service",
        "open_files": 2, "mapped_areas": 0, "directory": False,
    }  # fmt: skip
    of["dead_mount_holders"] = [
        {"source": SOURCE, "device": "0:9", "processes": 1, "holders": [holder]}
    ]
    assert says(of)["holder"] == "unit a.service, pid 7 tail (2 open files)"


# ---------------------------------------------------------------------- what is meant


def points(of: Document, wanted: str) -> list[str]:
    return [found["mount_point"] for found in find(of, wanted)]


OTHER = bind("uid-b")
NODE = cycle(finding(HOST), finding(INSIDE), finding(OTHER, Verdict.STALE))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (POINT, [POINT]),
        (POINT + "/", [POINT]),
        (POINT + "//a/b", [POINT]),
        (POINT + "x", []),
        (SOURCE, [POINT, "/data", OTHER.key.mount_point]),
        (SOURCE + "/in/it", [POINT, "/data", OTHER.key.mount_point]),
        ("/data", ["/data"]),
        ("/data/x", ["/data"]),
        ("/dat", []),
        ("shop/web-0", [POINT, "/data"]),
        ("web-1", [OTHER.key.mount_point]),
        ("api-uid-b", [OTHER.key.mount_point]),
        ("uid-b", [OTHER.key.mount_point]),
        ("shop/web-0:/data/x", ["/data"]),
        ("web-1:/data", []),
        ("0123456789ab:/data", ["/data"]),
        ("0123456789ab", ["/data"]),
        ("0123", []),
        ("", []),
        (":/data", []),
        ("None", []),
        ("None/None", []),
    ],
)
def test_what_a_word_means(wanted: str, expected: list[str]) -> None:
    inside = replace(INSIDE, path=replace(INSIDE.path, container="0123456789abcdef"))
    of = document(cycle(finding(HOST), finding(inside), finding(OTHER)))
    assert points(of, wanted) == expected


def test_a_pod_without_a_name_is_found_by_its_uid_alone() -> None:
    of = document(cycle(finding(HOST), pods=None))
    assert [points(of, wanted) for wanted in ("uid-a", "None/None", "None")] == [[POINT], [], []]


def test_the_deepest_mount_is_meant() -> None:
    inner = replace(HOST, key=TargetKey(0, POINT + "/in"))
    of = document(cycle(finding(HOST), finding(inner)))
    assert points(of, POINT + "/in/x") == [POINT + "/in"]
    assert points(of, POINT + "/inner") == [POINT]


def test_names_of_bytes_are_found() -> None:
    strange = replace(HOST, key=TargetKey(0, "/k/pods/u/\udcff \\x"))
    assert points(document(cycle(finding(strange))), "/k/pods/u/\udcff \\x/y") == [
        "/k/pods/u/\\xff \\\\x"
    ]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("web", ["shop/web-0", "shop/web-1"]),
        ("shop/web-2", ["shop/web-1", "shop/web-0"]),
        (f"{POINT}x"[:-5], [POINT]),
        ("/nothing/like/it", []),
        ("", []),
    ],
)
def test_near_ones_are_named(wanted: str, expected: list[str]) -> None:
    assert near(document(NODE), wanted)[: max(1, len(expected))] == expected


def test_near_ones_are_few() -> None:
    of = document(cycle(*(finding(bind(f"uid-{n}")) for n in range(3000)), pods=None))
    for wanted in ("uid", "uid-x1", "/var/lib/kubelet/pods/x"):
        assert 0 < len(near(of, wanted)) <= MAX_NEAR
