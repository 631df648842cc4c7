"""The evidence of how servers end: in the book, in outages, in counts, and in what is told."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from fusewatchd.config.settings import SocketSettings
from fusewatchd.kube.events.objects import EventsApi, Occurrences, event_object
from fusewatchd.kube.events.series import Series, document_of, series_from
from fusewatchd.log import Entry, Log
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.ledger import TargetState
from fusewatchd.model.mounts import Device
from fusewatchd.model.outages import Incident
from fusewatchd.model.servers import (
    Answer,
    Connection,
    FuseServer,
    Holder,
    Holding,
    OomKill,
    ServerEnd,
    Service,
)
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Verdict
from fusewatchd.observe.servers.exit_record import ExitRecord
from fusewatchd.observe.servers.socket_owners import devices_behind, matches
from fusewatchd.reconcile.incidents import SURVIVED_SECONDS, IncidentStep, follow, follow_services
from fusewatchd.report.events.draft import EventDraft, ObjectReference
from fusewatchd.report.events.pods import PodEvents, with_end
from fusewatchd.report.events.wording import EventKind
from fusewatchd.report.log.log_reporter import LogReporter
from fusewatchd.report.metrics.metrics import Metrics
from fusewatchd.status.document import status_document
from fusewatchd.status.table import View, status_table
from fusewatchd.status.values import Clocks
from tests.unit.cycles import (
    NEW,
    OLD,
    PODS,
    SOURCE,
    bind,
    closed,
    cycle,
    finding,
    incident,
    mount,
    outage,
    pod,
    with_ledger,
)

FUSE_POD = pod("uid-f", "juicefs-0")
SERVER = FuseServer(4711, 9, (OLD,), "juicefs mount", "uid-f", "c" * 64, "", "juicefs")
UNIT = FuseServer(4711, 9, (OLD,), name="geesefs", unit="geesefs@data.service")
END = ServerEnd(10.0, SERVER, OomKill.YES, "an OOM kill in its cgroup")
KILLED = ServerEnd(10.0, UNIT, OomKill.NO, "no kill", signal.SIGKILL)
ALL_PODS = {**PODS, "uid-f": FUSE_POD}


# --------------------------------------------------------------------------- in words


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (END, "killed by the OOM killer"),
        (KILLED, "killed by SIGKILL"),
        (replace(KILLED, status=3 << 8), "exit status 3"),
        (replace(KILLED, status=signal.SIGSEGV | 0x80), "killed by SIGSEGV"),
        (replace(KILLED, status=77), "killed by signal 77"),
        (replace(KILLED, status=None), "exit status unknown (only its parent can read it)"),
        (ServerEnd(10.0, None, socket="/run/x"), "its socket hung up"),
    ],
)
def test_how_a_server_ended(end: ServerEnd, text: str) -> None:
    assert end.describe() == text


# -------------------------------------------------------------------------- in the book


def dead(device: Device = OLD, gone_at: float = 10.0) -> dict[Device, Connection]:
    return {device: Connection(device, Answer.DISCONNECTED, server_gone_at=gone_at)}


def test_the_latest_end_of_a_connection_counts_until_that_is_forgotten() -> None:
    book = ExitRecord()
    book.take(KILLED, [OLD, NEW])
    book.take(END, [OLD])
    assert book.view({}) == {OLD: END, NEW: KILLED}
    book.forget(OLD)
    assert book.view({}) == {NEW: KILLED}


def test_more_is_known_of_an_end_later_and_its_socket_stays() -> None:
    book, early = ExitRecord(), replace(KILLED, status=None)
    book.take(early, [OLD])
    book.take_hang_up("/run/x", [OLD, NEW], 11.0)
    book.complete({early: KILLED})
    assert book.view({})[OLD] == replace(KILLED, socket="/run/x")
    assert book.view({})[NEW] == ServerEnd(11.0, None, socket="/run/x")


def test_an_end_of_which_the_connection_is_not_told_is_the_only_one_of_that_moment() -> None:
    book, early = ExitRecord(), replace(KILLED, status=None)
    book.take(early, [])
    book.take(replace(KILLED, seen_at=12.0), [])
    book.complete({early: KILLED})
    living = {OLD: Connection(OLD, Answer.ANSWERED, server_gone_at=10.0)}
    assert book.view(living) == {}
    assert book.view(dead(gone_at=11.0)) == {}
    assert book.view(dead()) == {OLD: KILLED}
    assert book.view(dead(NEW)) == {OLD: KILLED}  # it was one connection's


def test_two_ends_in_one_moment_explain_nothing() -> None:
    book = ExitRecord()
    book.take(KILLED, [])
    book.take(END, [])
    assert book.view(dead()) == {}


# ------------------------------------------------------------------------- in outages


def opened(end: ServerEnd | None, noticed_at: float = 10.002) -> Incident:
    stale = finding(bind(), Verdict.STALE)
    made = cycle(stale, at=noticed_at)
    connection = replace(made.snapshot.connections[OLD], answered_at=noticed_at)
    ends = {} if end is None else {OLD: end}
    seen = replace(made.snapshot, connections={OLD: connection}, ends=ends)
    (one,) = follow({}, [stale], [], {}, seen, noticed_at).opened
    return one


def test_an_outage_has_the_end_that_explains_it() -> None:
    assert opened(END).end == END
    assert opened(None).end is None
    # It was alive for long after that: somebody else was serving it.
    assert opened(END, 10.0 + SURVIVED_SECONDS).end is None


@pytest.mark.parametrize(
    ("is_in_flight", "died_at", "is_opened"),
    [(True, 9.0, False), (True, 12.0, True), (False, 9.0, True)],
    ids=["uncovered by us", "died since", "uncovered for good"],
)
def test_an_older_dead_layer_is_an_outage_only_if_it_stays_in_sight(
    is_in_flight: bool, died_at: float, is_opened: bool
) -> None:
    below = finding(bind(device=NEW), Verdict.STALE)
    made = cycle(below, at=13.0)
    dead = replace(made.snapshot.connections[NEW], answered_at=died_at)
    seen = replace(made.snapshot, connections={NEW: dead})
    states = {bind().key: TargetState(is_in_flight=is_in_flight)}
    opened = follow({OLD: incident(bind())}, [below], [], states, seen, 13.0).opened
    assert [one.device for one in opened] == ([NEW] if is_opened else [])


def test_what_is_known_later_gets_into_the_outage_and_stays() -> None:
    stale = finding(bind(), Verdict.STALE)
    made = cycle(stale, at=11.0)
    seen = replace(made.snapshot, ends={OLD: KILLED})
    (one,) = follow({OLD: incident(bind())}, [stale], [], {}, seen, 11.0).open.values()
    assert one.end == KILLED
    (same,) = follow({OLD: one}, [stale], [], {}, made.snapshot, 12.0).open.values()
    assert same.end == KILLED


# -------------------------------------------------------------------------- in counts


def test_outages_restarts_and_kills_are_counted_by_source() -> None:
    findings = [finding(bind())]
    began = replace(incident(bind()), end=END)
    counts = follow_services({}, IncidentStep({OLD: began}, opened=(began,)), findings)
    assert counts == {SOURCE: Service(outages=1)}
    counts = follow_services(counts, IncidentStep({}, closed=(closed(began),)), findings)
    assert counts == {SOURCE: Service(1, 1, 1, END, 10.0)}
    # One that never came back, and whose end nobody saw.
    lost = replace(incident(bind()), source_up_at=None)
    step = IncidentStep({}, opened=(lost,), closed=(lost,))
    assert follow_services(counts, step, findings) == {SOURCE: Service(2, 1, 1, END, 10.0)}


def test_sources_that_nothing_shows_are_forgotten() -> None:
    known = {SOURCE: Service(1), "/other": Service(2)}
    assert follow_services(known, IncidentStep({}), [finding(bind())]) == {SOURCE: Service(1)}
    unknown = replace(incident(bind()), source_path="")
    assert follow_services({}, IncidentStep({}, opened=(unknown,)), []) == {}


# -------------------------------------------------------------------------- in sockets


PLAIN = Device(0, 77)
"""Of a server that gives its file system no name."""
MOUNTS = [
    replace(mount("/mnt/one", OLD), fs_type="fuse.juicefs"),
    replace(mount("/mnt/two", NEW), fs_type="fuse.s3fs"),
    replace(mount("/srv/three", PLAIN), fs_type="fuse"),
]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (SocketSettings("/run/x.sock"), None),
        (SocketSettings("/run/other.sock", source="/mnt/one"), None),
        (SocketSettings("/run/*.sock", source="/mnt/one"), {OLD}),
        (SocketSettings("/run/x.sock", source="/mnt/*"), {OLD, NEW}),
        (SocketSettings("/run/x.sock", source="/*"), None),
        (SocketSettings("/run/x.sock", driver="s3fs"), {NEW}),
        (SocketSettings("/run/x.sock", driver="fuse.s3*"), {NEW}),
        (SocketSettings("/run/x.sock", driver="csi.juicefs.com"), {OLD}),
        (SocketSettings("/run/x.sock", source="/mnt/two", driver="csi.juicefs.com"), {OLD, NEW}),
        (SocketSettings("/run/x.sock", driver="nobody"), None),
        (SocketSettings("/run/x.sock", driver="fuse"), {PLAIN}),
        (SocketSettings("/run/x.sock", driver="fuse*"), {OLD, NEW, PLAIN}),
        (SocketSettings("/run/x.sock", source="/srv/*"), {PLAIN}),
    ],
)
def test_what_belongs_to_a_socket(entry: SocketSettings, expected: set[Device] | None) -> None:
    found = devices_behind("/run/x.sock", [entry], MOUNTS, [finding(bind())])
    assert found == (None if expected is None else frozenset(expected))


def test_entries_for_one_socket_are_added_and_one_that_says_nothing_is_all() -> None:
    one = SocketSettings("/run/x.sock", source="/mnt/one")
    two = SocketSettings("/run/x.sock", source="/mnt/two")
    assert devices_behind("/run/x.sock", [one, two], MOUNTS, []) == {OLD, NEW}
    assert devices_behind("/run/x.sock", [one, SocketSettings("/run/*")], MOUNTS, []) is None


def test_no_wildcard_stands_for_a_slash() -> None:
    assert matches("/run/a/x.sock", "/run/*/x.sock")
    assert not matches("/run/a/b/x.sock", "/run/*/x.sock")
    assert not matches("/run/x", "/run/x/y")


# ------------------------------------------------------------------------- in Events


def with_ends(steps: list[CycleReport], end: ServerEnd) -> list[CycleReport]:
    return [
        replace(
            step,
            snapshot=replace(step.snapshot, ends={OLD: end}, pods=ALL_PODS),
            incidents_opened=tuple(replace(i, end=end) for i in step.incidents_opened),
            incidents_closed=tuple(replace(i, end=end) for i in step.incidents_closed),
        )
        for step in steps
    ]


def drafts(end: ServerEnd) -> list[EventDraft]:
    posted: list[EventDraft] = []
    reporter = PodEvents(posted.append)
    for step in with_ends(outage(), end):
        reporter.report(step)
    return posted


def test_the_event_says_lack_of_memory_and_is_related_to_the_servers_pod() -> None:
    stale, *_ = drafts(END)
    assert stale.reason == "FuseMountStale"
    assert stale.note.endswith("(OOM kill).")
    assert stale.related == ObjectReference("Pod", "shop", "juicefs-0", "api-uid-f")


def test_the_event_names_a_service_and_no_scope() -> None:
    stale, *_ = drafts(KILLED)
    assert stale.note.endswith(" The server was unit geesefs@data.service.")
    assert stale.related is None
    scope = replace(KILLED, server=replace(UNIT, unit="run-r77.scope"))
    assert drafts(scope)[0].note == EventKind.STALE.draft(PODS["uid-a"]).note


def test_the_note_is_the_same_for_another_process_another_time() -> None:
    again = replace(END, seen_at=99.0, server=replace(SERVER, pid=5, start_time=7))
    assert drafts(again) == drafts(END)


def test_recoveries_are_told_in_the_same_words_whatever_is_known() -> None:
    plain = [d for d in drafts(KILLED) if d.reason == "FuseMountRecovered"]
    assert plain == [d for d in drafts(END) if d.reason == "FuseMountRecovered"]
    assert len(plain) == 2


def test_a_longest_unit_does_not_make_the_note_too_long() -> None:
    unit = replace(UNIT, unit="\n" * 240 + ".service")
    draft = with_end(
        EventKind.STALE.draft(PODS["uid-a"]), replace(END, server=unit), nothing_seen()
    )
    assert len(draft.note.encode()) < 1024
    assert "\n" not in draft.note


def nothing_seen() -> Snapshot:
    return cycle().snapshot


@pytest.mark.parametrize("api", EventsApi)
def test_what_it_is_related_to_is_sent_and_outlives_the_daemon(api: EventsApi) -> None:
    stale, *_ = drafts(END)
    assert isinstance(stale.regarding, ObjectReference)
    body = event_object(api, Occurrences(stale, stale.regarding, "n", 1, 1.0, 1.0), "node")
    assert body["related"] == {
        "apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "juicefs-0",
        "uid": "api-uid-f",
    }  # fmt: skip
    (kept,) = series_from(document_of([Series(stale, 1.0, 1.0, "n", 0.0)]), 0.0, 1.0)
    assert kept.draft == stale


# ---------------------------------------------------------------------------- in the log


class Recorder:
    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def write(self, entry: Entry) -> bool:
        self.entries.append(entry)
        return True

    def close(self) -> None:
        self.entries.clear()


def told(*steps: CycleReport) -> list[Entry]:
    recorder = Recorder()
    reporter = LogReporter(Log(recorder))
    for step in steps:
        reporter.report(step)
    return recorder.entries


def test_the_first_line_of_an_outage_has_the_evidence() -> None:
    first, *rest = told(*with_ends(outage(), END))
    assert first.text == (
        "FUSE server is gone: juicefs (pid 4711), killed by the OOM killer; 3 mounts stale"
    )
    expected = {
        "server": "juicefs", "server_pid": 4711, "server_pod": "shop/juicefs-0",
        "server_container": "c" * 64, "oom_kill": "yes", "volume": "pv-1",
        "pod": ("web-0", "web-1"), "namespace": "shop", "source": SOURCE,
    }  # fmt: skip
    assert expected.items() <= first.fields.items()
    assert len(rest) == 4  # five lines tell it


def test_names_that_others_chose_are_escaped_and_bounded() -> None:
    name = replace(SERVER, name="\x1b[31m\n", unit="u" * 300)
    first, *_ = told(*with_ends(outage(), replace(END, server=name)))
    assert "\\x1b[31m" in first.text and "\n" not in first.text
    assert len(str(first.fields["server_unit"])) <= 256


def test_the_last_line_counts_restarts() -> None:
    *steps, over = outage()
    *_, last = told(*steps, with_ledger(over, services={SOURCE: Service(restarts=3)}))
    assert last.fields["restarts"] == 3


HOLDER = Holder(OLD, 1234, 1, "python3", 1, 2, True, "uid-a", "c" * 64)


def held(*holders: Holder, count: int = 0, pods: bool = True) -> CycleReport:
    holding = Holding(OLD, SOURCE, "juicefs", 20.0, holders, count or len(holders))
    step = cycle(finding(bind(device=NEW)), at=21.0)
    seen = replace(step.snapshot, holdings=(holding,), pods=ALL_PODS if pods else None)
    return replace(step, snapshot=seen)


def test_holders_are_told_once_and_when_they_are_gone() -> None:
    other = replace(HOLDER, pid=9, pod_uid="", container_id="", unit="backup.service")
    lines = told(held(HOLDER, other), held(HOLDER, other), held(HOLDER), cycle())
    assert [line.text for line in lines] == [
        "2 processes still hold files of the dead mount: pod shop/web-0, container cccccccccccc,"
        " pid 1234 python3, unit backup.service, pid 9 python3",
        "no process holds files of the dead mount any more",
    ]
    assert lines[0].fields["pod"] == "web-0"
    assert lines[0].fields["processes"] == 2


def test_very_many_holders_are_one_line() -> None:
    many = [replace(HOLDER, pid=n) for n in range(200)]
    (line,) = told(held(*many, count=5000))
    assert line.text.startswith("5000 processes still hold")
    assert len(line.text) <= 256


# --------------------------------------------------------------------- in the status


def document(step: CycleReport, *incidents: Incident) -> dict[str, object]:
    step = with_ledger(step, incidents=incidents, services=step.ledger.services)
    return status_document(step, Clocks(1000.0, 100.0, 0.0), version="1", way="beneath")


def test_the_status_tells_who_serves_and_what_became_of_servers() -> None:
    step = cycle(finding(bind()))
    service = Service(3, 2, 1, END, 12.4)
    now = replace(SERVER, pid=5000, devices=(OLD,))
    table = type(step.snapshot.table).of([mount(SOURCE, OLD, 7)])
    seen = replace(step.snapshot, servers={OLD: (now,)}, table=table, pods=ALL_PODS)
    step = with_ledger(replace(step, snapshot=seen), services={SOURCE: service})
    (found,) = document(step)["servers"]  # type: ignore[misc,attr-defined]
    assert (found["source"], found["device"]) == (SOURCE, str(OLD))
    assert found["processes"][0]["pid"] == 5000
    assert found["processes"][0]["pod"]["name"] == "juicefs-0"
    assert (found["outages"], found["restarts"], found["oom_kills"]) == (3, 2, 1)
    assert found["last_outage_ms"] == 12400.0
    assert found["last_end"]["oom_kill"] == "yes"
    lines = status_table(document(step), View(200)).splitlines()
    assert (
        f"Server of {SOURCE}: juicefs (pid 5000) of pod shop/juicefs-0, container cccccccccccc"
        in lines
    )
    (line,) = [line for line in lines if "3 outages" in line]
    assert "2 restarts, 1 OOM kill, the last for 12.4 s, juicefs (pid 4711)" in line


def test_an_open_outage_says_how_its_server_ended() -> None:
    stale = cycle(finding(bind(), Verdict.STALE))
    text = status_table(document(stale, replace(incident(bind()), end=KILLED)), View(200))
    expected = "  its server: geesefs (pid 4711) of unit geesefs@data.service, killed by SIGKILL"
    assert f"{expected} (no kill)" in text.splitlines()


def test_sources_whose_servers_never_failed_are_no_lines() -> None:
    assert "Server of" not in status_table(document(cycle(finding(bind()))), View(80))


def test_the_status_names_holders() -> None:
    shown = document(held(HOLDER, count=7))
    (holding,) = shown["dead_mount_holders"]  # type: ignore[misc,attr-defined]
    assert (holding["processes"], len(holding["holders"])) == (7, 1)
    lines = status_table(shown, View(200)).splitlines()
    begin = lines.index(f"7 processes still hold files of the dead mount of {SOURCE}:")
    assert lines[begin + 1 : begin + 3] == [
        "  pod shop/web-0, container cccccccccccc, pid 1234 python3"
        " (1 open file, 2 mapped areas, its directory)",
        "  and 6 more",
    ]
    nameless = status_table(document(held(HOLDER, pods=False)), View(200))
    assert "  pod uid-a, container cccccccccccc, pid 1234" in nameless


# ---------------------------------------------------------------------- in the metrics


def test_ends_and_holders_are_metrics() -> None:
    metrics = Metrics("1")
    for step in with_ends(outage(), END):
        metrics.report(step)
    metrics.report(held(HOLDER, count=7))
    text = metrics.page().body.decode()
    assert 'fusewatchd_server_ends_total{oom="yes"} 1.0' in text
    assert 'fusewatchd_server_ends_total{oom="no"} 0.0' in text
    assert "fusewatchd_dead_mount_holders 7.0" in text
    metrics.report(cycle())
    assert "fusewatchd_dead_mount_holders 0.0" in metrics.page().body.decode()
