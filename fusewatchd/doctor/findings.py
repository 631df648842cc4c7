"""One line of an examination."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class Level(Enum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """Mounts are recovered all the same, with less knowledge or less margin."""
    FAIL = "fail"
    """Something would not be recovered, or is configured and does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    level: Level
    check: str
    """What was looked at, in a word or two."""
    text: str
    advice: str = ""
    """What to do about it; empty when there is nothing to do."""


def ok(check: str, text: str) -> Finding:
    """Make a finding that needs nobody."""
    return Finding(Level.OK, check, text)


def warn(check: str, text: str, advice: str) -> Finding:
    """Make a finding that is worth knowing."""
    return Finding(Level.WARN, check, text, advice)


def fail(check: str, text: str, advice: str) -> Finding:
    """Make a finding that somebody has to do something about."""
    return Finding(Level.FAIL, check, text, advice)


def counts(findings: Iterable[Finding]) -> dict[str, int]:
    """Return how many findings there are of each level."""
    found = [finding.level for finding in findings]
    return {level.value: found.count(level) for level in Level}


def document(findings: Iterable[Finding]) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    every = tuple(findings)
    listed = [{**asdict(finding), "level": finding.level.value} for finding in every]
    return {"totals": counts(every), "findings": listed}


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 1 when something failed; a warning alone is 0."""
    return int(any(finding.level is Level.FAIL for finding in findings))
