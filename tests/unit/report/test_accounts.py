"""What is said of mounts that nothing explains, and of an outage that left some of them."""

from __future__ import annotations

from dataclasses import replace

from fusewatchd.doctor.account_checks import account_findings
from fusewatchd.doctor.findings import Level as FindingLevel
from fusewatchd.log import Level
from fusewatchd.model.accounts import Account, Accounts, MountClass, account_of
from fusewatchd.model.cycle import CycleReport
from fusewatchd.report.events.draft import EventDraft
from fusewatchd.report.events.pods import PodEvents
from fusewatchd.report.metrics.metrics import Metrics
from fusewatchd.status.accounts import accounts_document, accounts_lines
from fusewatchd.status.document import exit_code
from tests.unit.cycles import OLD, cycle, mount, outage
from tests.unit.report.log.test_log_reporter import told
from tests.unit.status.test_document import document


def account(kind: MountClass, uid: str = "uid-a", point: str = "/data", **more: object) -> Account:
    made = Account(kind, mount(point, OLD), 7, uid, uid, "it is there", is_of_volume=True)
    return replace(made, **more)  # type: ignore[arg-type]


DEAD = account(MountClass.STILL_DEAD, is_dead=True)
ODD = account(MountClass.NOT_UNDERSTOOD, "", "/odd")


def with_accounts(of: CycleReport, *accounts: Account) -> CycleReport:
    return replace(of, accounts=account_of(accounts))


def test_the_exit_code_is_never_0() -> None:
    assert exit_code(document(with_accounts(cycle(looked_at=1.0), ODD))) == 2
    assert exit_code(document(with_accounts(cycle(looked_at=1.0), ODD, DEAD))) == 1
    own = account(MountClass.OWN, is_dead=True)
    assert exit_code(document(with_accounts(cycle(looked_at=1.0), own))) == 0


def test_lines_of_the_status() -> None:
    made = with_accounts(cycle(), DEAD, ODD, account(MountClass.COPY, "", "/copy"))
    assert accounts_lines({"accounts": accounts_document(made)}) == [
        ("Still dead, restart the pod: pod shop/web-0, ", "/data"),
        ("Not understood: ", "/odd"),
        "3 FUSE mounts: 1 copy, 1 not understood, 1 still dead",
    ]


def test_the_log_warns_once() -> None:
    steps = ((DEAD,), (DEAD,), (DEAD, ODD), ())
    log = told(*(with_accounts(cycle(), *accounts) for accounts in steps))
    events = [(e.level, e.fields["event"]) for e in log.entries]
    assert events == [
        (Level.WARNING, "still_dead"),
        (Level.WARNING, "not_understood"),
        (Level.INFO, "accounts_clear"),
    ]


def test_an_outage_that_left_dead_places_is_not_over_for_their_pod() -> None:
    steps = outage()
    steps[-1] = with_accounts(steps[-1], DEAD)
    log = told(*steps)
    drafts: list[EventDraft] = []
    events = PodEvents(drafts.append, "node-7")
    for step in steps:
        events.report(step)
    (entry,) = (e for e in log.entries if e.fields["event"] == "recovered")
    assert entry.level is Level.WARNING
    assert entry.text.startswith(
        "recovered on the host, 1 place still shows the dead one: pod uid-a, /data"
    )
    said = [(draft.regarding.name, draft.reason) for draft in drafts]
    assert said[-2:] == [("web-0", "FuseMountUnrecoverable"), ("web-1", "FuseMountRecovered")]


def test_the_sums_are_metrics() -> None:
    metrics = Metrics("1")
    metrics.report(with_accounts(cycle(), DEAD, ODD))
    page = metrics.page().body.decode()
    assert 'fusewatchd_fuse_mounts{class="still_dead"} 1.0' in page
    assert 'fusewatchd_dead_fuse_mounts{class="still_dead"} 1.0' in page
    assert 'fusewatchd_dead_fuse_mounts{class="not_understood"}' not in page


def test_the_doctor_fails() -> None:
    made = with_accounts(cycle(), DEAD, ODD)
    found = list(account_findings({"accounts": accounts_document(made)}))
    assert [one.level for one in found] == [FindingLevel.FAIL, FindingLevel.FAIL]
    (fine,) = account_findings({"accounts": accounts_document(replace(made, accounts=Accounts()))})
    assert fine.level is FindingLevel.OK
