"""What would happen to each pod that uses a FUSE volume, read from the document of ``status``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fusewatchd.doctor.findings import Finding, fail, ok, warn
from fusewatchd.model.verdicts import ALARMING, Reason

Bind = Mapping[str, Any]

BROKEN = frozenset(verdict.value for verdict in ALARMING)
_HELD_BACK = frozenset({Reason.REPORT_ONLY.value, Reason.PAUSED.value})
_LET_ALONE = frozenset({Reason.DISABLED.value}) | _HELD_BACK
_ADVICE: Mapping[str, str] = {
    Reason.NO_SOURCE.value: "restart the pod; a daemon that ran before the crash would know",
    Reason.AMBIGUOUS_SOURCE.value: "two mounts could be its source: see the driver's mounts",
    Reason.SOURCE_MISSING.value: "its server was not mounted again: see the driver",
    Reason.REPORT_ONLY.value: "set recovery.mode: recover",
    Reason.PAUSED.value: "run 'fusewatchd resume'",
}


def pod_findings(
    binds: Sequence[Bind], names: Mapping[str, str], *, is_report_only: bool = False
) -> Iterator[Finding]:
    """Judge the binds of each pod, the worst pods first.

    Args:
        binds: as the document has them.
        names: of pods by uid, for a document that was made without the kubelet.
        is_report_only: ``recovery.mode`` is ``report``.
    """
    pods: dict[str, list[Bind]] = {}
    for bind in binds:
        pods.setdefault(_name(bind["pod"], names), []).append(bind)
    judged = [_judged(name, pods[name], is_report_only) for name in sorted(pods)]
    order = ("fail", "warn", "ok")
    yield from sorted(judged, key=lambda finding: order.index(finding.level.value))
    if not pods:
        yield ok("pods", "none uses a FUSE volume")


def _name(pod: Mapping[str, Any], names: Mapping[str, str]) -> str:
    if pod["name"]:
        return f"{pod['namespace']}/{pod['name']}"
    return names.get(pod["uid"], pod["uid"])


def _judged(name: str, binds: Sequence[Bind], is_report_only: bool) -> Finding:
    check = f"pod {name}"
    broken = [bind for bind in binds if bind["verdict"] in BROKEN]
    if broken:
        verdicts = ", ".join(sorted({bind["verdict"] for bind in broken}))
        reasons = dict.fromkeys(bind["refusal"] for bind in broken if bind["refusal"])
        reason = next(iter(reasons)) if len(reasons) == 1 else None
        why = f": {', '.join(reasons)}" if reasons else ""
        advice = _ADVICE.get(reason or "", f"'fusewatchd explain {name}' says what and why")
        return fail(check, f"{len(broken)} of {len(binds)} mounts are {verdicts}{why}", advice)
    ways = {bind["refusal"] for bind in binds if bind["refusal"] in _LET_ALONE}
    if is_report_only or (ways and ways <= _HELD_BACK):
        way = min(ways & _HELD_BACK, default=Reason.REPORT_ONLY.value)
        return warn(check, "would be reported and not repaired", _ADVICE[way])
    if ways:
        return ok(check, "would be left alone, as its pod or the configuration says")
    blind = [bind for bind in binds if bind["source"]["path"] is None and bind["kind"] == "publish"]
    if blind:
        text = f"would not be recovered: no source is known ({blind[0]['source']['why']})"
        return warn(check, text, "see that its driver mounts on the host, where it can be seen")
    several = [bind for bind in binds if len(bind["source"]["candidates"]) > 1]
    if several:
        return warn(
            check, "would not be recovered: two sources are possible", _ADVICE["ambiguous_source"]
        )
    layers = sum(bind.get("dead_layers", 0) for bind in binds)
    if layers:
        text = f"would be recovered; dead layers below what works now: {layers}"
        return warn(check, text, "find out who mounts there again and again: 'findmnt'")
    sources = sorted({bind["source"]["path"] for bind in binds if bind["source"]["path"]})
    inside = sum(bind["kind"] == "container" for bind in binds)
    where = f"{len(binds) - inside} on the host, {inside} in containers"
    return ok(check, f"would be recovered ({where}) from {', '.join(sources) or 'its host bind'}")
