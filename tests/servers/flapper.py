"""Many FUSE servers that die and come back together, each a process of its own.

A server that is started as a program takes a tenth of a second of processor time, so fifty of
them every second are more than a small machine has.  These are forked from one process that has
everything loaded; they die by SIGKILL, as real ones do.

Reads lines of JSON: first the list of ``[mount point, backing directory]``, then commands
``{"seconds": …, "period": …, "down": …}``.  Answers each with one line once all servers are up.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time

from fusewatchd.demo.fuse import server as fuse_server
from fusewatchd.demo.node.sources import detach_all


class Server:
    """One source; ``begin`` and ``wait`` are apart so that all can start side by side."""

    def __init__(self, mount: str, backing: str) -> None:
        self._arguments = ["--mount", mount, "--backing", backing]
        self._mount = mount
        self._pid = 0
        self._ready = -1

    def begin(self) -> None:
        """Fork a server onto the bare path."""
        detach_all(self._mount)
        self._ready, writer = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                os.dup2(writer, 1)
                # Or each would hold the ends of those before it.
                os.closerange(3, writer + 1)
                status = fuse_server.main(self._arguments)
            finally:
                os._exit(status)
        os.close(writer)

    def wait(self) -> None:
        """Wait until it serves."""
        with open(self._ready, "rb") as pipe:
            if not pipe.readline().startswith(b"READY"):
                raise RuntimeError(f"no server at {self._mount}")

    def kill(self) -> None:
        """SIGKILL; ``reap`` waits for the end."""
        os.kill(self._pid, signal.SIGKILL)

    def reap(self) -> None:
        os.waitpid(self._pid, 0)


def flap(servers: list[Server], seconds: float, period: float, down: float) -> int:
    """Let all die at the start of each period and come back; return how often each died."""
    start = time.monotonic()
    rounds = 0
    while time.monotonic() < start + seconds:
        die(servers)
        time.sleep(down)
        rise(servers)
        rounds += 1
        rest = start + rounds * period - time.monotonic()
        time.sleep(max(0.0, rest))
    return rounds


def die(servers: list[Server]) -> None:
    for server in servers:
        server.kill()
    for server in servers:
        server.reap()


def rise(servers: list[Server]) -> None:
    for server in servers:
        server.begin()
    for server in servers:
        server.wait()


def main() -> int:
    gc.freeze()
    servers = [Server(mount, backing) for mount, backing in json.loads(sys.stdin.readline())]
    rise(servers)
    print(json.dumps({"rounds": 0}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"rounds": flap(servers, **json.loads(line))}), flush=True)
    die(servers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
