"""What systemd hears from the real daemon, sd_notify(3)."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from tests.lab import in_lab

pytestmark = pytest.mark.kernel

PATIENCE = 15.0


class Listener:
    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.lines: list[str] = []

    def wait_for(self, line: str, count: int = 1) -> None:
        end = time.monotonic() + PATIENCE
        while sum(x.startswith(line) for x in self.lines) < count:
            self.socket.settimeout(max(0.001, end - time.monotonic()))
            self.lines += self.socket.recv(65536).decode().splitlines()


@in_lab(timeout=60)
def test_ready_status_watchdog_reloading_stopping(node: DemoNode) -> None:
    listener = Listener(os.path.join(node.lab, "notify"))
    os.environ |= {"NOTIFY_SOCKET": os.path.join(node.lab, "notify"), "WATCHDOG_USEC": "1000000"}
    os.environ.pop("WATCHDOG_PID", None)
    with DaemonProcess(node) as daemon:
        listener.wait_for("READY=1")
        assert any(line.startswith("STATUS=") for line in listener.lines)
        listener.wait_for("WATCHDOG=1", 3)
        os.kill(daemon.pid, signal.SIGHUP)
        listener.wait_for("RELOADING=1")
        listener.wait_for("READY=1", 2)
        os.kill(daemon.pid, signal.SIGSTOP)
        time.sleep(0.5)
        listener.socket.settimeout(1.5)
        # A daemon that does not come round says nothing, and systemd starts it anew.
        with pytest.raises(TimeoutError):
            for _ in range(10):
                listener.socket.recv(65536)
        os.kill(daemon.pid, signal.SIGCONT)
        assert daemon.stop() == 0
    listener.wait_for("STOPPING=1")
    listener.socket.close()
