"""In which mount namespace the kubelet works.

It is that of the host's first process, as a rule.  A node may hide the mounts of kubelet and
runtime in one of their own, which receives what the host mounts and sends nothing back: OpenShift,
"kubens" (github.com/containers/kubensmnt).  Then the host sees no pod's mount at all.

What tells is the table: the one that has pods' mounts below the kubelet's directory.  A name tells
nothing, and k3s has no process called kubelet.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from fusewatchd.errors import ParseError
from fusewatchd.linux.procfs import open_process
from fusewatchd.model.mount_table import MountTable, below, parse_mount_table
from fusewatchd.observe.kubelet.directory import AUTO, find_kubelet_directory
from fusewatchd.observe.kubelet.processes import HostProcesses, Kubelet
from fusewatchd.text import first_few

MAX_NAMED = 3
FIRST_PID = 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where to work."""

    pid: int = 0
    """A process in the namespace to enter; 0: none is to be entered."""
    namespace: int = 0
    """Its inode."""
    problem: str = ""
    """Why it is not known where the kubelet works."""

    @property
    def is_here(self) -> bool:
        """True where the caller is in the kubelet's namespace already."""
        return not self.pid and not self.problem


HERE = Place()


def find_place(configured: str) -> Place:
    """Find the namespace that has pods' mounts and is used by root's own tools.

    Args:
        configured: ``kubelet.root``.

    Raises:
        OSError: /proc cannot be read.
    """
    host = HostProcesses()
    kubelets = tuple(host.kubelets())
    with open_process(os.getpid()) as ourselves:
        own = ourselves.namespace("mnt")
    told = [k.root_directory for k in kubelets] if configured == AUTO else []
    if _has_pods(os.getpid(), configured, told):
        return _unless_hidden(own, kubelets, configured, told)
    fitting = {
        inode: pid for inode, pid in host.holders(own).items() if _has_pods(pid, configured, told)
    }
    if len(fitting) == 1:
        ((inode, pid),) = fitting.items()
        return Place(pid, inode)
    if fitting:
        return Place(problem=f"several mount namespaces have pods' mounts: {_named(fitting)}")
    if any(kubelet.mount_namespace == own for kubelet in kubelets):
        return HERE
    return Place(problem="no mount namespace has a pod's mount so far, and no kubelet runs in this")


def _unless_hidden(
    own: int, kubelets: Iterable[Kubelet], configured: str, told: list[str]
) -> Place:
    """Return HERE, unless a kubelet elsewhere has mounts of pods that are missing here."""
    here = _points(os.getpid(), configured, told)
    for kubelet in kubelets:
        if kubelet.mount_namespace != own and not _points(kubelet.pid, configured, told) <= here:
            found = {own: os.getpid(), kubelet.mount_namespace: kubelet.pid}
            return Place(problem=f"two mount namespaces have pods' mounts: {_named(found)}")
    return HERE


def _has_pods(pid: int, configured: str, told: list[str]) -> bool:
    return bool(_points(pid, configured, told))


def _points(pid: int, configured: str, told: list[str]) -> frozenset[str]:
    """Return where something is mounted below the kubelet's directory of pods."""
    table = _table_of(pid)
    pods = find_kubelet_directory(configured, told, table).pods
    return frozenset(m.mount_point for m in table if pods and below(m.mount_point, pods))


def _table_of(pid: int) -> MountTable:
    with suppress(OSError, ParseError), open_process(pid) as process:
        return parse_mount_table(process.read("mountinfo"))
    return MountTable.of(())


def _named(found: Mapping[int, int]) -> str:
    words = [f"{inode} of process {pid}" for inode, pid in sorted(found.items())]
    return first_few(words, MAX_NAMED)


def is_hidden_from_first(configured: str) -> bool:
    """Return True for a caller who sees pods' mounts that the host's first process does not see."""
    kubelets = HostProcesses().kubelets() if configured == AUTO else ()
    told = [k.root_directory for k in kubelets]
    return _has_pods(os.getpid(), configured, told) and not _has_pods(FIRST_PID, configured, told)
