"""Where others than root can mount in the place of a source, from what was seen of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fusewatchd.doctor.findings import Finding, ok, warn

ADVICE = "make every directory above it root's, mode 0755; another user's server there is refused"


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """A place where a source is mounted, and who else can mount there."""

    path: str
    problem: str
    """Empty: nobody but root and the user whose server it is."""


def source_findings(sources: Sequence[SourceFacts]) -> Iterator[Finding]:
    """Name every source that other users could replace."""
    for source in sources:
        if source.problem:
            yield warn("source", f"{source.path}: {source.problem}", ADVICE)
    if sources and not any(source.problem for source in sources):
        yield ok("source", "only root can mount in the place of a source")
