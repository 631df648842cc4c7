"""The processes of the node that are proven to be root's own tools, and the kubelets among them.

A name proves nothing: any user may start a program called ``kubelet``, and the kubelet of a node
that runs in a container is another node's.  What only root's own tools have is: the user 0 in the
daemon's own user namespace, and a cgroup that is root's, with all above it, and no container's.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from fusewatchd.linux import procfs
from fusewatchd.linux.procfs import Process, open_process
from fusewatchd.model.kubelet import KubeletDirectory
from fusewatchd.model.mounts import Mount
from fusewatchd.observe.kubelet.directory import AUTO, DEFAULT_PLACE, find_kubelet_directory
from fusewatchd.observe.namespaces.cgroupfs import CgroupTrees

_NAME = "kubelet"
_FLAG = b"--root-dir"


@dataclass(frozen=True, slots=True)
class Kubelet:
    """A kubelet that runs on this node itself."""

    pid: int
    root_directory: str
    """Its ``--root-dir``, as it was given."""
    mount_namespace: int


class HostProcesses:
    """Tells root's own processes from all others."""

    def __init__(self) -> None:
        """Look at nothing yet.

        Raises:
            OSError: /proc cannot be read.
        """
        self._trees = CgroupTrees()
        self._trees.begin()
        with open_process(os.getpid()) as ourselves:
            self._users = ourselves.namespace("user")

    def is_one(self, process: Process) -> bool:
        """Return True for a process that only root's own tools can have made.

        Raises:
            OSError: it has ended, or may not be looked at.
        """
        lines = process.read("status").split(b"\n")
        users = next((line.split()[1:] for line in lines if line.startswith(b"Uid:")), [])
        return (
            users == [b"0"] * 4
            and process.namespace("user") == self._users
            and self._trees.is_in_no_container(process.cgroup())
        )

    def holders(self, own: int) -> dict[int, int]:
        """Return a process for each mount namespace but ``own`` that root's own tools use."""
        found: dict[int, int] = {}
        for pid in procfs.list_pids():
            with suppress(OSError), open_process(pid) as process:
                inode = process.namespace("mnt")
                if inode not in found and inode != own and self.is_one(process):
                    found[inode] = pid
        return found

    def kubelets(self) -> Iterator[Kubelet]:
        """Yield the kubelets that run outside of containers."""
        for pid in procfs.list_pids():
            # It has ended, or may not be looked at: then nothing is proven.
            with suppress(OSError), open_process(pid) as process:
                name, state, _ = process.stat()
                # The arguments of a process in an uninterruptible wait may be locked.
                words = process.read("cmdline").split(b"\0") if state != "D" else []
                called = posixpath.basename(os.fsdecode(words[0])) if words else ""
                if _NAME in (name, called) and process.root() == "/" and self.is_one(process):
                    yield Kubelet(pid, _root_directory(words), process.namespace("mnt"))


def _root_directory(words: list[bytes]) -> str:
    """Return the last ``--root-dir``, as pflag takes it; the kubelet's default without one."""
    found = DEFAULT_PLACE
    for number, word in enumerate(words):
        flag, is_given, value = word.partition(b"=")
        if flag == _FLAG:
            value = value if is_given else b"".join(words[number + 1 : number + 2])
            found = os.fsdecode(value) if value.startswith(b"/") else found
    return found


def find_kubelet(configured: str, mounts: Iterable[Mount]) -> KubeletDirectory:
    """Return the directory of this node's kubelet, as ``find_kubelet_directory`` does.

    Raises:
        OSError: /proc cannot be read.
    """
    kubelets = HostProcesses().kubelets() if configured == AUTO else ()
    return find_kubelet_directory(configured, [k.root_directory for k in kubelets], mounts)
