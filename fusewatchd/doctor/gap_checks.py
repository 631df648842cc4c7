"""What the daemon cannot see, as far as no check of its own says it; from ``status``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from fusewatchd.doctor.findings import Finding, fail

_ADVICE: Mapping[str, str] = {
    "containers": "set kubelet.url: the kubelet's list has the ids of its containers",
    "namespaces": "run the daemon as root on the host, where /proc and cgroups are all to be seen",
    "probes": "restart the server that hangs: 'fusewatchd status' names it",
}
_CHECKED = frozenset({"kubelet", "kubelet_root", "kubelet_namespace", "other_pods", "fusectl"})
"""Gaps that have a check which looks for itself."""


def gap_findings(gaps: Iterable[Mapping[str, str]]) -> Iterator[Finding]:
    """Judge the gaps of the document."""
    for gap in gaps:
        if gap["source"] not in _CHECKED:
            advice = _ADVICE.get(gap["source"], "'fusewatchd status' says more")
            yield fail(gap["source"], gap["reason"], advice)
