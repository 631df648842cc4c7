"""The account of all FUSE mounts in the status document, and its lines for people; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fusewatchd.model.accounts import MAX_LISTED, Account, MountClass
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.status.values import PATH_LIMIT, Document, shown
from fusewatchd.text import counted

_WORDS: Mapping[MountClass, str] = {
    MountClass.BIND_HOST: "host",
    MountClass.BIND_CONTAINER: "container",
    MountClass.OWN: "own",
    MountClass.AGENT_COPY: "agent",
    MountClass.OTHER_CONTAINER: "other container",
}
"""Short ones; the others are in their own words."""


def accounts_document(cycle: CycleReport) -> Document:
    """Return the sums, and every mount that is not explained."""
    accounts, snapshot = cycle.accounts, cycle.snapshot
    classes = {}
    for kind in MountClass:
        one = accounts.of(kind)
        names = [shown(name, PATH_LIMIT) for name in one.whose]
        classes[kind.value] = {"mounts": one.mounts, "dead": one.dead, "whose": names}
    return {
        "fuse_mounts": accounts.mounts,
        "classes": classes,
        "unexplained": _listed(accounts.unexplained, snapshot),
        "dead_copies": _listed(accounts.dead, snapshot),
    }


def _listed(accounts: Iterable[Account], snapshot: Snapshot) -> list[Document]:
    return [_mount(one, snapshot) for one in tuple(accounts)[:MAX_LISTED]]


def _mount(one: Account, snapshot: Snapshot) -> Document:
    pod = (snapshot.pods or {}).get(one.pod_uid)
    name = f"{pod.namespace}/{pod.name}" if pod is not None else ""
    return {
        "class": one.kind.value,
        "pod": shown(name) or None,
        "pod_uid": shown(one.pod_uid) or None,
        "namespace": one.namespace or None,
        "mount_point": shown(one.mount.mount_point, PATH_LIMIT),
        "device": str(one.mount.device),
        "whose": shown(one.whose, PATH_LIMIT) or None,
        "why": one.why or None,
    }


def accounts_lines(document: Document) -> list[str | tuple[str, str]]:
    """Return a line for each mount that is not explained, and one for the sums."""
    accounts = document["accounts"]
    lines: list[str | tuple[str, str]] = [_unexplained(one) for one in accounts["unexplained"]]
    sums = [
        f"{count} {_WORDS.get(kind) or kind.value.replace('_', ' ')}"
        for kind in MountClass
        if (count := accounts["classes"][kind.value]["mounts"])
    ]
    if len(sums) > 1:
        lines.append(f"{counted(accounts['fuse_mounts'], 'FUSE mount')}: {', '.join(sums)}")
    return lines


def _unexplained(one: Document) -> tuple[str, str]:
    pod = f"pod {one['pod'] or one['pod_uid']}, " if one["pod_uid"] else ""
    is_dead = one["class"] == MountClass.STILL_DEAD.value
    what = "Still dead, restart the pod" if is_dead and pod else _WHAT[is_dead]
    return f"{what}: {pod}", one["mount_point"]


_WHAT = {True: "Still dead", False: "Not understood"}
