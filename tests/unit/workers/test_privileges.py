"""The table of rights, and what SECURITY.md says of it."""

from __future__ import annotations

import re
from pathlib import Path

from fusewatchd.model.capabilities import Capability
from fusewatchd.workers.privileges import PRIVILEGES, Calls, Kind

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
UNIT = (ROOT / "systemd" / "fusewatchd.service").read_text(encoding="utf-8")


def words(names: list[str]) -> str:
    return ", ".join(names) or "none"


def rights_of(kind: Kind) -> tuple[str, str, str]:
    """Return what a row of the page says of a kind, without the bytes that it reads."""
    own = PRIVILEGES[kind]
    kept = "all eight" if own.keeps == set(Capability) else words(sorted(c.name for c in own.keeps))
    denied = words(sorted(group.name.lower().replace("_", " ") for group in own.denies))
    return f"`{kind.value}`", kept, denied


def test_the_page_says_what_the_code_does() -> None:
    found = re.search(r"<!-- privileges -->\n(.*?)<!-- end of privileges -->", PAGE, re.DOTALL)
    assert found is not None
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in found[1].splitlines()[2:]
    ]
    assert [row[:3] for row in rows] == [rights_of(kind) for kind in Kind]
    assert all(len(row) == 4 and row[3] for row in rows)


def test_no_kind_keeps_what_the_unit_does_not_grant() -> None:
    (granted,) = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT, re.MULTILINE)
    assert {f"CAP_{capability.name}" for capability in Capability} == set(granted.split())


def test_only_the_fork_server_keeps_everything_and_becomes_others() -> None:
    powers = {Capability.SETUID, Capability.SETGID, Capability.KILL}
    for kind, own in PRIVILEGES.items():
        assert (own.keeps == set(Capability)) is (kind is Kind.FORK_SERVER)
        assert not (own.keeps & powers) or kind is Kind.FORK_SERVER


def test_every_kind_is_in_the_table_and_denied_something() -> None:
    assert set(PRIVILEGES) == set(Kind)
    assert all(own.denies for own in PRIVILEGES.values())


def test_who_reads_what_strangers_wrote_can_mount_and_write_nothing() -> None:
    for kind in (Kind.SCAN, Kind.HOLDERS):
        assert {Calls.MOUNTS, Calls.NAMESPACES, Calls.WRITING} <= PRIVILEGES[kind].denies
    assert {Calls.MOUNTS, Calls.NAMESPACES, Calls.PROGRAMS} <= PRIVILEGES[Kind.CORE].denies
