"""What the cgroups of a process say: its pod and container, its systemd unit, its memory cgroup.

Input is ``/proc/<pid>/cgroup``, cgroups(7): one line for each v1 hierarchy and one, ``0::``, for
v2.  Names: kubernetes, pkg/kubelet/cm/cgroup_manager_linux.go (``kubepods``, both drivers);
containerd, internal/cri (``cri-containerd``); cri-o (``crio``); systemd, src/basic/cgroup-util.c
(units).  Nothing is opened here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fusewatchd.model import MemoryCgroup

_POD = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})")
_CONTAINER_ID = re.compile(r"([0-9a-f]{8,64})(?:\.scope)?$")
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


def owner_of_cgroup(text: str) -> CgroupOwner:
    """Return to whom a process belongs by its ``/proc/<pid>/cgroup``."""
    pod = pod_uid_of_cgroup(text)
    return CgroupOwner(*pod) if pod is not None else CgroupOwner(unit=_unit_of(text))


def pod_uid_of_cgroup(text: str) -> tuple[str, str] | None:
    """Return pod uid and container id from ``/proc/<pid>/cgroup``, None outside pods.

    Knows both drivers: ``/kubepods/burstable/pod<uid>/<id>`` of cgroupfs, and
    ``kubepods-burstable-pod<uid with underscores>.slice/cri-containerd-<id>.scope`` of
    systemd; v1 and v2; whatever prefix a nested node puts before them.
    """
    for line in text.splitlines():
        path = line.split(":", 2)[-1]
        if "kubepods" not in path:
            continue
        found = list(_POD.finditer(path))
        if not found:
            continue
        rest = path[found[-1].end() :].removeprefix(".slice").strip("/")
        container = _CONTAINER_ID.search(rest.split("/")[0]) if rest else None
        return found[-1].group(1).replace("_", "-"), container.group(1) if container else ""
    return None


def _unit_of(text: str) -> str:
    """Return the innermost unit: of a node in a container it is the service in there.

    The hierarchy of systemd itself comes first where there are several.
    """
    lines = [line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2]
    for _, _, path in sorted(lines, key=lambda line: (line[1] != "name=systemd", line[0] != "0")):
        for part in reversed(path.split("/")):
            if _UNIT.fullmatch(part) and len(part) <= _MAX_UNIT:
                # A name that could be taken for a file of the cgroup's has one before it.
                return part.removeprefix("_")
    return ""


def memory_cgroup_of(text: str) -> MemoryCgroup | None:
    """Return the cgroup that counts the memory; None where no controller does."""
    unified: MemoryCgroup | None = None
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if not colon or not path.startswith("/"):
            continue
        if "memory" in controllers.split(","):
            return MemoryCgroup(1, path)
        if number == "0" and not controllers:
            unified = MemoryCgroup(2, path)
    return unified


def pod_cgroup_above(path: str) -> str:
    """Return the cgroup of the pod above that of a container; empty where there is none.

    It is there as long as the pod, and on v2 it counts what happens in its containers.
    """
    above = path.rpartition("/")[0]
    return above if _POD.search(above.rpartition("/")[2]) else ""
