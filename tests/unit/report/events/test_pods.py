"""Which Events an outage makes, and that a pod's owner gets each of them once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusewatchd.model.actions import OutcomeStatus
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.plan import Refusal
from fusewatchd.model.pods import BindKind
from fusewatchd.model.quota import FOREIGN, RefusedOwner, Resource, follow
from fusewatchd.model.quota import pod as pod_owner
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.report.events.draft import EventDraft, ObjectReference
from fusewatchd.report.events.event_limit import MAX_PODS, WINDOW_SECONDS, EventLimit
from fusewatchd.report.events.pods import MAX_BACKLOG, PodEvents
from fusewatchd.report.events.wording import NOT_FOR_GOOD, EventKind
from tests.unit.cycles import (
    NEW,
    PODS,
    bind,
    closed,
    cycle,
    finding,
    incident,
    mount,
    outage,
    outcome,
    pod,
    replace_action,
    with_ledger,
)


def posted(*cycles: CycleReport) -> list[EventDraft]:
    drafts: list[EventDraft] = []
    reporter = PodEvents(drafts.append, "node-7")
    for one in cycles:
        reporter.report(one)
    reporter.close()
    return drafts


def said(*cycles: CycleReport) -> list[tuple[str, str]]:
    return [(draft.regarding.name, draft.reason) for draft in posted(*cycles)]


STALE, HUNG = "FuseMountStale", "FuseMountHung"
RECOVERED, FAILED = "FuseMountRecovered", "FuseMountRecoveryFailed"
UNRECOVERABLE = "FuseMountUnrecoverable"


def test_one_event_per_pod_and_reason_not_per_bind() -> None:
    assert said(*outage()) == [
        ("web-0", STALE),
        ("web-1", STALE),
        ("web-0", RECOVERED),
        ("web-1", RECOVERED),
    ]


def test_an_event_names_the_pod_as_the_api_server_does() -> None:
    first = posted(*outage())[0]
    assert first.regarding == ObjectReference("Pod", "shop", "web-0", "api-uid-a", "v1")
    assert (first.type, first.action) == ("Warning", "WatchFuseMount")


@pytest.mark.parametrize("kind", EventKind)
def test_every_event_fits_the_api_server(kind: EventKind) -> None:
    for draft in (kind.draft(PODS["uid-a"]), kind.draft_for_node("node-7")):
        assert len(draft.note) <= 1024
        assert len(draft.reason) <= 128
        assert len(draft.action) <= 128
        assert draft.type in ("Normal", "Warning")
    assert kind.draft(PODS["uid-a"]) == kind.draft(PODS["uid-a"])


def test_each_outage_is_told_anew() -> None:
    assert said(*outage(), *outage()) == said(*outage()) * 2


def test_what_is_allowed_less_or_more_is_said_as_well() -> None:
    steps = outage()
    told = [replace(o, narrower="without allow_other", wider="with rw") for o in steps[4].outcomes]
    steps[4] = replace(steps[4], outcomes=tuple(told))
    reasons = [reason for name, reason in said(*steps) if name == "web-0"]
    assert reasons == [STALE, "FuseMountAllowsLess", "FuseMountAllowsMore", RECOVERED]


def test_recovered_waits_for_every_bind_of_the_pod() -> None:
    host, container = bind(), bind("uid-a", BindKind.CONTAINER)
    stale = [finding(b, Verdict.STALE, source=NEW) for b in (host, container)]
    healed_host = finding(replace(host, mount=mount(host.key.mount_point, NEW)))
    healed = finding(replace(container, mount=mount("/data", NEW)))
    steps = [
        cycle(*stale, actions=[replace_action(host), replace_action(container)]),
        cycle(healed_host, stale[1], outcomes=[outcome(host)], looked_at=30.0),
        cycle(healed_host, healed, outcomes=[outcome(container, at=40.0)], looked_at=30.0),
        cycle(healed_host, healed, looked_at=39.0),
        cycle(healed_host, healed, looked_at=41.0),
    ]
    assert said(*steps[:4]) == [("web-0", STALE)]
    assert said(*steps) == [("web-0", STALE), ("web-0", RECOVERED)]


def test_recovered_waits_for_an_outcome_under_way() -> None:
    steps = outage()
    early = replace(steps[4], outcomes=(), snapshot=steps[5].snapshot)
    assert said(*steps[:4], early) == [("web-0", STALE), ("web-1", STALE)]


def test_one_pod_that_stays_broken_does_not_hold_back_the_other() -> None:
    steps = outage()
    locked = finding(bind("uid-b"), Verdict.STALE, refusal=Reason.LOCKED)
    healed = steps[5].findings[:2]
    refused = [Refusal(locked, Reason.LOCKED)]
    last = cycle(*healed, locked, looked_at=20.05, refused=refused)
    outcomes = [o for o in steps[4].outcomes if o.action.key != locked.bind.key]
    middle = replace(steps[4], findings=(*healed, locked), outcomes=tuple(outcomes))
    before = replace(steps[3], plan=replace(steps[3].plan, actions=steps[3].plan.actions[:2]))
    assert said(*steps[:3], before, middle, last)[2:] == [
        ("web-1", UNRECOVERABLE),
        ("web-0", RECOVERED),
    ]


def test_a_container_born_from_the_stale_bind_is_the_same_outage() -> None:
    steps = outage()
    born = finding(bind("uid-a", BindKind.CONTAINER), Verdict.STALE, source=NEW)
    look = cycle(steps[5].findings[0], born, looked_at=20.05, actions=[replace_action(born.bind)])
    again = cycle(*steps[5].findings[:2], outcomes=[outcome(born.bind, at=21.0)], looked_at=22.0)
    events = said(*steps[:5], look, again)
    assert events.count(("web-0", STALE)) == 1
    assert events.count(("web-0", RECOVERED)) == 1


def test_a_closed_incident_ends_what_no_look_has_confirmed() -> None:
    steps = outage()
    last = replace(steps[5], snapshot=steps[4].snapshot)
    assert said(*steps[:5], last) == said(*steps)


def test_repaired_by_others_or_gone_is_not_our_recovery() -> None:
    steps = outage()
    assert said(*steps[:3], replace(steps[5], incidents_closed=())) == said(*steps[:3])
    assert said(*steps[:3], cycle(looked_at=99.0)) == said(*steps[:3])


def test_failure_is_told_once_in_an_outage() -> None:
    stale = finding(bind(), Verdict.STALE, source=NEW)
    failed = outcome(bind(), OutcomeStatus.FAILED, Reason.SYSTEM_CALL)
    again = cycle(stale, outcomes=[failed], actions=[replace_action(stale.bind)])
    assert said(again, again, again) == [("web-0", STALE), ("web-0", FAILED)]


@pytest.mark.parametrize("reason", Reason)
def test_only_what_lasts_is_called_unrecoverable(reason: Reason) -> None:
    stale = finding(bind(), Verdict.STALE)
    refused = cycle(stale, refused=[Refusal(stale, reason)])
    expected = [("web-0", STALE)]
    if reason not in NOT_FOR_GOOD:
        expected.append(("web-0", UNRECOVERABLE))
    assert said(refused, refused) == expected
    assert (reason in (Reason.IDMAP, Reason.NO_SOURCE, Reason.LOCKED)) <= (len(expected) == 2)


def test_refused_by_the_executor_is_unrecoverable_too() -> None:
    stale = finding(bind(), Verdict.STALE, source=NEW)
    refused = outcome(bind(), OutcomeStatus.REFUSED, Reason.SUBPATH_UNSAFE)
    assert said(cycle(stale, outcomes=[refused])) == [("web-0", STALE), ("web-0", UNRECOVERABLE)]


def test_bare_directory_is_unrecoverable() -> None:
    bare = cycle(finding(bind(device=None), Verdict.BARE))
    assert said(bare, bare) == [("web-0", UNRECOVERABLE)]


def test_hung_and_answering_again() -> None:
    steps = (
        Verdict.HEALTHY,
        Verdict.SLOW,
        Verdict.HUNG,
        Verdict.SLOW,
        Verdict.HUNG,
        Verdict.HEALTHY,
        Verdict.HUNG,
    )
    assert said(*(cycle(finding(bind(), verdict)) for verdict in steps)) == [
        ("web-0", HUNG),
        ("web-0", RECOVERED),
        ("web-0", HUNG),
    ]


def test_hung_then_dead_then_recovered() -> None:
    hung = cycle(finding(bind("uid-a"), Verdict.HUNG), finding(bind("uid-b")))
    assert said(hung, *outage()[1:])[:2] == [("web-0", HUNG), ("web-0", STALE)]
    assert said(hung, *outage()[1:]).count(("web-0", RECOVERED)) == 1


def test_a_writable_layer_on_a_live_mount_is_no_event() -> None:
    layered = cycle(finding(bind(), Verdict.STALE))
    alive = {d: replace(c, answer=None) for d, c in layered.snapshot.connections.items()}
    assert said(replace(layered, snapshot=replace(layered.snapshot, connections=alive))) == []


def test_a_pod_that_is_being_deleted_is_left_in_peace() -> None:
    ending = {"uid-a": pod("uid-a", "web-0", is_deleting=True), "uid-b": PODS["uid-b"]}
    assert said(*outage(ending)) == [("web-1", STALE), ("web-1", RECOVERED)]


def test_events_wait_for_the_pod_list() -> None:
    unnamed = outage(pods=None)
    assert said(*unnamed) == []
    assert said(*unnamed, cycle(at=30.0)) == said(*outage())


def test_an_old_pod_list_is_not_taken_for_the_pod_being_gone() -> None:
    unnamed = outage(pods={}, are_current=False)
    assert said(*unnamed, cycle(pods={}, are_current=False), cycle()) == said(*outage())
    assert said(*unnamed, cycle(pods={}, are_current=True), cycle()) == []


@settings(max_examples=30)
@given(st.integers(0, 2 * MAX_BACKLOG))
def test_backlog_is_bounded_and_keeps_the_newest(count: int) -> None:
    drafts: list[EventDraft] = []
    dropped: list[int] = []
    reporter = PodEvents(drafts.append, give_up=dropped.append)
    stale = [finding(bind(f"uid-{n}"), Verdict.STALE) for n in range(count)]
    reporter.report(cycle(*stale, pods=None))
    names = {f"uid-{n}": pod(f"uid-{n}", f"web-{n}") for n in range(count)}
    reporter.report(cycle(*stale, pods=names))
    assert len(drafts) == min(count, MAX_BACKLOG)
    assert sum(dropped) == max(0, count - MAX_BACKLOG)
    names_told = [d.regarding.name for d in drafts if d.regarding.kind == "Pod"]
    newest = range(max(0, count - MAX_BACKLOG), count)
    assert names_told == [f"web-{n}" for n in newest][:MAX_PODS]


def hit(count: int, at: float, *, step: int, first: int = 0) -> CycleReport:
    """One step of an outage that hits many pods at once."""
    names = {f"uid-{n}": pod(f"uid-{n}", f"web-{n}") for n in range(first, first + count)}
    binds = [bind(uid) for uid in names]
    stale = [finding(b, Verdict.STALE, source=NEW) for b in binds]
    healed = [finding(replace(b, mount=mount(b.key.mount_point, NEW))) for b in binds]
    if step == 0:
        return cycle(*stale, at=at, pods=names, actions=[replace_action(b) for b in binds])
    outcomes = [outcome(b, at=at) for b in binds]
    return cycle(*healed, at=at, pods=names, outcomes=outcomes, looked_at=at + 1)


def test_a_few_dozen_pods_get_an_event_each() -> None:
    drafts = posted(hit(48, 10.0, step=0), hit(48, 11.0, step=1))
    assert {d.regarding.kind for d in drafts} == {"Pod"}
    assert len(drafts) == 2 * 48


def test_of_a_storm_the_node_tells_what_is_too_much_for_the_pods() -> None:
    reporter_steps = [hit(500, 10.0 + n, step=n % 2) for n in range(20)]
    drafts = posted(*reporter_steps)
    assert len(drafts) == 500 * 20
    own = {d.regarding.uid for d in drafts if d.regarding.kind == "Pod"}
    assert len(own) == MAX_PODS
    # Every draft is one object at the API server, however often it is handed over.
    assert len(set(drafts)) == 2 * MAX_PODS + 2
    on_node = {d for d in drafts if d.regarding.kind == "Node"}
    assert {d.reason for d in on_node} == {STALE, RECOVERED}
    assert {d.regarding for d in on_node} == {ObjectReference("Node", "", "node-7", "node-7")}
    assert sum(d.regarding.kind == "Node" for d in drafts) == (500 - MAX_PODS) * 20
    # Whose outage began in an Event of his own, ends in one.
    counts = Counter((d.regarding.uid, d.reason) for d in drafts if d.regarding.kind == "Pod")
    assert set(counts.values()) == {10}


def test_one_that_is_hit_all_the_time_keeps_no_place_of_others() -> None:
    limit = EventLimit()
    assert all(limit.admits(f"u{n}", 0.0) for n in range(MAX_PODS))
    assert limit.admits("u0", WINDOW_SECONDS - 10)
    assert not limit.admits("new", WINDOW_SECONDS - 10)
    assert limit.admits("new", WINDOW_SECONDS + 10)


def test_after_a_storm_pods_are_told_one_by_one_again() -> None:
    reporter_steps = [hit(500, 10.0, step=0), hit(500, 11.0, step=1)]
    later = 11.0 + WINDOW_SECONDS + 1
    drafts = posted(*reporter_steps, hit(3, later, step=0, first=900))
    assert [d.regarding.name for d in drafts[-3:]] == ["web-900", "web-901", "web-902"]


def test_closing_gives_up_what_waits() -> None:
    drafts: list[EventDraft] = []
    dropped: list[int] = []
    reporter = PodEvents(drafts.append, give_up=dropped.append)
    reporter.report(outage(pods=None)[1])
    reporter.close()
    assert (drafts, dropped) == ([], [2])


def test_nothing_is_remembered_of_what_is_over() -> None:
    reporter = PodEvents(lambda draft: None)
    for step in outage():
        reporter.report(step)
    before = cycle(closed=[closed(incident(bind()))])
    drafts: list[EventDraft] = []
    later = PodEvents(drafts.append)
    later.report(before)
    assert drafts == []


def test_a_pod_over_its_quota_is_told_once_for_all_that_it_is_refused() -> None:
    def over(*resources: Resource) -> CycleReport:
        refused = [RefusedOwner(pod_owner("uid-a"), one, 64, 6000) for one in resources]
        refused.append(RefusedOwner(FOREIGN, Resource.QUESTIONS, 64))
        return with_ledger(cycle(), refused_owners=follow({}, refused, 1.0))

    both = over(Resource.BINDS, Resource.TABLE)
    (draft,) = posted(both, both)
    assert draft.reason == "FuseMountQuotaMet"
    assert isinstance(draft.regarding, ObjectReference)
    assert draft.regarding.name == "web-0"
    assert len(posted(both, over(), both)) == 2
