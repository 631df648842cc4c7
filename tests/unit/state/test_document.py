"""What of the daemon's memory outlives it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.diagnose import lineage
from fusewatchd.errors import ParseError
from fusewatchd.model.actions import (
    DropLayers,
    Expect,
    NamespaceRef,
    Outcome,
    OutcomeStatus,
    OwnLayer,
    Propagation,
    ReplaceMount,
)
from fusewatchd.model.findings import SourceAnswer, SourcePath
from fusewatchd.model.ledger import ContainerFacts, Ledger, Owner, TargetState
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount, TargetKey
from fusewatchd.model.outages import Incident, Outage, Phase
from fusewatchd.model.servers import Answer, FuseServer, OomKill, ServerEnd
from fusewatchd.model.verdicts import Reason
from fusewatchd.plan.back_off import BackOff
from fusewatchd.reconcile.ledger_update import take_outcomes
from fusewatchd.state.document import document_of, is_same_memory, ledger_from
from tests.unit.scenes import OLD, ROOT, SOURCE, UID, Scene, publish_path, usual

KEY = TargetKey(0, "/a")
# ------------------------------------------------------------------------------ races

BIND = TargetKey(0, "/bind")
INSIDE = TargetKey(7, "/data")


def replaced(at: float, status: OutcomeStatus = OutcomeStatus.RECOVERED) -> Outcome:
    action = ReplaceMount(
        BIND, Expect("/bind", Device(0, 5)), Expect("/s", Device(0, 6)), Propagation.OWN_GROUP
    )
    return Outcome(action, status, started_at=at - 0.001, finished_at=at)


def raced(at: float, *, sees: bool = True) -> Outcome:
    expect, origin = Expect("/data", Device(0, 5), 12), Expect("/bind", Device(0, 6))
    there = NamespaceRef(7, 1, 1)
    action = ReplaceMount(INSIDE, expect, origin, Propagation.SLAVE, namespace=there)
    layer = Mount(11, 1, Device(0, 5), "/", "/data", "rw", 0, 0, "fuse", "t", "rw")
    return Outcome(
        action, OutcomeStatus.SKIPPED, Reason.RACED, found=layer if sees else None,
        started_at=at - 0.001, finished_at=at,
    )  # fmt: skip


def take(ledger: Ledger, *outcomes: Outcome) -> Ledger:
    """Take in how attempts ended."""
    states = {
        outcome.action.key: replace(
            ledger.state(outcome.action.key), phase=Phase.RECOVERING, is_in_flight=True
        )
        for outcome in outcomes
    }
    ledger = replace(ledger, states={**ledger.states, **states})
    return take_outcomes(ledger, outcomes, BackOff(10.0, 60.0))


def waits(ledger: Ledger, now: float) -> bool:
    return ledger.state(INSIDE).retry_at > now


def test_a_race_with_our_own_detach_is_tried_again_at_once_and_once() -> None:
    ledger = take(Ledger(), replaced(5.0), raced(5.1))
    assert not waits(ledger, 5.1)
    ledger = take(ledger, raced(5.2))
    assert waits(ledger, 5.3)
    # At the next crash as well.
    ledger = take(ledger, replaced(50.0), raced(50.1))
    assert not waits(ledger, 50.1)


def test_the_outcome_on_the_host_may_have_come_before() -> None:
    ledger = take(Ledger(), replaced(5.0))
    assert not waits(take(ledger, raced(5.1)), 5.1)


@pytest.mark.parametrize(
    "outcomes",
    [
        (raced(5.1),),
        (replaced(5.0, OutcomeStatus.FAILED), raced(5.1)),
        (replaced(5.0), raced(5.1, sees=False)),
    ],
    ids=["of somebody else", "not replaced", "nothing seen"],
)
def test_a_race_with_somebody_else_waits(outcomes: tuple[Outcome, ...]) -> None:
    assert waits(take(Ledger(), *outcomes), 5.2)


def raced_on_host(at: float, found: Device) -> Outcome:
    """Another layer is on top, of the file system that is replaced or of a third one."""
    done = replaced(at, OutcomeStatus.SKIPPED)
    assert isinstance(done.action, ReplaceMount)
    action = replace(done.action, stale_devices=(Device(0, 5),))
    layer = Mount(11, 1, found, "/", "/bind", "rw", 0, 0, "fuse", "t", "rw")
    return replace(done, action=action, reason=Reason.RACED, found=layer)


def test_a_dead_layer_that_dropping_brought_to_light_is_replaced_at_once() -> None:
    ledger = take(Ledger(), raced_on_host(5.0, Device(0, 5)))
    assert ledger.state(BIND).retry_at <= 5.0
    again = take(ledger, raced_on_host(5.1, Device(0, 5)))
    assert again.state(BIND).retry_at > 5.2, "once"
    other = take(Ledger(), raced_on_host(5.0, Device(0, 8)))
    assert other.state(BIND).retry_at > 5.2


def test_dropping_layers_is_no_attempt_to_replace() -> None:
    """The bind is as stale as before, and what could not be dropped delays nothing."""
    action = DropLayers(BIND, Expect("/bind", Device(0, 5), 12), (Device(0, 5),))
    stale = TargetState(Phase.STALE, is_in_flight=True, last_outcome=replaced(1.0))
    ledger = Ledger(states={BIND: stale})
    for status in (OutcomeStatus.DETACHED, OutcomeStatus.REFUSED, OutcomeStatus.FAILED):
        outcome = Outcome(action, status, started_at=4.9, finished_at=5.0)
        state = take_outcomes(ledger, [outcome], BackOff(10.0, 60.0)).state(BIND)
        assert (state.phase, state.retry_at, state.failures) == (Phase.STALE, 0.0, 0)
        assert not state.is_in_flight
        is_told = status is not OutcomeStatus.DETACHED
        assert state.last_outcome == (outcome if is_told else stale.last_outcome)


def test_what_a_hidden_layer_has_inside_need_not_be_there_again() -> None:
    """It came to light when the layers above it went, and the kernel may take it away."""
    for is_dead in (True, False):
        scene = Scene()
        scene.mount(SOURCE)
        scene.mount(publish_path(), peer_group=6)
        lower, upper = scene.inside(), scene.inside()
        upper = replace(upper, parent_id=lower.mount_id)
        hidden = scene.inside("/data/hello", root="/hello", parent=lower.mount_id)
        scene.container(lower, upper, hidden)
        scene.look()
        if is_dead:
            scene.answers[OLD] = Answer.DISCONNECTED
        scene.namespaces = []
        scene.container(lower, hidden)
        scene.look()
        (facts,) = (f for key, f in scene.ledger.containers.items() if key.mount_point == "/data")
        assert facts.inside == (() if is_dead else (hidden,))


# ------------------------------------------------------------------------ persistence


def remembered() -> tuple[Ledger, MountTable]:
    scene, _, bind = usual()
    inside = Mount(71, 70, Device(0, 9), "/e", "/data/e", "rw", 0, 0, "tmpfs", "t", "rw", 10_071)
    facts = ContainerFacts(
        Propagation.SLAVE,
        True,
        UID,
        "c1",
        "/bind",
        7,
        Device(0, 8),
        inside=(inside,),
        received=(72,),
        driver="demofs",
        source=SourceAnswer("lineage", "seen there", (SourcePath(SOURCE),)),
    )
    server = FuseServer(7, 70, (OLD,), name="demofs")
    end = ServerEnd(8.5, server, OomKill.NO, "no kill counted", 9)
    open_outage = Incident(OLD, "demofs", SOURCE, 9.0, 8.5, 9.5, end=end)
    layers = {
        TargetKey(0, bind.mount_point): (OwnLayer.of(bind),),
        TargetKey(7, "/data"): (OwnLayer(70, 10_070, Device(0, 8)),),
    }
    ledger = replace(
        scene.ledger,
        own_layers=layers,
        containers={TargetKey(7, "/data"): facts},
        owners={UID: Owner("shop", "disabled")},
        outages=(Outage(Device(0, 8), SOURCE, 1.0, 4.0, 0.5, 3.0, 4.0, 2, 2),),
        incidents={OLD: open_outage},
    )
    return ledger, MountTable.of(scene.mounts)


def test_memory_comes_back_as_it_was() -> None:
    ledger, table = remembered()
    document = json.loads(json.dumps(document_of(ledger, "boot")))
    again = ledger_from(document, "boot", table)
    assert is_same_memory(again, ledger)
    assert again.facts


def test_an_outage_that_is_open_is_still_the_same() -> None:
    """Its beginning and its server's end are known; what it hits is seen again."""
    ledger, table = remembered()
    document = json.loads(json.dumps(document_of(ledger, "boot")))
    assert ledger_from(document, "boot", table).incidents == ledger.incidents
    assert not ledger_from(document, "boot", MountTable.of(())).incidents, "nothing shows it"
    document["open_outages"][0]["noticed_at"] = -1.0
    with pytest.raises(ParseError, match="no time of this boot"):
        ledger_from(document, "boot", table)


def test_what_becomes_of_an_open_outage_is_nothing_to_write_down() -> None:
    ledger, _ = remembered()
    (incident,) = ledger.incidents.values()
    later = replace(incident, open_targets=frozenset({KEY}), targets=frozenset({KEY}))
    assert is_same_memory(ledger, replace(ledger, incidents={OLD: later}))
    assert not is_same_memory(ledger, replace(ledger, incidents={}))
    assert not is_same_memory(ledger, replace(ledger, incidents={OLD: replace(later, end=None)}))


def test_another_annotation_is_something_to_write_down() -> None:
    ledger, _ = remembered()
    assert not is_same_memory(ledger, replace(ledger, owners={UID: Owner("shop")}))


STATES = Path(__file__).parents[2] / "data" / "state"
NEWEST_OLD = "2-without-open-outages"


def test_the_golden_file_is_what_is_written() -> None:
    """When this fails, keep the file under another name and write a new one: see below."""
    ledger, _ = remembered()
    golden = json.loads((STATES / "2.json").read_text())
    assert document_of(ledger, "boot") == golden, "the format has changed"


@pytest.mark.parametrize("file", sorted(STATES.iterdir()), ids=lambda file: file.stem)
def test_what_any_version_wrote_is_believed(file: Path) -> None:
    ledger, table = remembered()
    again = ledger_from(json.loads(file.read_text()), "boot", table)
    bind = next(m for m in table.fuse_mounts() if m.mount_point.startswith(ROOT))
    found = lineage.answer(again.facts, bind)
    expected = lineage.answer(ledger.facts, bind)
    assert found is not None and expected is not None
    # Earlier versions did not write down what proves which mount is the older.
    assert found == replace(expected, is_older=file.stem in ("2", NEWEST_OLD))
    assert again.own_layers.keys() <= ledger.own_layers.keys()
    for key, layers in ledger.own_layers.items():
        # Earlier versions knew of none in containers.
        assert again.own_layers.get(key, ()) == (layers if key.is_host or not is_old(file) else ())
    for key, facts in ledger.containers.items():
        known = again.containers[key]
        expected = replace(facts, inside=()) if is_old(file) else facts
        if file.stem != "2":
            expected = replace(expected, driver="", source=None)
        if file.stem not in ("2", NEWEST_OLD):
            expected = replace(expected, received=())
        assert known == expected


def is_old(file: Path) -> bool:
    """True for one that knows no layers in containers."""
    return file.stem in ("2-without-ages", "2-without-mounts")


def test_what_an_earlier_version_did_not_write_is_nothing() -> None:
    ledger, table = remembered()
    document = document_of(ledger, "boot")
    del document["owners"], document["outages"]
    again = ledger_from(document, "boot", table)
    assert (again.facts, again.owners, again.outages) == (ledger.facts, {}, ())


@pytest.mark.parametrize("moment", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_time_that_no_boot_has_is_refused(moment: float) -> None:
    ledger, table = remembered()
    document = json.loads(json.dumps(document_of(ledger, "boot")))
    document["outages"][0]["source_up_at"] = moment
    with pytest.raises(ParseError, match="no time of this boot"):
        ledger_from(document, "boot", table)


@pytest.mark.parametrize("tied", [-1, 0, 2])
def test_no_more_places_are_alike_than_there_are(tied: int) -> None:
    ledger, table = remembered()
    document = json.loads(json.dumps(document_of(ledger, "boot")))
    document["lineage"][0]["tied"] = tied
    with pytest.raises(ParseError, match="candidates are alike"):
        ledger_from(document, "boot", table)


def test_what_is_not_mounted_any_more_is_forgotten() -> None:
    ledger, _ = remembered()
    again = ledger_from(document_of(ledger, "boot"), "boot", MountTable.of(()))
    assert again.facts == {}
    # What is in a container cannot be seen before the first look into it.
    assert [key.is_host for key in again.own_layers] == [False]


def test_another_mount_at_the_same_place_inherits_nothing() -> None:
    ledger, table = remembered()
    others = [replace(m, unique_id=m.unique_id + 5) for m in table.fuse_mounts()]
    again = ledger_from(document_of(ledger, "boot"), "boot", MountTable.of(others))
    assert again.facts == {}
    assert [key.is_host for key in again.own_layers] == [False]


def test_the_layers_that_an_earlier_version_wrote_down_are_known() -> None:
    ledger, table = remembered()
    document = document_of(ledger, "boot")
    for item in document["own_layers"]:
        del item["mounts"]
    again = ledger_from(document, "boot", table)
    (key,) = (key for key in ledger.own_layers if key.is_host)
    assert again.own_layers == {key: ledger.own_layers[key]}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"boot_id": "other"}, "another boot"),
        ({"version": 1}, "version 1"),
        ({"version": None}, "version None"),
        ({"lineage": {}}, "lineage is no list"),
        ({"lineage": [{}]}, "not a Fact"),
        ({"containers": [{"key": 1}]}, "not a _Container"),
        ({"own_layers": None}, "own_layers is no list"),
        ({"owners": None}, "owners is no list"),
        ({"outages": [{}]}, "not a Outage"),
    ],
)
def test_a_document_that_cannot_be_believed(change: dict[str, Any], problem: str) -> None:
    ledger, table = remembered()
    with pytest.raises(ParseError, match=problem):
        ledger_from({**document_of(ledger, "boot"), **change}, "boot", table)


def nodes(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value of a document with the way to it, the whole included."""
    yield path, document
    if isinstance(document, (dict, list)):
        for step, value in document.items() if isinstance(document, dict) else enumerate(document):
            yield from nodes(value, (*path, step))


def with_value(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of a document that has something else at one place."""
    if not path:
        return value
    copied = copy.copy(document)
    copied[path[0]] = with_value(document[path[0]], path[1:], value)
    return copied


def written() -> tuple[dict[str, Any], MountTable]:
    ledger, table = remembered()
    return json.loads(json.dumps(document_of(ledger, "boot"))), table


MAY_BE_EMPTY = {"server_gone_at", "source_up_at", "recovered_at", "end", "server", "status"}
FACTS_MAY_LACK = (("facts", "device"), ("facts", "source"))
FIELDS = [path for path, _ in nodes(written()[0])]


@pytest.mark.parametrize("path", FIELDS, ids=lambda path: ".".join(map(str, path)) or "all")
def test_a_value_of_another_type_anywhere_is_refused(path: tuple[Any, ...]) -> None:
    document, table = written()
    (found,) = (value for where, value in nodes(document) if where == path)
    for other in (None, True, 7, 1.5, "text", [], {}, [[]], {"a": 1}, float("nan")):
        if type(other) is type(found) and not isinstance(found, dict):
            continue
        if other is None and ({*path[-1:]} & MAY_BE_EMPTY or path[-2:] in FACTS_MAY_LACK):
            continue
        if type(other) is int and isinstance(found, float):
            continue
        with pytest.raises(ParseError):
            ledger_from(with_value(document, path, other), "boot", table)


@pytest.mark.parametrize("path", FIELDS, ids=lambda path: ".".join(map(str, path)) or "all")
def test_no_number_and_no_text_is_worse_than_an_error(path: tuple[Any, ...]) -> None:
    document, table = written()
    (found,) = (value for where, value in nodes(document) if where == path)
    if isinstance(found, bool) or not isinstance(found, (int, str)):
        return
    numbers = [-1, 0, 2**31, 2**64, -(2**70), 10**400]
    texts = ["", "/", "..", "x" * 100_000, "\x00", "\udc80", "/proc/self/root"]
    for other in numbers if isinstance(found, int) else texts:
        try:
            again = ledger_from(with_value(document, path, other), "boot", table)
        except ParseError:
            continue
        for fact in again.facts.values():
            assert any(fact.is_about(mount) for mount in table.stack_at(fact.mount_point))
        for key, layers in again.own_layers.items():
            stack = table.stack_at(key.mount_point)
            assert not key.is_host or all(any(map(own.is_about, stack)) for own in layers)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3), max_leaves=8))  # fmt: skip
def test_no_document_at_all_is_worse_than_an_error(document: Any) -> None:
    with pytest.raises(ParseError):
        ledger_from(document, "boot", MountTable.of(()))


# --------------------------------------------------------------------- wire, printable

TEXT = st.text(st.characters(exclude_categories=()), max_size=20)


def test_a_scene_is_looked_at_like_a_node() -> None:
    assert Scene().look().findings == ()
