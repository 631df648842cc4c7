"""Which connections are held over the end of their servers, from ``status``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fusewatchd.doctor.findings import Finding, fail, ok, warn
from fusewatchd.model.held import NotHeld
from fusewatchd.text import counted

_ADVICE: Mapping[NotHeld, str] = {
    NotHeld.KERNEL: "Linux 6.8 or newer is needed",
    NotHeld.CONNECTION_UNKNOWN: "Linux 6.16 or newer is needed",
    NotHeld.BLOCK_DEVICE: "take it out of keeper.hold.drivers",
    NotHeld.SERVER_UNKNOWN: "run the daemon as root on the host, where all processes are seen",
    NotHeld.OTHER_HOLDER: "leave it to what holds it: 'fusewatchd status' names the processes",
    NotHeld.NOT_EVERYBODY_SEEN: "see the quota: some processes were not looked at",
    NotHeld.IO_URING: "start its server without io_uring",
    NotHeld.SWITCHED_OFF: "recovery is switched off for one of its pods",
    NotHeld.REPORT_ONLY: "set recovery.mode to recover, or resume the node",
    NotHeld.NO_KEEPER: "systemctl start fusewatchd-keeper.service",
    NotHeld.FAILED: "see the detail; a security module may forbid it",
}


def keeper_findings(document: Mapping[str, Any]) -> Iterator[Finding]:
    """Name every connection that is to be held and is not."""
    keeper = document.get("keeper")
    if keeper is None:
        yield ok("keeper", "off (keeper.hold.drivers)")
        return
    if keeper["problem"]:
        text = f"it cannot be talked to: {keeper['problem']}"
        yield fail("keeper", text, _ADVICE[NotHeld.NO_KEEPER])
    for one in keeper["not_held"]:
        detail = f": {one['detail']}" if one["detail"] else ""
        text = f"connection {one['device']} of {one['driver']}: {one['reason']}{detail}"
        yield warn("keeper", text, _ADVICE[NotHeld(one["reason"])])
    if not keeper["outlives_its_process"]:
        text = "what it holds ends with its process: systemd keeps no descriptors for it"
        yield warn("keeper", text, "start it as fusewatchd-keeper.service")
    if not keeper["problem"]:
        yield ok("keeper", f"holds {counted(len(keeper['held']), 'connection')}")
