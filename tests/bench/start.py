"""Time from exec to READY, as systemd sees it, with so many mounts on the node.

    python -m tests.bench start      (as root)

``imports_ms`` is the part in which Python loads modules, measured by itself.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.world import PrivateWorld
from tests.bench.rows import Row, measured
from tests.bench.stage import Layout, staged

STARTS = 10
SIZES = (100, 5000, 20_000)


def rows(*, is_quick: bool) -> Iterator[Row]:
    """Start a daemon again and again."""
    for size in SIZES:
        yield from measured(lambda world, s=size: measure(world, s, 3 if is_quick else STARTS))


def measure(world: PrivateWorld, size: int, starts: int) -> Row:
    """Return a row of the table."""
    layout = Layout(20, 2, 0, other_mounts=size)
    with DemoNode(world) as node, staged(node, layout):
        taken = [_start(node) for _ in range(starts)]
        imports = [_imports() for _ in range(starts)]
    return {
        "bench": "start",
        "mounts": size,
        "ready_ms": round(statistics.median(taken) * 1e3),
        "max_ms": round(max(taken) * 1e3),
        "imports_ms": round(statistics.median(imports) * 1e3),
    }


def _start(node: DemoNode) -> float:
    path = os.path.join(node.lab, "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind(path)
        inbox.settimeout(60)
        command = [sys.executable, "-m", "fusewatchd", "run"]
        for setting in (
            f"kubelet.root={node.kubelet_root}",
            f"state_dir={node.lab}/state",
            f"runtime_dir={node.lab}/run",
            'web.listen_address=""',
        ):
            command += ["--set", setting]
        began = time.monotonic()
        daemon = subprocess.Popen(
            command, env={**os.environ, "NOTIFY_SOCKET": path}, stderr=subprocess.DEVNULL
        )
        try:
            while b"READY=1" not in inbox.recv(4096):
                pass
            return time.monotonic() - began
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait()
            os.unlink(path)


def _imports() -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import fusewatchd.daemon.daemon"], check=True)
    return time.monotonic() - began
