"""What changes in the daemon's memory, and what of it outlives the daemon."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.decision import Phase, Propagation
from fusewatchd.errors import ParseError
from fusewatchd.ledger import ContainerFacts, Ledger
from fusewatchd.lifecycle import TRANSITIONS, Signal, advance, signal_of
from fusewatchd.memory import BackOff
from fusewatchd.model import Device, Mount, TargetKey, Verdict
from fusewatchd.mountinfo import MountTable
from fusewatchd.persistence import document_of, is_same_memory, ledger_from
from fusewatchd.pods import Pods
from fusewatchd.printable import printable
from fusewatchd.statefile import NAME, StateWriter, read_boot_id, read_state, write_state
from fusewatchd.wire import decode, encode
from tests.unit.scenes import UID, Scene, pod, usual

KEY = TargetKey(0, "/a")

# -------------------------------------------------------------------------- lifecycle


def test_every_phase_but_the_last_can_be_left_and_reached() -> None:
    left = {phase for phase, _ in TRANSITIONS}
    reached = set(TRANSITIONS.values())
    assert left == set(Phase) - {Phase.GONE}
    assert reached == set(Phase)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("signal", Signal)
def test_each_pair_is_in_the_table_or_refused(phase: Phase, signal: Signal) -> None:
    if (phase, signal) in TRANSITIONS:
        assert advance(phase, signal) is TRANSITIONS[phase, signal]
    else:
        with pytest.raises(KeyError):
            advance(phase, signal)


@pytest.mark.parametrize("phase", [p for p in Phase if p is not Phase.GONE])
@pytest.mark.parametrize("verdict", Verdict)
def test_every_verdict_can_be_met_in_every_phase(phase: Phase, verdict: Verdict) -> None:
    advance(phase, signal_of(verdict))


def test_only_an_outcome_ends_a_recovery() -> None:
    ends = {s for (p, s), to in TRANSITIONS.items() if p is Phase.RECOVERING and to is not p}
    assert ends == {Signal.SUCCEEDED, Signal.FAILED}


@given(st.integers(1, 200), st.text(min_size=1, max_size=20))
def test_back_off_is_bounded_and_repeatable(failures: int, path: str) -> None:
    back_off = BackOff(0.25, 60.0)
    key = TargetKey(0, path)
    delay = back_off.delay(key, failures)
    full = min(60.0, 0.25 * 2.0 ** (failures - 1))
    assert 0.8 * full <= delay <= 1.2 * full
    assert delay == back_off.delay(key, failures)


# ------------------------------------------------------------------------ persistence


def remembered() -> tuple[Ledger, MountTable]:
    scene, _, bind = usual()
    facts = ContainerFacts(Propagation.SLAVE, True, UID, "c1", "/bind", 7, Device(0, 8))
    layers = {TargetKey(0, bind.mount_point): (bind.unique_id,)}
    ledger = replace(scene.ledger, own_layers=layers, containers={TargetKey(7, "/data"): facts})
    return ledger, MountTable.of(scene.mounts)


def test_memory_comes_back_as_it_was() -> None:
    ledger, table = remembered()
    document = json.loads(json.dumps(document_of(ledger, "boot")))
    again = ledger_from(document, "boot", table)
    assert is_same_memory(again, ledger)
    assert again.facts


def test_what_is_not_mounted_any_more_is_forgotten() -> None:
    ledger, _ = remembered()
    again = ledger_from(document_of(ledger, "boot"), "boot", MountTable.of(()))
    assert (again.facts, again.own_layers) == ({}, {})


def test_another_mount_at_the_same_place_inherits_nothing() -> None:
    ledger, table = remembered()
    others = [replace(m, unique_id=m.unique_id + 5) for m in table.fuse_mounts()]
    again = ledger_from(document_of(ledger, "boot"), "boot", MountTable.of(others))
    assert (again.facts, again.own_layers) == ({}, {})


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
    ],
)
def test_a_document_that_cannot_be_believed(change: dict[str, Any], problem: str) -> None:
    ledger, table = remembered()
    with pytest.raises(ParseError, match=problem):
        ledger_from({**document_of(ledger, "boot"), **change}, "boot", table)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3), max_leaves=8))  # fmt: skip
def test_no_document_at_all_is_worse_than_an_error(document: Any) -> None:
    with pytest.raises(ParseError):
        ledger_from(document, "boot", MountTable.of(()))


# ------------------------------------------------------------------------- state file


def test_written_whole_for_root_only_and_read_back(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    write_state(str(directory), {"a": 1})
    write_state(str(directory), {"a": 2})
    assert read_state(str(directory)) == {"a": 2}
    assert os.listdir(directory) == [NAME]
    assert stat.S_IMODE(os.stat(directory / NAME).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700


def test_no_file_is_no_memory(tmp_path: Path) -> None:
    assert read_state(str(tmp_path)) is None


@pytest.mark.parametrize("content", [b"", b'{"a"', b"\xff\xff", b"[" * 100_000])
def test_a_torn_file_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    (tmp_path / NAME).chmod(0o600)
    with pytest.raises(ParseError, match="torn or empty"):
        read_state(str(tmp_path))


def test_a_file_that_others_can_write_is_not_believed(tmp_path: Path) -> None:
    write_state(str(tmp_path), {})
    (tmp_path / NAME).chmod(0o620)
    with pytest.raises(ParseError, match="others can write it"):
        read_state(str(tmp_path))


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("{}")
    (tmp_path / NAME).symlink_to("real")
    with pytest.raises(ParseError):
        read_state(str(tmp_path))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_state(str(tmp_path), {"old": True})
    (tmp_path / (NAME + ".new")).mkdir()
    with pytest.raises(OSError):
        write_state(str(tmp_path), {"old": False})
    assert read_state(str(tmp_path)) == {"old": True}


def test_the_writer_writes_the_last_one_and_says_what_fails(tmp_path: Path) -> None:
    writer = StateWriter(str(tmp_path / "s"))
    for number in range(50):
        writer.save(lambda number=number: {"number": number})  # type: ignore[misc]
    writer.close()
    assert read_state(str(tmp_path / "s")) == {"number": 49}
    assert writer.problem == ""
    (tmp_path / "file").touch()
    failing = StateWriter(str(tmp_path / "file"))
    failing.save(dict)
    failing.close()
    assert "file" in failing.problem


def test_a_boot_has_an_id() -> None:
    assert len(read_boot_id()) == 36


# ------------------------------------------------------------------------------- pods


def test_a_list_is_current_until_a_bind_comes_or_goes() -> None:
    pods = Pods()
    assert (pods.known, pods.are_current, pods.gap()) == (None, False, None)
    assert pods.take_binds({"/x"}, 10.0)
    pods.take_list([pod()], asked_at=9.0)
    assert not pods.are_current
    pods.take_list([pod()], asked_at=11.0)
    assert pods.are_current
    assert not pods.take_binds({"/x"}, 12.0)
    assert pods.are_current
    assert pods.take_binds(set(), 13.0)
    assert not pods.are_current


def test_a_kubelet_that_fails_keeps_names_and_proves_nothing() -> None:
    pods = Pods()
    pods.take_list([pod()], asked_at=1.0)
    pods.take_problem("connection refused")
    assert pods.known is not None
    assert not pods.are_current
    gap = pods.gap()
    assert gap is not None
    assert gap.reason == "connection refused"
    pods.take_list([pod()], asked_at=2.0)
    assert pods.gap() is None


# --------------------------------------------------------------------- wire, printable

TEXT = st.text(st.characters(exclude_categories=()), max_size=20)


@given(TEXT, TEXT, st.integers(0, 2**40))
def test_values_survive_the_wire(point: str, root: str, number: int) -> None:
    mount = Mount(number, 1, Device(0, 5), root, point, "rw", 0, 0, "fuse", "s", "rw", number)
    assert decode(Mount, json.loads(json.dumps(encode(mount)))) == mount


@pytest.mark.parametrize(
    "value", [None, 1, {}, {"major": "x", "minor": 1}, {"major": True, "minor": 1}]
)
def test_what_has_another_shape_is_refused(value: Any) -> None:
    with pytest.raises(ParseError):
        decode(Device, value)


@given(TEXT, st.integers(4, 40))
def test_printable_text_is_bounded_and_has_no_control(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", "a\\x0ab"),
        ("\x1b[31m", "\\x1b[31m"),
        ("back\\slash", "back\\\\slash"),
        ("\udcff", "\\xff"),
        ("\u202e", "\\u202e"),
        ("naïve", "naïve"),
    ],
)
def test_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_scene_is_looked_at_like_a_node() -> None:
    assert Scene().look().findings == ()
