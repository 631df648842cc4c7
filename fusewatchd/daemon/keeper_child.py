"""A keeper beside a daemon that no service manager started, for demo and tests.

It outlives a daemon that is killed, and the next one finds it; it ends with one that is stopped.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from fusewatchd.errors import ParseError
from fusewatchd.keeper.client import Client
from fusewatchd.keeper.protocol import Stop, socket_path

START_SECONDS = 10.0


@contextmanager
def keeper_beside(runtime_dir: str, environ: Mapping[str, str]) -> Iterator[None]:
    """Have a keeper for the length of a block, unless there is one or systemd starts it.

    To be entered while this process may still start programs.

    Args:
        runtime_dir: of the daemon.
        environ: in which systemd names itself, systemd.exec(5) ``INVOCATION_ID``.
    """
    path = socket_path(runtime_dir)
    if environ.get("INVOCATION_ID") or _listens(path):
        yield
        return
    command = [sys.executable, "-m", "fusewatchd", "keeper", "--set", f"runtime_dir={runtime_dir}"]
    # A signal to the terminal's foreground is for the daemon, which ends this in its turn.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + START_SECONDS
    while not _listens(path) and child.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    try:
        yield
    finally:
        with suppress(OSError, ParseError), Client(path, START_SECONDS) as client:
            client.ask(Stop())
        with suppress(subprocess.TimeoutExpired):
            child.wait(START_SECONDS)


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        return client.connect_ex(path) == 0
