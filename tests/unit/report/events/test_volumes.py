"""Events on claims and Datasets: of which volumes, and which words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusewatchd.model.actions import OutcomeStatus
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.findings import Finding
from fusewatchd.model.pods import BindKind, Pod, Volume, VolumeData
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.report.events.draft import EventDraft, VolumeObject, VolumeReference
from fusewatchd.report.events.event_limit import MAX_PODS
from fusewatchd.report.events.volumes import FLUID_CSI_DRIVER, VolumeEvents
from fusewatchd.report.events.wording import EventKind
from tests.unit.cycles import NEW, bind, cycle, finding, mount, outage, outcome, replace_action

CLAIM, DATASET = VolumeObject.CLAIM, VolumeObject.DATASET
BY_CLAIM = (Volume("data", "persistentVolumeClaim", claim="data-claim"),)


def pod(uid: str, *volumes: Volume, is_deleting: bool = False) -> Pod:
    return Pod(f"api-{uid}", uid, "shop", uid, "Running", is_deleting, volumes or BY_CLAIM)


PODS = {uid: pod(uid) for uid in ("uid-a", "uid-b")}


def posted(*cycles: CycleReport) -> list[EventDraft]:
    drafts: list[EventDraft] = []
    reporter = VolumeEvents(drafts.append, "node-7")
    for one in cycles:
        reporter.report(one)
    reporter.close()
    return drafts


def said(*cycles: CycleReport) -> list[tuple[VolumeReference, str]]:
    drafts = posted(*cycles)
    assert all(isinstance(d.regarding, VolumeReference) for d in drafts)
    return [(d.regarding, d.reason) for d in drafts if isinstance(d.regarding, VolumeReference)]


def of_fluid(step: CycleReport) -> CycleReport:
    data = {(uid, "pv-1"): VolumeData(FLUID_CSI_DRIVER, "handle") for uid in PODS}
    return replace(step, snapshot=replace(step.snapshot, volume_data=data))


def stale(*of: Finding, pods: dict[str, Pod] | None = None) -> CycleReport:
    return cycle(*of, pods=PODS if pods is None else pods)


def test_an_outage_is_told_once_on_the_claim_however_many_pods_use_it() -> None:
    claim = VolumeReference("pv-1", CLAIM)
    assert said(*outage(PODS)) == [(claim, "FuseMountStale"), (claim, "FuseMountRecovered")]


def test_a_dataset_reads_as_the_users_of_fluid_know_it() -> None:
    found = said(*(of_fluid(step) for step in outage(PODS)))
    dataset = VolumeReference("pv-1", DATASET)
    assert [reason for about, reason in found if about == dataset] == ["FuseRecoverSucceed"]
    assert len(found) == 3


def test_a_failure_is_told_on_the_dataset_too() -> None:
    broken = finding(bind(), Verdict.STALE, source=NEW)
    failed = outcome(bind(), OutcomeStatus.FAILED, Reason.SYSTEM_CALL)
    step = of_fluid(cycle(broken, outcomes=[failed], pods=PODS))
    assert [reason for _, reason in said(step, step)] == [
        "FuseMountStale",
        "FuseMountRecoveryFailed",
        "FuseRecoverFailed",
    ]


@pytest.mark.parametrize("kind", EventKind)
def test_every_note_names_the_node_and_fits(kind: EventKind) -> None:
    drafts: list[EventDraft] = []
    reporter = VolumeEvents(drafts.append, "n" * 253)
    reporter._announce(cycle(), _fluid_volume(), None, kind)
    assert drafts
    for draft in drafts:
        assert draft.note.startswith(f"On node {'n' * 253}: ")
        assert len(draft.note) <= 1024


def _fluid_volume() -> object:
    from fusewatchd.report.events.volumes import _Volume

    return _Volume("pv-1", is_fluid=True)


@pytest.mark.parametrize(
    ("owner", "is_told"),
    [
        (pod("uid-a"), True),
        (pod("uid-a", Volume("scratch", "ephemeral")), True),
        (pod("uid-a", Volume("pv-1", "csi", "csi.juicefs.com")), False),
        (pod("uid-a", Volume("pv-1", "csi", "csi.juicefs.com"), *BY_CLAIM), False),
        (pod("uid-a", Volume("pv-1", "flexVolume", "x/y"), *BY_CLAIM), False),
        (pod("uid-a", Volume("logs", "emptyDir"), *BY_CLAIM), True),
        (pod("uid-a", Volume("logs", "emptyDir")), False),
        (pod("uid-a", is_deleting=True), False),
        (None, False),
    ],
    ids=["claim", "generic-ephemeral", "inline", "inline-beside-a-claim", "flexvolume", "beside",
         "no-claim", "ending", "unknown-pod"],
)  # fmt: skip
def test_only_volumes_that_have_a_claim_are_told_of(owner: Pod | None, is_told: bool) -> None:
    pods = {} if owner is None else {"uid-a": owner}
    assert bool(said(stale(finding(bind(), Verdict.STALE), pods=pods))) is is_told


def test_recovered_waits_for_the_last_pod() -> None:
    one, other = bind("uid-a"), bind("uid-b")
    broken = [finding(b, Verdict.STALE, source=NEW) for b in (one, other)]
    healed = [finding(replace(b, mount=mount(b.key.mount_point, NEW))) for b in (one, other)]
    actions = [replace_action(one), replace_action(other)]
    steps = [
        cycle(*broken, actions=actions, pods=PODS),
        cycle(healed[0], broken[1], outcomes=[outcome(one)], looked_at=30.0, pods=PODS),
        cycle(*healed, outcomes=[outcome(other)], looked_at=30.0, pods=PODS),
    ]
    assert [reason for _, reason in said(*steps[:2])] == ["FuseMountStale"]
    assert [reason for _, reason in said(*steps)] == ["FuseMountStale", "FuseMountRecovered"]


def test_a_container_of_the_same_volume_is_no_further_event() -> None:
    host = finding(bind(), Verdict.STALE)
    inside = finding(bind(kind=BindKind.CONTAINER), Verdict.STALE)
    assert len(said(stale(host, inside))) == 1


def test_a_storm_of_volumes_is_bounded() -> None:
    broken = [finding(bind(volume=f"pv-{n}"), Verdict.STALE) for n in range(3 * MAX_PODS)]
    assert len(said(stale(*broken))) == MAX_PODS
