"""A container whose root is a file system of the test's choice, to which volumes are bound."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from fusewatchd.demo.node import cgroups
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod
from fusewatchd.linux import syscalls


@contextmanager
def rooted(
    node: DemoNode, pod: DemoPod, make_root: Callable[[str], None], volumes: dict[str, str]
) -> Iterator[int]:
    """Give the pid of a process of a pod's container, in a mount namespace of its own.

    ``make_root`` mounts something at the path that it is given; ``volumes`` are places in it
    and the host paths that are bound there.
    """
    stage = os.path.join(node._stage, f"root-{secrets.token_hex(4)}")
    os.mkdir(stage)
    cgroup = cgroups.pod_cgroup(node.world.cgroup, pod.uid, secrets.token_hex(32))
    directory = cgroups.create(cgroup)
    if directory is None:
        pytest.skip("no cgroups to make")
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _become(stage, directory, make_root, volumes)
            os.write(told, b".")
            signal.pause()
        finally:
            os._exit(1)
    os.close(told)
    try:
        assert os.read(ready, 1) == b".", "the container could not be made"
        yield pid
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        cgroups.remove(directory)
        cgroups.remove(os.path.dirname(directory))


def _become(
    root: str, cgroup: str, make_root: Callable[[str], None], volumes: dict[str, str]
) -> None:
    with open(os.path.join(cgroup, "cgroup.procs"), "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_SLAVE | syscalls.MS_REC)
    make_root(root)
    for place, path in volumes.items():
        os.makedirs(root + place, exist_ok=True)
        syscalls.mount(path, root + place, None, syscalls.MS_BIND)
    syscalls.mount(None, root, None, syscalls.MS_PRIVATE | syscalls.MS_REC)
    os.chdir(root)
    syscalls.pivot_root(".", ".")
    syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")
