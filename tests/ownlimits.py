"""A lab in a user namespace of its own, whose limits a test may lower: user_namespaces(7).

What is made there counts there, so nobody else on this machine meets the limit.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

from fusewatchd.demo.node.node import DemoNode
from fusewatchd.linux import syscalls
from tests.lab import LabFailure, run_in_lab

_IDS = "0 0 65536"


def set_limit(name: str, value: int) -> None:
    """Set ``user.<name>`` of the lab's user namespace, ``max_mnt_namespaces``."""
    with open(f"/proc/sys/user/{name}", "w", encoding="ascii") as file:
        file.write(str(value))


def run_with_own_limits(body: Callable[[DemoNode], None], *, timeout: float) -> None:
    """Run ``body`` as ``run_in_lab`` does, as root of a user namespace of its own."""
    said, say = os.pipe()
    mapped, tell_mapped = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            os.write(say, b"+")
            os.read(mapped, 1)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            run_in_lab(body, timeout=timeout)
        except BaseException:
            os.write(say, traceback.format_exc().encode()[-60000:])
        finally:
            os._exit(0)
    os.close(say)
    with open(said, "rb", buffering=0) as file:
        assert file.read(1) == b"+", file.readall()
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as ids:
                ids.write(_IDS)
        os.write(tell_mapped, b"+")
        failure = file.readall().decode()
    os.close(mapped)
    os.close(tell_mapped)
    os.waitpid(pid, 0)
    if failure:
        raise LabFailure(failure)
