"""Containers that the scan has proven, where mount workers find them without a look of their own.

A look at a cgroup takes a lock that the kernel holds while anybody makes or removes one: nothing
for the moment in which a pod waits for its volume.  So scan and mount workers share memory that
is mapped before they are forked, and that the daemon itself unmaps.  What is missing there, the
mount worker finds out.

A slot may be read while it is written, so each one has a checksum.
"""

from __future__ import annotations

import errno
import mmap
import struct
import zlib
from collections.abc import Iterable
from typing import Any

from fusewatchd.linux.procfs import open_process
from fusewatchd.model.actions import NamespaceRef
from fusewatchd.observe.namespaces.cgroupfs import CgroupTrees

COUNT = 1 << 13
"""Of slots; two namespaces that share one are looked at in turn."""
_SLOT = struct.Struct("=QQQ36s")
_CHECKSUM = struct.Struct("=I")
_BYTES = _SLOT.size + _CHECKSUM.size


class ProvenContainers:
    """Which mount namespaces belong to containers, and to which pods."""

    def __init__(self) -> None:
        """Map the memory; what is never written to takes none."""
        self._memory = mmap.mmap(-1, COUNT * _BYTES)
        self._trees: CgroupTrees | None = None

    def close(self) -> None:
        """Let go of the memory in this process."""
        self._memory.close()

    def prepare(self) -> None:
        """Find the hierarchies of cgroups now, and not when a pod waits."""
        self._trees = CgroupTrees()
        self._trees.find()

    def note(self, namespaces: Iterable[Any]) -> None:
        """Note the containers among the namespaces that a scan tells."""
        for each in namespaces:
            if isinstance(each, dict) and (each["pod_uid"] or each["container_id"]):
                place = NamespaceRef(each["inode"], each["pid"], each["start_time"])
                self._write(place, each["pod_uid"])

    def pod_of(self, namespace: NamespaceRef) -> str | None:
        """Return the uid of the pod in whose container a process is proven to be.

        Empty where only the kubelet's list tells of which pod; None where it is in no container.

        Raises:
            OSError: ESRCH when the process has ended.
        """
        found = self._read(namespace)
        if found is None:
            found = self._look(namespace)
            if found is not None:
                self._write(namespace, found)
        return found

    def _look(self, namespace: NamespaceRef) -> str | None:
        if self._trees is None:
            self.prepare()
        assert self._trees is not None
        self._trees.begin()
        try:
            with open_process(namespace.pid) as process:
                place = self._trees.membership(process.cgroup)
                is_same = process.stat()[2] == namespace.start_time
        except FileNotFoundError:
            raise ProcessLookupError(errno.ESRCH, "the container has ended") from None
        if not is_same:
            raise ProcessLookupError(errno.ESRCH, "the pid is another process's now")
        return place.pod_uid if place.directory else None

    def _write(self, namespace: NamespaceRef, pod_uid: str) -> None:
        data = _SLOT.pack(*_name(namespace), pod_uid.encode())
        if pod_uid != data[-36:].rstrip(b"\0").decode():
            return  # It does not fit, and is looked at each time.
        at = namespace.inode % COUNT * _BYTES
        self._memory[at : at + _BYTES] = data + _CHECKSUM.pack(zlib.crc32(data))

    def _read(self, namespace: NamespaceRef) -> str | None:
        at = namespace.inode % COUNT * _BYTES
        slot = self._memory[at : at + _BYTES]
        data = slot[: _SLOT.size]
        inode, pid, start_time, pod_uid = _SLOT.unpack(data)
        is_it = (inode, pid, start_time) == _name(namespace)
        if not is_it or slot[_SLOT.size :] != _CHECKSUM.pack(zlib.crc32(data)):
            return None
        return str(pod_uid.rstrip(b"\0").decode())


def _name(namespace: NamespaceRef) -> tuple[int, int, int]:
    return namespace.inode, namespace.pid, namespace.start_time
