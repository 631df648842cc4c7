"""Log lines: their forms, where they go, and the story of an outage in them."""

from __future__ import annotations

import json
import os
import pty
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.log import (
    LINE_LIMIT,
    Entry,
    Format,
    JournalSink,
    Level,
    Log,
    StreamSink,
    choose_format,
    format_json,
    format_logfmt,
    format_text,
    journal_datagram,
    open_log,
)
from fusewatchd.log_message import MESSAGE_IDS, message
from fusewatchd.model.actions import OutcomeStatus
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.degraded import INSTEAD, Degraded
from fusewatchd.model.findings import Gap, Unproven
from fusewatchd.model.mounts import TargetKey
from fusewatchd.model.plan import Pause, Refusal
from fusewatchd.model.quota import FOREIGN, Owner, RefusedOwner, Resource, follow
from fusewatchd.model.quota import pod as pod_owner
from fusewatchd.model.servers import Answer, Connection
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.report.log.log_reporter import LogReporter
from fusewatchd.report.log.quotas import WORDS
from fusewatchd.text import duration_text
from tests.unit.cycles import NEW, OLD, bind, cycle, finding, outage, outcome, with_ledger, without

AT = 1_700_000_000.25


@dataclass
class Recorder:
    """A sink that keeps entries, and drops the next ``full`` of them."""

    entries: list[Entry] = field(default_factory=list)
    full: int = 0

    def write(self, entry: Entry) -> bool:
        if self.full:
            self.full -= 1
            return False
        self.entries.append(entry)
        return True

    def close(self) -> None:
        self.entries.clear()

    @property
    def texts(self) -> list[str]:
        return [entry.text for entry in self.entries]


def told(*cycles: CycleReport, level: Level = Level.INFO) -> Recorder:
    recorder = Recorder()
    reporter = LogReporter(Log(recorder, level, clock=lambda: AT))
    for one in cycles:
        reporter.report(one)
    reporter.close()
    return recorder


def entry(text: str = "hello", **fields: str | int | float | bool) -> Entry:
    return Entry(AT, Level.WARNING, text, fields)


# -------------------------------------------------------------------------- formats


def test_logfmt_quotes_what_needs_it() -> None:
    line = format_logfmt(entry("it is gone", a="x", b="two words", c='say "no"', d="", e="k=v"))
    assert line == (
        'time=2023-11-14T22:13:20.250Z level=warning msg="it is gone"'
        r' a=x b="two words" c="say \"no\"" d="" e="k=v"'
    )


def test_numbers_and_truth_are_plain() -> None:
    line = format_logfmt(entry("x", n=3, ms=3.1, is_good=True, third=1 / 3))
    assert line.endswith(" msg=x n=3 ms=3.1 is_good=true third=0.333333")


def test_json_keeps_types_and_its_own_names() -> None:
    line = format_json(entry("x", ms=3.1, n=2, time="not this", level="nor this"))
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "msg": "x",
        "ms": 3.1,
        "n": 2,
    }
    assert "\n" not in line


def test_text_is_for_people() -> None:
    line = format_text(entry("it is gone", pod="shop/web-0"))
    assert line.endswith(".250 WARNING it is gone  pod=shop/web-0")


def test_journal_fields_can_be_searched() -> None:
    lines = journal_datagram(entry("it is gone", pod="shop/web-0", volume="pv-1")).decode()
    assert lines.splitlines() == [
        "MESSAGE=pv-1 (shop/web-0): it is gone",
        "PRIORITY=4",
        "SYSLOG_IDENTIFIER=fusewatchd",
        "FUSEWATCHD_POD=shop/web-0",
        "FUSEWATCHD_VOLUME=pv-1",
    ]
    assert lines.endswith("\n")


def test_volume_and_pods_are_in_the_first_columns_and_ids_in_fields_alone() -> None:
    recorder = told(*outage())
    for one in recorder.entries:
        shown = message(one.text, one.fields)
        assert shown[:43].startswith("pv-1 (shop/web-0, shop/web-1): ")
        assert not re.search(r"event=|device|uid-|/var/lib/kubelet", shown)
    assert recorder.texts[0] in message(recorder.entries[0].text, recorder.entries[0].fields)


def test_what_is_about_no_volume_shows_its_fields() -> None:
    assert message("it is ready", {"event": "ready", "version": "1"}) == "it is ready  version=1"
    assert message("x", {"event": "ready"}) == "x"


def test_the_catalog_has_a_text_for_each_message_id_and_fields_that_exist() -> None:
    text = (Path(__file__).parents[4] / "systemd/fusewatchd.catalog").read_text()
    found = dict(re.findall(r"^# (\w+)\n-- ([0-9a-f]{32})$", text, re.MULTILINE))
    assert found == MESSAGE_IDS
    assert len(set(MESSAGE_IDS.values())) == text.count("\nSubject: ") == len(MESSAGE_IDS)
    names = {"VOLUME", "SOURCE", "REASON", "GAP"}
    assert set(re.findall(r"@FUSEWATCHD_(\w+)@", text)) <= names
    first = told(*outage()).entries[0]
    line = f"MESSAGE_ID={MESSAGE_IDS['server_gone']}"
    assert line in journal_datagram(first).decode().splitlines()


@given(st.text(max_size=300), st.text(max_size=300))
def test_foreign_text_cannot_forge_a_line_or_field(text: str, value: str) -> None:
    recorder = Recorder()
    Log(recorder).info(text, pod=value)
    (written,) = recorder.entries
    assert len(format_logfmt(written).splitlines()) == 1
    assert len(journal_datagram(written).decode().splitlines()) == 4
    assert json.loads(format_json(written))["pod"] == written.fields["pod"]


@given(st.text(max_size=50))
def test_logfmt_value_can_be_read_back(value: str) -> None:
    recorder = Recorder()
    Log(recorder).info("x", pod=value)
    (written,) = recorder.entries
    shown = format_logfmt(written).partition(" pod=")[2]
    if shown.startswith('"'):
        assert shown.endswith('"')
        shown = shown[1:-1].replace('\\"', '"')
    assert shown == written.fields["pod"]


# ----------------------------------------------------------------------------- sinks


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            continue  # the test has closed it


def test_lines_reach_a_pipe(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    log = open_log("info", "logfmt", fd=writer, environ={})
    log.info("one", n=1)
    log.debug("not this")
    log.error("two")
    lines = os.read(reader, 65536).decode().splitlines()
    assert [line.partition(" level=")[2] for line in lines] == ["info msg=one n=1", "error msg=two"]


def test_a_full_pipe_never_blocks_and_the_loss_is_told(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    log = Log(StreamSink(writer, format_logfmt))
    for number in range(5000):
        log.info("filling", number=number)
    os.close(writer)
    with open(reader, "rb", closefd=False) as stream:
        written = stream.read().count(b"filling")
    assert 0 < written < 5000


def test_after_a_loss_its_size_is_the_first_thing_told() -> None:
    recorder = Recorder(full=3)
    log = Log(recorder, clock=lambda: AT)
    for text in ("a", "b", "c", "d"):
        log.info(text)
    assert recorder.texts == ["log lines were dropped", "d"]
    assert recorder.entries[0].fields == {"lines": 3}


def test_a_reader_that_is_gone_is_no_error(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    assert StreamSink(writer, format_logfmt).write(entry()) is False


def test_a_line_stays_atomic_on_a_pipe(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    many = {f"field{n}": "x" * 255 for n in range(20)}
    assert StreamSink(writer, format_json).write(entry("x", **many))
    data = os.read(reader, 65536)
    assert len(data) <= LINE_LIMIT
    assert json.loads(data)["field19"] == "x" * 63 + "…"


def test_journal_gets_datagrams_and_may_be_away(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    log = Log(JournalSink(path), clock=lambda: AT)
    log.info("nobody listens")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        journal.settimeout(5)
        log.warning("stale", pod="shop/web-0", verdict="stale")
        assert b"lines=1" in journal.recv(65536)
        fields = dict(line.split(b"=", 1) for line in journal.recv(65536).splitlines())
    log.close()
    assert fields[b"FUSEWATCHD_POD"] == b"shop/web-0"
    assert fields[b"FUSEWATCHD_VERDICT"] == b"stale"
    assert fields[b"PRIORITY"] == b"4"


def test_a_journal_that_does_not_read_never_blocks(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        sink = JournalSink(path)
        results = [sink.write(entry()) for _ in range(20_000)]
        sink.close()
    assert results[0] is True
    assert results[-1] is False


def test_auto_knows_journal_terminal_and_the_rest(pipe: tuple[int, int]) -> None:
    _, writer = pipe
    status = os.fstat(writer)
    ours = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    other = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"}
    master, slave = pty.openpty()
    try:
        assert choose_format("auto", writer, ours) is Format.JOURNAL
        assert choose_format("auto", writer, other) is Format.LOGFMT
        assert choose_format("auto", writer, {}) is Format.LOGFMT
        assert choose_format("auto", slave, {}) is Format.TEXT
        assert choose_format("json", slave, ours) is Format.JSON
    finally:
        os.close(master)
        os.close(slave)


def test_unknown_format_and_level_are_errors() -> None:
    with pytest.raises(ValueError, match="xml"):
        open_log("info", "xml")
    with pytest.raises(KeyError):
        open_log("loud", "logfmt")


# --------------------------------------------------------------------------- stories


def test_an_outage_is_five_lines() -> None:
    recorder = told(*outage())
    assert recorder.texts == [
        "FUSE server is gone; 3 mounts stale",
        "3 mounts of 2 pods are stale",
        "source is back after 10.0 s",
        "replaced 2 mounts on the host and 1 in containers",
        "recovered 3 mounts in 3.1 ms, outage 10.0 s",
    ]
    by_event = {e.fields["event"]: e for e in recorder.entries}
    assert by_event["server_gone"].fields["noticed_after_ms"] == 1.0
    assert by_event["stale"].fields["pod"] == ("web-0", "web-1")
    assert by_event["stale"].fields["namespace"] == "shop"
    assert {e.fields["volume"] for e in recorder.entries} == {"pv-1"}
    assert by_event["source_back"].fields["new_device"] == "0:140"
    assert by_event["recovered"].fields["recovery_ms"] == 3.1
    assert by_event["recovered"].level is Level.INFO
    assert [e.fields["event"] for e in recorder.entries if e.level is Level.WARNING] == [
        "server_gone"
    ]


def test_a_second_outage_is_told_again() -> None:
    assert len(told(*outage(), *outage()).entries) == 10


def test_quiet_cycles_say_nothing() -> None:
    healthy = cycle(finding(bind()))
    assert told(*[healthy] * 50).texts == []


def test_each_bind_is_there_at_debug() -> None:
    recorder = told(*outage(), level=Level.DEBUG)
    binds = [e for e in recorder.entries if e.fields["event"] == "bind"]
    outcomes = [e for e in recorder.entries if e.fields["event"] == "outcome"]
    assert len(outcomes) == 3
    assert len(binds) == 9  # found healthy, stale, healthy again
    assert {e.fields["container"] for e in binds if "container" in e.fields} == {"app"}


def test_replacement_seen_before_its_outcome_is_not_the_work_of_others() -> None:
    steps = outage()
    early = replace(steps[4], outcomes=())
    assert told(*steps[:4], early, *steps[4:]).texts == told(*steps).texts


def test_repair_by_others_is_told() -> None:
    steps = outage()
    recorder = told(*steps[:3], replace(steps[4], outcomes=()))
    assert recorder.texts[-1] == "3 mounts of 2 pods are answering again"


def test_incident_without_recovery_ends_without_boast() -> None:
    steps = outage()
    over = replace(steps[5].incidents_closed[0], recovered_at=None)
    recorder = told(*steps[:3], replace(steps[5], incidents_closed=(over,)))
    assert recorder.entries[-1].fields["event"] == "outage_over"


def test_failures_are_told_when_their_reason_changes() -> None:
    stale = finding(bind(), Verdict.STALE)
    raced = outcome(bind(), OutcomeStatus.FAILED, Reason.RACED, detail="somebody\nelse")
    failed = replace(raced, reason=Reason.SYSTEM_CALL, errno=28)
    recorder = told(
        *(cycle(stale, outcomes=[raced]) for _ in range(3)),
        *(cycle(stale, outcomes=[failed]) for _ in range(3)),
        cycle(stale, outcomes=[raced]),
    )
    entries = [e for e in recorder.entries if e.fields["event"] == "failed"]
    assert [e.fields["reason"] for e in entries] == ["raced", "system_call", "raced"]
    assert entries[0].fields["detail"] == "somebody\\x0aelse"
    assert entries[1].fields["errno"] == 28


def test_refusals_are_told_once_and_waiting_only_at_debug() -> None:
    stale = finding(bind(), Verdict.STALE)
    idmap = cycle(stale, refused=[Refusal(stale, Reason.IDMAP)])
    waits = cycle(stale, refused=[Refusal(stale, Reason.BACK_OFF, 5.0)])
    missing = cycle(stale, refused=[Refusal(stale, Reason.SOURCE_MISSING)])
    healthy = cycle(finding(bind()))
    recorder = told(idmap, waits, idmap, missing, idmap, healthy, idmap)
    reasons = [e.fields["reason"] for e in recorder.entries if e.fields["event"] == "refused"]
    assert reasons == ["idmap", "idmap", "idmap"]
    at_debug = told(missing, level=Level.DEBUG).entries
    assert "source_missing" in [e.fields.get("reason") for e in at_debug]


@pytest.mark.parametrize("reason", [Reason.BUDGET, Reason.TABLE_FULL])
def test_a_limit_of_the_node_is_told_once_however_many_wait(reason: Reason) -> None:
    stale = [finding(bind(f"uid-{n}"), Verdict.STALE) for n in range(20)]
    waits = [Refusal(one, reason) for one in stale]
    steps = [
        cycle(*stale, at=10.0, refused=waits),
        cycle(*stale, at=11.0),
        cycle(*stale, at=12.0, refused=waits[:3]),
        cycle(*stale, at=16.5),
        cycle(*stale, at=17.5),
        cycle(*stale, at=18.0),
    ]
    recorder = told(*steps)
    events = [e.fields.get("event") for e in recorder.entries]
    assert events[-2:] == [f"{reason.value}_met", f"{reason.value}_over"]
    assert "refused" not in events
    assert told(*steps[:4]).entries[-1].fields["binds"] == 20
    assert len(told(*steps, cycle(*stale, at=30.0, refused=waits)).entries) == len(events) + 1


def test_a_source_that_comes_and_goes_is_told_when_it_begins_and_ends() -> None:
    stale = finding(bind(), Verdict.STALE, source=NEW)
    pause = Pause("/src", 6, 0.25)
    flapping = cycle(stale, refused=[Refusal(stale, Reason.SOURCE_FLAPPING)])
    steps = [replace(flapping, pauses=(pause, replace(pause, source_path="/b")))]
    steps += [replace(flapping, pauses=(replace(pause, unused_mounts=7, stable_seconds=0.5),))]
    recorder = told(*steps, steps[1], cycle(finding(bind())))
    lines = [
        (e.level, e.fields["event"], e.fields["source"])
        for e in recorder.entries
        if str(e.fields["event"]).startswith("source_")
    ]
    assert lines == [
        (Level.WARNING, "source_flapping", "/b"),
        (Level.WARNING, "source_flapping", "/src"),
        (Level.INFO, "source_steady", "/b"),
        (Level.INFO, "source_steady", "/src"),
    ]


def test_slow_becomes_hung_in_the_same_phase() -> None:
    steps = (Verdict.HEALTHY, Verdict.SLOW, Verdict.SLOW, Verdict.HUNG, Verdict.HEALTHY)
    recorder = told(*(cycle(finding(bind(), verdict)) for verdict in steps))
    assert recorder.texts == ["1 mount is slow", "1 mount is hung", "1 mount is answering again"]
    assert recorder.entries[1].level is Level.WARNING


@pytest.mark.parametrize(
    ("answer", "is_told"),
    [
        (None, False),
        (Answer.PENDING, False),
        (Answer.NOT_ALLOWED, True),
        (Answer.ERROR, True),
    ],
)
def test_not_asked_yet_is_no_news_but_cannot_ask_is(answer: Answer | None, is_told: bool) -> None:
    unknown = cycle(finding(bind(), Verdict.UNKNOWN))
    seen = replace(unknown.snapshot, connections={OLD: Connection(OLD, answer)})
    recorder = told(replace(unknown, snapshot=seen), cycle(finding(bind())))
    assert bool(recorder.entries) is is_told


def test_gaps_open_and_close_once() -> None:
    def gap(text: str) -> CycleReport:
        return cycle(gaps=[Gap("kubelet", text)])

    recorder = told(gap("refused"), gap("timed out"), cycle(), cycle(), gap("again"))
    assert [e.fields["event"] for e in recorder.entries] == [
        "gap_opened",
        "gap_closed",
        "gap_opened",
    ]


def test_narrower_file_system_is_a_warning() -> None:
    healed = outcome(bind(), narrower="without allow_other")
    recorder = told(cycle(finding(bind()), outcomes=[healed]))
    assert recorder.entries[-1].level is Level.WARNING
    assert recorder.entries[-1].fields["detail"] == "without allow_other"


def test_so_is_one_that_allows_more() -> None:
    healed = outcome(bind(), wider="with rw")
    recorder = told(cycle(finding(bind()), outcomes=[healed]))
    assert recorder.entries[-1].level is Level.WARNING
    assert recorder.entries[-1].fields["event"] == "wider"
    assert recorder.entries[-1].fields["detail"] == "with rw"


def test_another_type_is_told_once_of_two_file_systems() -> None:
    changes = [
        outcome(bind(f"uid-{n}"), type_change="fuse.blobfuse -> fuse.blobfuse2") for n in range(4)
    ]
    steps = [cycle(outcomes=changes[:2]), cycle(outcomes=changes[2:3]), cycle(outcomes=changes[3:])]
    warnings = [e for e in told(*steps).entries if e.level is Level.WARNING]
    assert [e.text for e in warnings] == ["type changed fuse.blobfuse -> fuse.blobfuse2"]


def test_a_thousand_binds_are_no_more_lines_than_three() -> None:
    binds = [bind(f"uid-{n}") for n in range(1000)]
    recorder = told(cycle(*(finding(b, Verdict.STALE) for b in binds)))
    assert recorder.texts == ["1000 mounts of 1000 pods are stale"]


def test_foreign_stale_mounts_are_told_at_the_edges() -> None:
    counts = (0, 2, 3, 0, 0, 1)
    recorder = told(*(cycle(foreign_stale=count) for count in counts))
    assert [e.fields["event"] for e in recorder.entries] == [
        "foreign_stale",
        "foreign_clear",
        "foreign_stale",
    ]


def test_mounts_that_nothing_claims_are_told_once_each() -> None:
    one, two = (Unproven("uid-a", TargetKey(7, path), OLD) for path in ("/data", "/more"))
    steps = ((), (one,), (one,), (one, two), (), (one,))
    recorder = told(*(cycle(unproven=found) for found in steps))
    assert [e.fields["mount_point"] for e in recorder.entries] == ["/data", "/more", "/data"]
    assert {e.fields["event"] for e in recorder.entries} == {"unproven_stale"}
    assert recorder.texts[0] == (
        "1 stale mount in containers left alone: nothing tells of which bind"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 ms"),
        (0.00312, "3.1 ms"),
        (0.99996, "1.0 s"),
        (12.4, "12.4 s"),
        (119.94, "119.9 s"),
        (119.96, "2 min 0 s"),
        (200, "3 min 20 s"),
        (3600 * 5 + 125, "5 h 2 min"),
    ],
)
def test_durations_as_a_person_says_them(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def over_quota(*owners: Owner) -> CycleReport:
    refused = [RefusedOwner(owner, Resource.BINDS, 64, 6000) for owner in owners]
    return with_ledger(cycle(), refused_owners=follow({}, refused, 1.0))


def test_an_owner_over_its_quota_is_told_once_and_when_it_is_over() -> None:
    both = over_quota(pod_owner("uid-a"), FOREIGN)
    recorder = told(both, both, over_quota(FOREIGN), cycle(), over_quota(FOREIGN))
    assert [
        (e.fields["event"], e.fields["owner"], e.fields.get("pod")) for e in recorder.entries
    ] == [
        ("quota_met", "pod", "web-0"),
        ("quota_met", "foreign", None),
        ("quota_over", "pod", "web-0"),
        ("quota_over", "foreign", None),
        ("quota_met", "foreign", None),
    ]
    first = recorder.entries[0]
    assert first.text.startswith("over its quota: binds in its containers")
    assert (first.fields["limit"], first.fields["wanted"]) == (64, 6000)
    assert (first.fields["resource"], first.fields["reason"]) == ("binds", "quota")


@pytest.mark.parametrize("resource", Resource)
def test_every_resource_has_words(resource: Resource) -> None:
    assert WORDS[resource]


def test_what_is_missing_is_told_once_and_when_it_is_over() -> None:
    both = without(Degraded.INOTIFY, Degraded.FANOTIFY)
    recorder = told(both, both, without(Degraded.FANOTIFY), cycle(), without(Degraded.FANOTIFY))
    assert [(e.fields["event"], e.fields["what"]) for e in recorder.entries] == [
        ("degraded", "inotify"),
        ("degraded", "fanotify"),
        ("degraded_over", "inotify"),
        ("degraded_over", "fanotify"),
        ("degraded", "fanotify"),
    ]
    assert recorder.entries[0].fields["detail"] == "used up"
    assert recorder.entries[0].text.endswith(INSTEAD[Degraded.INOTIFY])


@pytest.mark.parametrize("what", Degraded)
def test_everything_that_can_be_missing_has_words(what: Degraded) -> None:
    assert INSTEAD[what]
