"""What the cgroups of a process say: its pod and container, its systemd unit, its memory cgroup.

Input is ``/proc/<pid>/cgroup``, cgroups(7): one line for each v1 hierarchy and one, ``0::``, for
v2.  Names: kubernetes, pkg/kubelet/cm/cgroup_manager_linux.go (``kubepods``, both drivers);
containerd, internal/cri (``cri-containerd``); cri-o (``crio``); systemd, src/basic/cgroup-util.c
(units).  Nothing is opened here.

Whoever owns a cgroup names those below it as he likes.  So a path is no more than a claim: it
names the directory that must be root's, with all above it, before it is believed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from fusewatchd.model.servers import MemoryCgroup

_UID = r"[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32}"
_POD = re.compile(r"pod([!-.0-~]{1,253}?)(?:\.slice)?$")
_CANONICAL = re.compile(_UID)
_POD_OF_API = re.compile(rf"pod(?:{_UID})(?:\.slice)?$")
_QOS = ("burstable", "besteffort")
_CONTAINER_ID = re.compile(r"([0-9a-f]{8,64})(?:\.scope)?$")
_WHOLE_ID = re.compile(r"(?<![0-9a-f])([0-9a-f]{64})(?![0-9a-f])")
_UNIT = re.compile(r".+\.(?:service|scope)")
_MAX_UNIT = 256
"""``UNIT_NAME_MAX`` of systemd."""


@dataclass(frozen=True, slots=True)
class CgroupOwner:
    """Whose a process is; all that is not known is empty."""

    pod_uid: str = ""
    container_id: str = ""
    unit: str = ""
    """A systemd service or scope; of a process outside pods only."""


@dataclass(frozen=True, slots=True)
class CgroupLine:
    """One line of ``/proc/<pid>/cgroup``."""

    controllers: frozenset[str]
    """Of a v1 hierarchy; empty for v2."""
    path: str


@dataclass(frozen=True, slots=True)
class CgroupClaim:
    """Which container a path says that it is, and what makes that true."""

    pod_uid: str
    """As the path has it where it is no UUID: systemd's paths have ``_`` in the place of ``-``."""
    container_id: str
    above: str
    """The directory that must be root's: the pod's, or the one that holds the container's."""
    container: str
    """The container's own directory, which may be its user's."""
    anchor: str | None
    """The directory above ``kubepods``, empty for the root; None where there is no ``kubepods``."""


def cgroup_lines(text: str) -> Iterable[CgroupLine]:
    """Yield the well-formed lines of ``/proc/<pid>/cgroup``.

    Only a line feed ends one: a name may hold any other byte.
    """
    for line in text.split("\n"):
        number, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon and path.startswith("/"):
            names = [] if number == "0" else controllers.split(",")
            yield CgroupLine(frozenset(names), path)


def claim_of(path: str) -> CgroupClaim | None:
    """Return which container a path below the root of its hierarchy claims; None for none.

    Knows both drivers: ``/kubepods/burstable/pod<uid>/<id>`` of cgroupfs, and
    ``kubepods-burstable-pod<uid with underscores>.slice/cri-containerd-<id>.scope`` of systemd.
    The first ``kubepods`` counts: what is below a container is the container's to name.
    Without one it is the first id, for runtimes that put containers elsewhere.
    """
    parts = path.split("/")[1:]
    for number in range(len(parts) if "kubepods" in path else 0):
        if _is_kubepods(parts, number):
            return _in_kubepods(parts, number)
    found = _WHOLE_ID.search(path)
    if found is None:
        return None
    above = path[: path.rindex("/", 0, found.start())]
    name, _, _ = path[len(above) + 1 :].partition("/")
    return CgroupClaim("", found.group(1), above, f"{above}/{name}", None)


def may_be_pod(named: str, uid: str) -> bool:
    """Return True where a cgroup that names a pod so may be that of the pod with this uid.

    Systemd's cgroups have ``_`` in the place of each ``-``, so of two such pods either may be it.
    """
    return named == uid or ("_" in named and named == uid.replace("-", "_"))


def _is_kubepods(parts: list[str], number: int) -> bool:
    """True for the kubelet's own level; systemd names a slice after those above it."""
    part = parts[number]
    if part in ("kubepods", "kubepods.slice"):
        return True
    above = part.removesuffix("-kubepods.slice")
    return above != part and number > 0 and parts[number - 1] == f"{above}.slice"


def _in_kubepods(parts: list[str], number: int) -> CgroupClaim | None:
    stem = parts[number].removesuffix(".slice")
    is_slice = stem != parts[number]
    levels = [f"{stem}-{qos}.slice" for qos in _QOS] if is_slice else list(_QOS)
    at = number + 1
    if at < len(parts) and parts[at] in levels:
        stem, at = parts[at].removesuffix(".slice"), at + 1
    name = parts[at] if at < len(parts) else ""
    before = f"{stem}-" if is_slice else ""
    pod = _POD.fullmatch(name[len(before) :])
    if pod is None or not name.startswith(before) or name.endswith(".slice") is not is_slice:
        return None
    above = container = _joined(parts[: at + 1])
    found = None
    if at + 1 < len(parts):
        container = _joined(parts[: at + 2])
        found = _CONTAINER_ID.search(parts[at + 1])
    uid = pod.group(1)
    if _CANONICAL.fullmatch(uid):
        uid = uid.replace("_", "-")
    anchor = _joined(parts[:number])
    return CgroupClaim(uid, found.group(1) if found else "", above, container, anchor)


def _joined(parts: list[str]) -> str:
    return "".join(f"/{part}" for part in parts)


def unit_of_cgroup(text: str) -> str:
    """Return the innermost systemd unit: of a node in a container it is the service in there.

    The hierarchy of systemd itself comes first where there are several.
    """
    lines = [line.split(":", 2) for line in text.split("\n") if line.count(":") >= 2]
    for _, _, path in sorted(lines, key=lambda line: (line[1] != "name=systemd", line[0] != "0")):
        for part in reversed(path.split("/")):
            if _UNIT.fullmatch(part) and len(part) <= _MAX_UNIT:
                # A name that could be taken for a file of the cgroup's has one before it.
                return part.removeprefix("_")
    return ""


def memory_cgroup_of(text: str) -> MemoryCgroup | None:
    """Return the cgroup that counts the memory; None where no controller does."""
    unified: MemoryCgroup | None = None
    for line in cgroup_lines(text):
        if "memory" in line.controllers:
            return MemoryCgroup(1, line.path)
        if not line.controllers:
            unified = MemoryCgroup(2, line.path)
    return unified


def pod_cgroup_above(path: str) -> str:
    """Return the cgroup of the pod above that of a container; empty where there is none.

    It is there as long as the pod, and on v2 it counts what happens in its containers.
    """
    above = path.rpartition("/")[0]
    return above if _POD_OF_API.search(above.rpartition("/")[2]) else ""
