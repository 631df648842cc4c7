"""FUSE mounts that nothing explains, from the account in ``status``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fusewatchd.doctor.findings import Finding, fail, ok

_STILL_DEAD = "restart the pod: nothing repairs this mount"
_NOT_UNDERSTOOD = "report this mount with its line of /proc/<pid>/mountinfo: it is not watched"


def account_findings(document: Mapping[str, Any]) -> Iterator[Finding]:
    """Judge the account of all FUSE mounts."""
    accounts = document["accounts"]
    for one in accounts["unexplained"]:
        is_dead = one["class"] == "still_dead"
        pod = f"pod {one['pod'] or one['pod_uid']}: " if one["pod_uid"] else ""
        state = "still dead" if is_dead else "not understood"
        text = f"{state}: {pod}{one['mount_point']} ({one['why']})"
        yield fail("accounts", text, _STILL_DEAD if is_dead else _NOT_UNDERSTOOD)
    if not accounts["unexplained"]:
        yield ok("accounts", f"all of {accounts['fuse_mounts']} FUSE mounts are explained")
