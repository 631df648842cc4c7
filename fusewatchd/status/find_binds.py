"""Which binds of a status document a person means by a path, a pod or a container; pure.

All texts of the document are escaped, and so is what is looked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from fusewatchd.model.mount_table import below
from fusewatchd.status.values import PATH_LIMIT, Document, pod_name
from fusewatchd.text import printable

MAX_NEAR = 5
MAX_COMPARED = 1000
"""Names that are compared letter by letter."""
MIN_ID = 6
"""Characters of a container's id that name it."""


def find(document: Document, wanted: str) -> list[Document]:
    """Return the binds that are meant; empty when nothing is known of such a thing.

    A path means the bind on the host that it is, or is in; else every bind of the source that
    it is, or is in; else every container mount that it is, or is in, whatever the container.
    ``POD:/path`` and ``CONTAINER:/path`` mean a mount as that container sees it.  A pod is
    ``namespace/name``, a name or a uid, and means all its binds; so does a container's id.
    A volume is the name of its directory (the PersistentVolume) or of its claim, and means its
    binds in all pods.
    What is in a container and none of the volumes that are repaired is found in the same way.
    """
    wanted = printable(wanted, PATH_LIMIT)
    binds: list[Document] = document["binds"] + document["unclaimed"]
    if wanted.startswith("/"):
        path = _plain(wanted)
        on_host = _longest([b for b in binds if b["namespace"] is None], path)
        return on_host or _of_source(binds, path) or _longest(_inside(binds), path)
    who, colon, path = wanted.partition(":/")
    if colon:
        theirs = [b for b in _inside(binds) if _is_pod(b, who) or _is_container(b, who)]
        return _longest(theirs, _plain("/" + path))
    found = [b for b in binds if _is_pod(b, wanted) or _is_container(b, wanted)]
    return found or [b for b in document["binds"] if _is_volume(b, wanted)]


def narrowed(document: Document, wanted: str) -> Document | None:
    """Return the document as if there were nothing but what is meant; None: nothing is.

    Outages, dead sources and actions stay if they are about a source of these mounts.
    """
    binds = [bind for bind in find(document, wanted) if "source" in bind]
    if not binds:
        return None
    places = {place for bind in binds for place in bind["source"]["candidates"]}
    devices = {bind["device"] for bind in binds}
    counts = Counter(bind["verdict"] for bind in binds)
    recoveries = [bind["last_recovery"] for bind in binds if bind["last_recovery"]]
    kept = {
        key: [one for one in document[key] if _is_about(one, places, devices)]
        for key in _OF_A_SOURCE
    }
    return (
        document
        | kept
        | {
            "binds": binds,
            "totals": {
                "binds": len(binds),
                "volumes": len({(bind["pod"]["uid"], bind["volume"]) for bind in binds}),
                "pods": len({bind["pod"]["uid"] for bind in binds}),
                "verdicts": {name: counts[name] for name in document["totals"]["verdicts"]},
            },
            "last_recovery": max(recoveries, key=lambda one: str(one["at"]), default=None),
        }
    )


_OF_A_SOURCE = (
    "dead_mount_holders", "dead_sources", "flapping_sources", "incidents", "outages", "servers",
)  # fmt: skip


def _is_about(one: Document, places: set[str], devices: set[str]) -> bool:
    return one.get("source") in places or one.get("device") in devices


def _is_volume(bind: Document, name: str) -> bool:
    claim = bind["claim"]
    names = (claim, f"{bind['pod']['namespace']}/{claim}") if claim else ()
    return name in (bind["volume"], *names)


def _plain(path: str) -> str:
    return "/" + "/".join(part for part in path.split("/") if part)


def _inside(binds: Iterable[Document]) -> list[Document]:
    return [bind for bind in binds if bind["namespace"] is not None]


def _longest(binds: Sequence[Document], path: str) -> list[Document]:
    """Return the binds at the deepest place that the path is in."""
    hit = [bind for bind in binds if below(path, bind["mount_point"]) is not None]
    deepest = max((len(bind["mount_point"]) for bind in hit), default=0)
    return [bind for bind in hit if len(bind["mount_point"]) == deepest]


def _of_source(binds: Iterable[Document], path: str) -> list[Document]:
    return [b for b in binds if any(below(path, c) is not None for c in _candidates(b))]


def _candidates(bind: Document) -> list[str]:
    return bind["source"]["candidates"] if "source" in bind else []


def _is_pod(bind: Document, who: str) -> bool:
    pod = bind["pod"]
    names = (pod["name"], f"{pod['namespace']}/{pod['name']}") if pod["name"] else ()
    if who and who in (pod["uid"], *names):
        return True
    # The directory of a pod from a file has another uid than the API server tells.
    return bind["namespace"] is None and f"/pods/{who}/" in bind["mount_point"] and "/" not in who


def _is_container(bind: Document, who: str) -> bool:
    container = bind["container"] if bind["namespace"] is not None else None
    return container is not None and len(who) >= MIN_ID and container.startswith(who)


# ------------------------------------------------------------------------------ near ones


def near(document: Document, wanted: str) -> list[str]:
    """Return names of what is known that look like what was not found."""
    wanted = printable(wanted, PATH_LIMIT)
    names = list(dict.fromkeys(_names(document["binds"] + document["unclaimed"])))
    if wanted.startswith("/"):
        names = sorted((n for n in names if n[0] == "/"), key=lambda n: -_common(n, wanted))
        return [name for name in names if _common(name, wanted) > 1][:MAX_NEAR]
    names = [name for name in names if name[0] != "/"]
    found = [name for name in names if wanted and wanted in name]
    name = wanted.rpartition("/")[2]
    lasts = {one.rpartition("/")[2]: one for one in names[:MAX_COMPARED]}
    found += [lasts[last] for last in get_close_matches(name, lasts, MAX_NEAR)]
    return list(dict.fromkeys(found))[:MAX_NEAR]


def _names(binds: Iterable[Document]) -> Iterable[str]:
    for bind in binds:
        pod = bind["pod"]
        yield pod_name(pod)
        if "volume" in bind:
            yield bind["volume"]
        if pod["uid"]:
            yield pod["uid"]
        if bind["namespace"] is None:
            yield bind["mount_point"]
        yield from _candidates(bind)


def _common(one: str, other: str) -> int:
    """Return how many leading names two paths have in common."""
    count = 0
    for a, b in zip(one.split("/"), other.split("/"), strict=False):
        if a != b:
            break
        count += 1
    return count
